"""`python -m analysis.intervene`, the old spelling of `subllm edit`."""

import sys

from .commands.edit import main

if __name__ == "__main__":
    sys.exit(main())
