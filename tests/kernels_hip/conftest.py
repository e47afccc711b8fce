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


CURRENT: dict[tuple[str, int], device.Device] = {}


def machine(arch: str, counts: int) -> device.Device:
    """The simulator has one machine at a time, so asking for another one, here or in another file, resets it."""
    made = CURRENT.get((arch, counts))
    if made is None or made.sim is not harness.Sim.current:
        CURRENT.clear()
        CURRENT[arch, counts] = device.Device(arch, counts=counts)
    return CURRENT[arch, counts]


@pytest.fixture(scope="session")
def machines():
    """arch -> device."""
    return lambda arch: machine(arch, 0)


@pytest.fixture
def counting_machines():
    """arch -> a new device that counts executed instructions."""

    def get(arch: str) -> device.Device:
        CURRENT.clear()
        return machine(arch, 1)

    return get
