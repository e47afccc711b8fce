"""`MXORT_TEST_LIBRARIES=<folder>` runs the suite on another build of the native libraries (the sanitizer build)."""

# There the kernels' cases take minutes: `make check` runs every second one, `make check-full` all.

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

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
    if not _folder or not config.option.markexpr:
        return
    kernels = [item for item in items if item.path.parent.name == "kernels"]
    left_out = set(kernels[1::2])
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
