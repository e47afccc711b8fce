from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

sys.path.insert(0, str(HERE))

import ep_models

from hipsim import harness

try:
    harness.find_tool("clang")
    MISSING = ""
except FileNotFoundError as error:
    MISSING = str(error)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if MISSING and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def toy() -> dict[str, str]:
    """Environment of a program that uses the toy provider; TOY_EP is its library."""
    subprocess.run(["make", "-s", "toy-ep"], cwd=ROOT, check=True, capture_output=True)
    kernels = harness.compile_hip(HERE / "toy_kernels.hip", include=[ROOT / "ep"])
    return {
        "TOY_EP": str(ROOT / "build" / "tests" / "libtoy_ep.so"),
        "TOY_EP_HIP": str(harness.library_path() / "libamdhip64.so.7"),
        "TOY_EP_KERNELS": str(kernels),
    }


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """converted("chain", activation_format="mxfp4"): path of that model of ep_models, converted; made once."""
    made: dict[tuple[object, ...], str] = {}

    def get(name: str, **recipe: object) -> str:
        key = (name, *sorted(recipe.items()))
        if key not in made:
            path = tmp_path_factory.mktemp(name) / f"{name}.onnx"
            made[key] = ep_models.converted(getattr(ep_models, name)(), path, **recipe)
        return made[key]

    return get
