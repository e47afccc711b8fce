"""MXORT_LAZY_EXPERTS: experts packed when a row first chooses them, and only as many kept as there is room for."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import experts_memory
import moe_model
import moe_oracle
import op_model
from mxort.converters import functions

VARIABLE, FOLDER = "MXORT_LAZY_EXPERTS", "MXORT_PACKED_WEIGHTS"
PLENTY = str(1 << 40)

EXPERTS, CHOSEN, WIDTH = 64, 4, 1024
EXPERT = 3 * WIDTH * WIDTH // 32 * 17
"""Bytes of a packed expert of the large layer: 17 a block."""


def rows(experts: moe_oracle.Experts, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, experts.down[0].N), dtype=np.float32)
    return x, rng.standard_normal((count, len(experts.down)), dtype=np.float32)


def session(experts: moe_oracle.Experts, threads: int = 2) -> ort.InferenceSession:
    return op_model.session(moe_model.model(experts), threads=threads)


def run(made: ort.InferenceSession, x: np.ndarray, logits: np.ndarray) -> bytes:
    (y,) = made.run(None, {"X": x, "router": logits})
    return bytes(np.asarray(y).tobytes())


@pytest.fixture(scope="module")
def experts() -> moe_oracle.Experts:
    return moe_oracle.random_experts(
        np.random.default_rng(0), experts=12, d=96, hidden=160, k=3, accuracy_level=3
    )


@pytest.mark.parametrize("limit", ["0", "30000", PLENTY])
@pytest.mark.parametrize("folder", [False, True])
def test_the_numbers_are_those_of_experts_packed_before(experts, limit, folder, monkeypatch, tmp_path):
    eager = session(experts)
    monkeypatch.setenv(VARIABLE, limit)
    if folder:
        monkeypatch.setenv(FOLDER, str(tmp_path))
    lazy = session(experts)
    assert not list(tmp_path.glob("*.packed"))
    for count in (1, 1, 40):
        x, logits = rows(experts, count, seed=count)
        assert run(lazy, x, logits) == run(eager, x, logits)
    assert len(list(tmp_path.glob("*.packed"))) == (2 * 12 if folder else 0)  # of both products of each


def test_an_expert_that_was_not_chosen_is_not_read(monkeypatch):
    """NaN of its scales reaches the rows alone that chose it, and takes no fast kernel from the others."""
    monkeypatch.setenv(VARIABLE, PLENTY)
    made = moe_oracle.random_experts(
        np.random.default_rng(1), experts=4, d=64, hidden=64, k=2, accuracy_level=3
    )
    made.down[1].scales[:, 0] = 0xFF
    x, logits = rows(made, 16)  # so few for each that no kernel rounds to bfloat16
    (y,) = session(made).run(None, {"X": x, "router": logits})
    hit = (np.argsort(-logits, axis=-1)[:, :2] == 1).any(axis=-1)
    assert 0 < hit.sum() < 16 and np.isnan(y[hit]).all()
    moe_oracle.assert_close(made, x[~hit], logits[~hit], y[~hit])


def test_threads_that_evict_what_others_use(experts, monkeypatch):
    eager = session(experts)
    feeds = [rows(experts, 1 + seed % 3, seed) for seed in range(64)]
    expected = [run(eager, *feed) for feed in feeds]
    monkeypatch.setenv(VARIABLE, "30000")  # two of them
    lazy = [session(experts), session(experts)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = pool.map(lambda at: run(lazy[at % 2], *feeds[at % 64]), range(256))
    assert list(got) == expected * 4


@pytest.mark.parametrize("value", ["lazy", "-1", "1e9", "9" * 30])
def test_what_is_no_number_is_named(experts, value, monkeypatch):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(Exception, match=f"{VARIABLE}: got '{value}', expected a number of bytes") as error:
        session(experts)
    assert "\n" not in str(error.value)


def save_large_layer(path: Path) -> None:
    """Random experts, their bytes in a data file."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, n in (("gate_up", 2 * WIDTH), ("down", WIDTH)):
        tensors[f"{name}_B"] = rng.integers(0, 256, (EXPERTS, n, WIDTH // 2), np.uint8)
        tensors[f"{name}_B_scale"] = rng.integers(118, 122, (EXPERTS, n, WIDTH // 32), np.uint8)
        tensors[f"{name}_column_scale"] = np.ones((EXPERTS, n), np.float32)
        tensors[f"{name}_bias"] = np.zeros((EXPERTS, n), np.float32)
    node = helper.make_node(
        functions.EXPERTS, ["X", "router", *tensors], ["Y"], domain=functions.DOMAIN,
        k=CHOSEN, activation=functions.SILU, swiglu_fusion=2, normalize_routing_weights=1,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "layer",
        [value("X", TensorProto.FLOAT, ["M", WIDTH]), value("router", TensorProto.FLOAT, ["M", EXPERTS])],
        [value("Y", TensorProto.FLOAT, ["M", WIDTH])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(functions.DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path, save_as_external_data=True)


def measured(path: Path, limit: str, steps: list[list[int]]) -> Callable[[], list[int]]:
    """What experts_memory.py prints; it runs meanwhile."""
    arguments = [experts_memory.__file__, path, str(EXPERTS), str(WIDTH), json.dumps(steps)]
    process = subprocess.Popen(
        [sys.executable, *arguments], env=os.environ | {VARIABLE: limit}, stdout=subprocess.PIPE
    )

    def result() -> list[int]:
        output, _ = process.communicate()
        assert process.returncode == 0
        numbers: list[int] = json.loads(output)
        return numbers

    return result


def test_memory(tmp_path):
    """Four of 64 experts take their own memory; all of them, one step after the other, what the limit allows."""
    path = tmp_path / "layer.onnx"
    save_large_layer(path)
    four, each = [[3, 9, 27, 60]] * 3, [list(range(e, e + CHOSEN)) for e in range(0, EXPERTS, CHOSEN)]
    room = 8 * EXPERT
    slack = 12 << 20  # onnxruntime's own, threads' stacks, pages of 2 MB that are not full
    cases = [("", four), (PLENTY, four), (PLENTY, each), (str(room), each * 2)]
    eager, lazy, every, bounded = [result() for result in [measured(path, *case) for case in cases]]
    print(eager, lazy, every, bounded)
    assert eager[0] > EXPERTS * EXPERT
    assert eager[1] > EXPERTS * EXPERT
    assert lazy[0] < 3 * CHOSEN * EXPERT + slack  # the file's pages, and what is made of them
    assert CHOSEN * EXPERT < lazy[1] < CHOSEN * EXPERT + slack
    assert every[1] > EXPERTS * EXPERT
    assert room < bounded[1] < room + CHOSEN * EXPERT + slack
    assert max(every[2], bounded[2]) < slack
