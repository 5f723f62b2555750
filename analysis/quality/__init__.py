"""How good a checkpoint is: perplexity, benchmarks, needles, everyday questions."""
