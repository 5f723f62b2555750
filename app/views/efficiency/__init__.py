"""The page Efficiency: what was measured, and what is predicted."""
