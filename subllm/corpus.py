"""`python -m subllm.corpus`, the old spelling of `subllm corpus-text`."""

import sys

from .text.corpus import main

if __name__ == "__main__":
    sys.exit(main())
