"""Kernels that compute something else than the CPU are found before their first use, named, and not used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from simulated import run, start

from hipsim import mutate

OBJECTS = Path(__file__).resolve().parents[2] / "build" / "cmake" / "hip"
ROWS = 5
FIRST = "gemm_fp4_16x16"
"""What selection takes for ROWS rows of an mxfp4 node."""

EVERY = tuple(f"gemm_fp4_{tile}" for tile in ("16x16", "16x64", "skinny", "64x64", "128x128", "256x256"))


def broken(folder: Path, kernels: Iterable[str], kind: str) -> str:
    """A folder for MXORT_CODE_OBJECTS in which the first possible mutation of each kernel's main loop is made."""
    folder.mkdir()
    for kernel in kernels:
        name = f"{'gemm_direct' if '_16x' in kernel else 'gemm_mx'}.gfx950.co"
        path = folder / name if (folder / name).exists() else OBJECTS / name
        image = next(mutate.CodeObject(path.read_bytes()).mutations(kernel, [kind])).image
        (folder / name).write_bytes(image)
    return str(folder)


def checked(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """A session and its result, or how it failed."""
    import gpu

    try:
        with gpu.registered():
            opened = gpu.session(model, options={"self_check": 1} | options)
            placement = gpu.placement(opened)
            y = opened.run(None, gpu.feeds(opened, rows=5))[0].tolist()
            launches = gpu.sim.counters()["launches"]
            opened.run(None, gpu.feeds(opened, rows=5))
            launches = gpu.sim.counters()["launches"] - launches
            opened = None
    except Exception as error:
        opened = None
        return {"error": gpu.message(error), "live": gpu.live()}
    return {"placement": placement, "y": y, "launches": launches, "error": "", "live": gpu.live()}


def difference(result: dict[str, Any], right: dict[str, Any]) -> float:
    y, expected = np.array(result["y"]), np.array(right["y"])
    return float(np.sqrt(((y - expected) ** 2).sum() / (expected**2).sum()))


def test_a_wrong_kernel_is_named_and_replaced(converted: Callable[..., str], tmp_path: Path) -> None:
    model = converted("single", activation_format="mxfp4")
    right = run(checked, model, {})
    folder = broken(tmp_path / "co", [FIRST], "opsel_a")
    unchecked = run(checked, model, {"self_check": 0}, MXORT_CODE_OBJECTS=folder)
    assert difference(unchecked, right) > 1e-2  # the mutation matters
    outcome = start(checked, model, {}, MXORT_CODE_OBJECTS=folder)
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, lines
    assert "warning" in lines[0] and FIRST in lines[0]
    assert difference(outcome.result, right) < 1e-6  # the same operands bit for bit
    assert outcome.result["launches"] == right["launches"] == 1  # nothing is checked again
    assert outcome.result["live"] == {}


def test_where_no_kernel_is_right_the_cpu_computes(converted: Callable[..., str], tmp_path: Path) -> None:
    model = converted("single", activation_format="mxfp4")
    right = run(checked, model, {"self_check": 0})
    outcome = start(checked, model, {}, MXORT_CODE_OBJECTS=broken(tmp_path / "co", EVERY, "opsel_a"))
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["placement"] == {"CPUExecutionProvider": ["MatMulMXFP4"]}
    assert difference(outcome.result, right) < 1e-6
    assert [line for line in EVERY if line not in outcome.stderr] == []
    assert outcome.result["live"] == {}


def test_a_kernel_that_stops_the_device(converted: Callable[..., str], tmp_path: Path) -> None:
    """As an illegal access on a GPU: nothing runs there any more in this process, so the CPU takes the node."""
    model = converted("single", activation_format="mxfp4")
    right = run(checked, model, {"self_check": 0})
    outcome = start(checked, model, {}, MXORT_CODE_OBJECTS=broken(tmp_path / "co", [FIRST], "drop_wait"))
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["placement"] == {"CPUExecutionProvider": ["MatMulMXFP4"]}, outcome
    assert difference(outcome.result, right) < 1e-6
    assert outcome.result["live"] == {}


def products_and_weights(folder: Path) -> str:
    """softmax(X B), X [5, 24], of floats."""
    rng = np.random.default_rng(1)
    b = numpy_helper.from_array(rng.standard_normal((24, 20)).astype(np.float32), "B")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "B"], ["P"]), helper.make_node("Softmax", ["P"], ["Y"])],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [5, 24])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [5, 20])],
        [b],
    )
    path = folder / "softmax.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return str(path)


def test_an_operator_with_a_wrong_kernel_is_the_cpus(tmp_path: Path) -> None:
    """What takes tensors as they are: the node is left, and no other."""
    model = products_and_weights(tmp_path)
    right = run(checked, model, {"self_check": 0})
    (tmp_path / "co").mkdir()
    image = mutate.CodeObject(OBJECTS / "rows.gfx950.co")
    exponentials = [i for i in image.functions["softmax_wave"] if i.mnemonic == "v_exp_f32_e32"]
    opcode, exp, log = 0xFF << 9, 0x20 << 9, 0x21 << 9
    for i in exponentials:
        assert i.words[0] & opcode == exp
        image = mutate.CodeObject(image.mutate(i, (i.words[0] & ~opcode | log,)))
    (tmp_path / "co" / "rows.gfx950.co").write_bytes(image.image)
    outcome = start(checked, model, {}, MXORT_CODE_OBJECTS=str(tmp_path / "co"))
    assert outcome.code == 0, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert "warning: kernel softmax_wave (float) disagrees" in line
    expected = {"CPUExecutionProvider": ["Softmax"], "MxortExecutionProvider": ["MatMul"]}
    assert outcome.result["placement"] == expected
    assert difference(outcome.result, right) < 1e-6
    assert outcome.result["live"] == {}
