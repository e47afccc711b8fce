"""Runs one kind of fuzzing over a range of seeds, in a process that may die: `python -m fuzz.worker KIND FIRST COUNT`.

Prints how often each outcome came, as JSON. The seed at hand stands in the file that MXORT_FUZZ_SEED names, so that the
parent can tell where a process died. A seed alone makes its input again: `... KIND SEED 1`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

MEMORY = 12 << 30
"""Address space of a worker: what asks for more than any of these inputs needs is caught here."""


class WrongError(Exception):
    """What came out is not what may come out."""


def kinds() -> dict[str, Callable[[np.random.Generator], str]]:
    """Name -> function that makes an input, uses it and says what came of it; raises for what must not be."""
    from fuzz import hostile, models, operators

    return {"operators": operators.run, "models": models.run, "hostile": hostile.run}


def main(kind: str, first: int, count: int) -> int:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run, outcomes, failures = kinds()[kind], Counter[str](), []
    mark = os.environ.get("MXORT_FUZZ_SEED")
    for seed in range(first, first + count):
        if mark:
            Path(mark).write_text(str(seed))
        try:
            outcomes[run(np.random.default_rng(seed))] += 1
        except Exception:
            failures.append({"seed": seed, "error": traceback.format_exc(limit=-6)})
    json.dump({"outcomes": outcomes, "failures": failures}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
