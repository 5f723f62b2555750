"""Questions about one run: what if a decision were another, why was it taken, what would each block predict."""
