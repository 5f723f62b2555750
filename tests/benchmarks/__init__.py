"""Benchmarks that need more than the packages; `make bench` runs them."""
