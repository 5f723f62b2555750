"""The page Debug, a module for each of its tabs."""
