"""Runs one function of a test file: child.py FILE FUNCTION JSON_ARGUMENTS (see simulated.py)."""

import json
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "support")]

if __name__ == "__main__":
    file, name, arguments = sys.argv[1:]
    result = runpy.run_path(file)[name](*json.loads(arguments))
    sys.stdout.write(f"result: {json.dumps(result)}\n")
    sys.stdout.flush()
