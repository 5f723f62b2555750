"""`python -m analysis.training_step`, the old spelling of `subllm training-step`."""

import sys

from .commands.training_step import main

if __name__ == "__main__":
    sys.exit(main())
