"""MultiHeadAttention: against double precision, and against its function in onnxruntime and onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import op_model
from mxort.converters import encoder_attention

KERNELS = ["avx512_vnni", "avx2", "portable"]
"""Rows of the kernel table that choose each of the three instruction sets, where the CPU has it."""


def model(scale: object = 0.25) -> onnx.ModelProto:
    names = ["query", "key", "value", "mask"]
    node = helper.make_node(encoder_attention.NAME, names, ["y"], name="node", domain="mxort", scale=scale)
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.FLOAT, ["b", f"{name}_n", "h", "d"]) for name in names[:3]]
    inputs.append(info("mask", TensorProto.FLOAT, None))
    output = info("y", TensorProto.FLOAT, ["b", "query_n", "h", "d"])
    graph = helper.make_graph([node], "one_node", inputs, [output])
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("mxort", 1))]
    function = encoder_attention.function(21)
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def feeds(
    seed: int, batch: int, length: int, keys: int, heads: int, size: int, mask: tuple[int, ...] = (1,)
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"query": (batch, length, heads, size), "key": (batch, keys, heads, size)}
    shapes |= {"value": shapes["key"], "mask": mask}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(f: dict[str, np.ndarray], scale: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """(y, a bound of its error) in double; the bound is derived as in test_attention.py."""
    q, k, v = (f[name].astype(np.float64).transpose(0, 2, 1, 3) for name in ("query", "key", "value"))
    scores = q @ k.swapaxes(-1, -2) * scale + f["mask"]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    terms = np.abs(q) @ np.abs(k).swapaxes(-1, -2) * scale + np.abs(f["mask"])
    error = 2 * (q.shape[-1] + 8) * 2.0**-24 * terms.max(axis=-1, keepdims=True) + 64 * 2.0**-24
    bound = error * np.abs(v).max(axis=(-1, -2), keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3), np.broadcast_to(bound, q.shape).transpose(0, 2, 1, 3)


CASES = [
    (1, 1, 1, 1, 16, (1,)),
    (2, 7, 7, 3, 32, (2, 1, 1, 7)),
    (1, 128, 128, 12, 32, (1, 1, 1, 128)),
    (1, 49, 200, 2, 64, (49, 200)),
    (2, 5, 65, 4, 16, (2, 4, 5, 65)),
    (3, 48, 64, 2, 80, ()),
    (1, 100, 63, 1, 128, (1, 1, 100, 1)),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle(monkeypatch: pytest.MonkeyPatch, case: tuple[object, ...], kernel: str) -> None:
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    f = feeds(1, *case)  # type: ignore[arg-type]
    want, bound = expected(f)
    runs = [op_model.session(model(), threads=threads).run(None, f)[0] for threads in (1, 3)]
    np.testing.assert_array_equal(*runs)
    stock = op_model.session(model(), library=False).run(None, f)[0]
    reference = onnx.reference.ReferenceEvaluator(model()).run(None, f)[0]
    for y in (runs[0], stock, reference):
        assert (np.abs(y - want) <= bound).all(), np.abs((y - want) / bound).max()


@pytest.mark.parametrize("masked", [np.finfo(np.float32).min, -10000.0, -np.inf])
def test_masked_keys_have_no_part(masked: float) -> None:
    f = feeds(2, 2, 30, 90, 2, 32)
    f["mask"] = np.zeros((2, 1, 1, 90), np.float32)
    f["mask"][0, ..., 40:] = f["mask"][1, ..., :70] = masked
    y = op_model.session(model()).run(None, f)[0]
    for batch, seen in ((0, slice(None, 40)), (1, slice(70, None))):
        part = {name: x[batch : batch + 1] for name, x in f.items()}
        part |= {name: part[name][:, seen] for name in ("key", "value")}
        want, bound = expected(part | {"mask": np.zeros(1, np.float32)})
        assert (np.abs(y[batch] - want[0]) <= bound[0]).all()


def test_a_row_with_all_keys_masked_is_their_mean() -> None:
    """As the steps give: the lowest float swallows the scores."""
    f = feeds(3, 1, 2, 9, 1, 16)
    f["mask"] = np.full((1, 1, 1, 9), np.finfo(np.float32).min)
    y = op_model.session(model()).run(None, f)[0]
    np.testing.assert_allclose(
        y[0, :, 0], np.tile(f["value"][0, :, 0].mean(axis=0), (2, 1)), rtol=0, atol=1e-6
    )


def test_nan() -> None:
    f = feeds(4, 1, 20, 20, 2, 16)
    f["query"][0, 3, 1, 5] = np.nan
    y = op_model.session(model()).run(None, f)[0]
    assert np.isnan(y[0, 3, 1]).all()
    y[0, 3, 1] = 0
    assert np.isfinite(y).all()


BAD = [
    (
        {"query": np.zeros((1, 4, 2, 24), np.float32)},
        r"input query: got shape \[1,4,2,24\], expected \[batch",
    ),
    (
        {"key": np.zeros((1, 4, 3, 16), np.float32)},
        r"input key: got shape \[1,4,3,16\], expected \[1,4,2,16\]",
    ),
    (
        {"value": np.zeros((1, 5, 2, 16), np.float32)},
        r"input value: got shape \[1,5,2,16\], expected \[1,4,2,16\]",
    ),
    (
        {"mask": np.zeros((1, 3, 1, 1), np.float32)},
        r"input mask: got shape \[1,3,1,1\], expected one that broadcasts",
    ),
    ({"mask": np.zeros((1, 1, 1, 1, 1), np.float32)}, "input mask: got shape"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_inputs(changes: dict[str, np.ndarray], message: str) -> None:
    session = op_model.session(model())
    with pytest.raises(Exception, match=f"MultiHeadAttention 'node': {message}|got dimension|Got invalid"):
        session.run(None, feeds(5, 1, 4, 4, 2, 16) | changes)


def test_a_scale_of_another_type() -> None:
    with pytest.raises(Exception, match=r"attribute scale: .*type"):
        op_model.session(model(scale="x"))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 70), st.integers(1, 3)),
    mask=st.lists(st.integers(0, 3), max_size=5),
)
def test_fuzz(shape: tuple[int, ...], mask: list[int]) -> None:
    """An error of one line, or what numpy's broadcasting gives."""
    f = feeds(6, *shape, 16, tuple(mask))
    try:
        y = op_model.session(model()).run(None, f)[0]
    except Exception as error:
        assert "MultiHeadAttention" in str(error), error
        return
    if y.size and shape[2]:
        want, bound = expected(f)
        assert (np.abs(y - want) <= bound).all()
