"""`python -m subllm.data`, the old spelling of `subllm data`."""

import sys

from .text.packed import main

if __name__ == "__main__":
    sys.exit(main())
