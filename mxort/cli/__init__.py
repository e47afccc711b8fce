"""The command line: :func:`main` runs one, as ``mxort`` and ``python -m mxort`` do."""

from mxort.cli.app import main as main
