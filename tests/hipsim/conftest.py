import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))  # mxort.formats, where mxort is not installed

from hipsim import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("clang-22") or shutil.which("amdclang++"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason="no clang with AMDGPU support (apt install clang-22 lld-22 llvm-22)")
            )


@pytest.fixture
def sim() -> harness.Sim:
    return harness.Sim()
