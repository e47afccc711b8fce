"""``python -m mxort``: the command line."""

import sys

from mxort.cli import main

if __name__ == "__main__":
    sys.exit(main())
