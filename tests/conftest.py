"""`MXORT_TEST_LIBRARIES=<folder>` runs the suite on another build of the native libraries (the sanitizer build)."""

# The kernels' cases are thousands: `make check` runs a third of them on that other build, where they take three times
# as long, and the others on the ordinary one; `make check-full` runs all on both.

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from zlib import crc32

import pytest

_folder = os.environ.get("MXORT_TEST_LIBRARIES")
if _folder:
    _path = next(Path(_folder).glob("_native*.so"))
    _spec = importlib.util.spec_from_file_location("mxort._native", _path)
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["mxort._native"] = _module
    _spec.loader.exec_module(_module)
    import mxort

    mxort._native = _module  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.markexpr:
        return
    left_out = [
        item
        for item in items
        if item.path.parent.name == "kernels" and (crc32(item.name.encode()) % 3 == 0) != bool(_folder)
    ]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)
