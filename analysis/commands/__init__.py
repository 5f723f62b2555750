"""Command lines of the analyses, a module for each sub-command of `subllm`; what they print is made elsewhere."""
