"""`python -m analysis.predict`, the old spelling of `subllm predict`."""

import sys

from .commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
