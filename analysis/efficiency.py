"""`python -m analysis.efficiency`, the old spelling of `subllm efficiency`."""

import sys

from .commands.efficiency import main

if __name__ == "__main__":
    sys.exit(main())
