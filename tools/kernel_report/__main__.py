"""``python -m tools.kernel_report [FILE.co ...] [--json | --write docs/mi355x.md]``: of files, else of the library."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mxort.errors import MxortError
from tools.kernel_report.report import print_kernels, report, report_built, wide_console, write_markdown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kernel_report", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, help="gfx950 or gfx942 code objects (default: those in the library)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument(
        "--write", type=Path, help="write the table of main loops to this file: docs/mi355x.md"
    )
    options = parser.parse_args(arguments)
    try:
        kernels = report(options.files, options.only) if options.files else report_built(options.only)
        if options.write:
            write_markdown(kernels, options.write)
            return 0
    except MxortError as error:
        print(f"tools.kernel_report: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        json.dump(kernels, sys.stdout, indent=2)
        print()
        return 0
    print_kernels(kernels, wide_console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
