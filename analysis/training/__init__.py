"""Training runs, live or finished, and how their routing changed."""
