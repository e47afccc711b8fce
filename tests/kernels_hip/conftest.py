import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import device
from hipsim import harness

try:
    harness.find_tool("clang")
    MISSING = ""
except FileNotFoundError as error:
    MISSING = str(error)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if MISSING and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def machines():
    """arch -> device; the simulator has one machine at a time, so asking for another one resets it."""
    current: dict[str, device.Device] = {}

    def get(arch: str) -> device.Device:
        if arch not in current:
            current.clear()
            current[arch] = device.Device(arch)
        return current[arch]

    return get
