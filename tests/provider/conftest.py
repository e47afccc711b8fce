from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

sys.path.insert(0, str(HERE))

import ep_models  # noqa: E402
from simulated import TESTED  # noqa: E402

from hipsim import harness  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _needs_the_compiler_of_gpu_kernels() -> None:
    try:
        harness.find_tool("clang")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def programs() -> dict[str, str]:
    """Paths of what CMake builds for these tests, made in build/cmake unless another build is tested."""
    if not TESTED:
        subprocess.run(["make", "-s", "provider-programs"], cwd=ROOT, check=True, capture_output=True)
    folder = Path(TESTED).resolve() if TESTED else ROOT / "build" / "cmake"
    return {name: str(folder / name) for name in ("test_unload", "libtoy_ep.so")}


@pytest.fixture(scope="session")
def toy(programs: dict[str, str]) -> dict[str, str]:
    """Environment of a program that uses the toy provider; TOY_EP is its library."""
    kernels = harness.compile_hip(HERE / "toy_kernels.hip", include=[ROOT / "ep"])
    return {
        "TOY_EP": programs["libtoy_ep.so"],
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


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny llama in MXFP4, as the importer makes it."""
    import checkpoints  # with torch, which no other test here needs
    import mxort

    path = tmp_path_factory.mktemp("decoder")
    checkpoints.make(path / "in", "llama", "compressed-tensors")
    mxort.import_checkpoint(path / "in", path / "out")
    return str(path / "out")
