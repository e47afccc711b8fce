import sys

from mxort.cli import main

sys.exit(main())
