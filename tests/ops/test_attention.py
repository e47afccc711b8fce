"""GroupQueryAttention of this library: against double precision, and against com.microsoft's, which is its function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import op_model
from mxort.converters import attention

POSITIONS = 1200
KERNELS = ["avx512_vnni", "avx2", "portable"]
"""Rows of the kernel table that choose each of the three instruction sets, where the CPU has it."""

Arrays = dict[str, np.ndarray]


def model(
    heads: int, kv_heads: int, size: int, operator: str = attention.NAME, **attributes: Any
) -> onnx.ModelProto:
    values = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1} | attributes
    names = ["query", "past_key", "past_value", "seqlens_k", "total_sequence_length"]
    names += ["cos_cache", "sin_cache", *(["head_sink"] if operator == attention.SINK else [])]
    node = helper.make_node(
        operator,
        names,
        ["y", "key", "value"],
        name="node",
        domain="mxort",
        **{name: value for name, value in values.items() if value is not None},
    )
    cache, info = ["b", kv_heads, None, size], helper.make_tensor_value_info
    floats = {"query": ["b", "s", None], "past_key": cache, "past_value": cache}
    floats |= {"cos_cache": ["m", None], "sin_cache": ["m", None]}
    floats |= {"head_sink": [None]} if "head_sink" in names else {}
    inputs = [info(name, TensorProto.FLOAT, shape) for name, shape in floats.items()]
    inputs += [
        info("seqlens_k", TensorProto.INT32, ["b"]),
        info("total_sequence_length", TensorProto.INT32, [1]),
    ]
    outputs = [info("y", TensorProto.FLOAT, ["b", "s", None])]
    outputs += [info(name, TensorProto.FLOAT, ["b", kv_heads, None, size]) for name in ("key", "value")]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("mxort", 1))]
    return helper.make_model(
        graph, opset_imports=opsets, functions=[attention.function(21, operator)], ir_version=10
    )


def feeds(
    rng: np.random.Generator,
    batch: int,
    length: int,
    past: int,
    heads: int,
    kv_heads: int,
    size: int,
    pairs: int = 0,
) -> Arrays:
    pairs = pairs or size // 2
    angles = np.arange(POSITIONS)[:, None] * 10000.0 ** (-np.arange(pairs) / pairs)
    numbers = {
        "query": rng.standard_normal((batch, length, (heads + 2 * kv_heads) * size)),
        "past_key": rng.standard_normal((batch, kv_heads, past, size)),
        "past_value": rng.standard_normal((batch, kv_heads, past, size)),
        "cos_cache": np.cos(angles),
        "sin_cache": np.sin(angles),
    }
    return {name: x.astype(np.float32) for name, x in numbers.items()} | {
        "seqlens_k": np.full(batch, past + length - 1, np.int32),
        "total_sequence_length": np.array([past + length], np.int32),
    }


def rotated(x: np.ndarray, first: int, f: Arrays, interleaved: bool) -> np.ndarray:
    """x [length, heads, size] in double, rotated by its positions."""
    pairs, end = f["cos_cache"].shape[1], first + len(x)
    cos, sin = (f[name][first:end, None].astype(np.float64) for name in ("cos_cache", "sin_cache"))
    y = x.copy()
    low, high = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if interleaved
        else (slice(pairs), slice(pairs, 2 * pairs))
    )
    y[..., low] = x[..., low] * cos - x[..., high] * sin
    y[..., high] = x[..., high] * cos + x[..., low] * sin
    return y


def expected(
    f: Arrays,
    heads: int,
    kv_heads: int,
    *,
    scale: float = 0,
    softcap: float = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, a bound of its error): in double. A score errs by the sums' (head size + 8) 2^-24 of their terms'
    magnitudes; a weight of the softmax relatively by twice that, and the sum of values by as much again.
    """
    batch, length, width = f["query"].shape
    size, group = width // (heads + 2 * kv_heads), heads // kv_heads
    scale = scale or 1 / np.sqrt(size)
    y, bound = np.empty((batch, length, heads, size)), np.empty((batch, length, heads, 1))
    for b in range(batch):
        past = int(f["seqlens_k"][b]) + 1 - length
        q, k, v = np.split(
            f["query"][b].astype(np.float64).reshape(length, -1, size), [heads, heads + kv_heads], axis=1
        )
        q, k = (rotated(x, past, f, bool(rotary_interleaved)) for x in (q, k))
        for h in range(heads):
            keys = np.concatenate([f["past_key"][b, h // group, :past], k[:, h // group]])
            values = np.concatenate([f["past_value"][b, h // group, :past], v[:, h // group]])
            scores = q[:, h] @ keys.T * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            key, own = np.arange(past + length), past + np.arange(length)[:, None]
            hidden = key > own
            if local_window_size > 0:
                hidden |= key <= own - local_window_size
            scores = np.where(hidden, -np.inf, scores)
            sink = float(f["head_sink"][h]) if "head_sink" in f else -np.inf
            largest = np.maximum(scores.max(axis=1, keepdims=True), sink)
            weights = np.exp(scores - largest)
            weights /= weights.sum(axis=1, keepdims=True) + np.exp(sink - largest)
            y[b, :, h] = weights @ values
            terms = np.abs(q[:, h]) @ np.abs(keys).T * scale
            error = 2 * (size + 8) * 2.0**-24 * np.where(hidden, 0, terms).max(axis=1) + 64 * 2.0**-24
            bound[b, :, h, 0] = error * np.abs(values).max()
    return y.reshape(batch, length, -1), np.repeat(bound, size, axis=-1).reshape(batch, length, -1)


CASES = [
    # batch, length, past, heads, kv_heads, head size, attributes
    (1, 1, 0, 9, 3, 64, {}),
    (1, 1, 1, 4, 4, 16, {}),
    (2, 1, 63, 4, 2, 32, {}),
    (2, 1, 64, 8, 1, 32, {}),
    (1, 1, 513, 9, 3, 64, {}),
    (3, 1, 1100, 2, 1, 128, {}),
    (1, 5, 70, 4, 4, 32, {}),
    (1, 17, 100, 6, 1, 96, {"scale": 0.3}),
    (1, 33, 600, 2, 2, 80, {}),
    (2, 40, 0, 3, 3, 48, {"rotary_interleaved": 1}),
    (1, 130, 0, 6, 3, 64, {}),
    (1, 200, 333, 4, 2, 64, {"softcap": 5.0}),
    (1, 1, 300, 4, 2, 256, {"softcap": 30.0}),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle(monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...], kernel: str) -> None:
    batch, length, past, heads, kv_heads, size, attributes = case
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    f = feeds(np.random.default_rng(length + past), batch, length, past, heads, kv_heads, size)
    proto = model(heads, kv_heads, size, **attributes)
    y, key, value = op_model.session(proto).run(None, f)
    want, bound = expected(f, heads, kv_heads, **attributes)
    assert (np.abs(y - want) <= bound).all(), np.abs((y - want) / bound).max()
    stock = op_model.session(proto, library=False).run(None, f)
    assert (np.abs(y - stock[0]) <= 2 * bound).all()
    np.testing.assert_allclose(
        key, stock[1], rtol=0, atol=2.0**-21
    )  # rotated: two products and a sum below 2^3
    np.testing.assert_array_equal(value, stock[2])


WIDER = [
    # batch, length, past, heads, kv_heads, head size, attributes, sinks
    (1, 1, 1100, 6, 2, 64, {"local_window_size": 100}, None),
    (2, 1, 600, 4, 4, 32, {"local_window_size": 1}, None),
    (1, 1, 30, 2, 1, 64, {"local_window_size": 500, "softcap": 3.0}, None),
    (2, 130, 0, 6, 3, 48, {"local_window_size": 16}, None),
    (1, 200, 333, 4, 2, 64, {"local_window_size": 130, "scale": 0.3}, None),
    (1, 7, 90, 4, 2, 32, {"local_window_size": 64}, None),
    (1, 1, 1100, 6, 2, 64, {}, [0.0, 2.0, -3.0, -np.inf, 30.0, -100.0]),
    (2, 70, 0, 3, 1, 32, {"softcap": 5.0}, [1.0, -np.inf, 4.0]),
    (1, 1, 700, 8, 1, 64, {"local_window_size": 128}, [-2.0, -1, 0, 1, 2, 3, 4, 5]),
    (1, 150, 20, 4, 2, 64, {"local_window_size": 33}, [0.5, -0.5, 3.0, 0.0]),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", WIDER, ids=str)
def test_windows_and_sinks(monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...], kernel: str) -> None:
    batch, length, past, heads, kv_heads, size, attributes, sinks = case
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    f = feeds(np.random.default_rng(length + past), batch, length, past, heads, kv_heads, size)
    operator = attention.WINDOW if sinks is None else attention.SINK
    if sinks is not None:
        f["head_sink"] = np.array(sinks, np.float32)
    proto = model(heads, kv_heads, size, operator, **attributes)
    y, key, value = op_model.session(proto).run(None, f)
    want, bound = expected(f, heads, kv_heads, **attributes)
    assert (np.abs(y - want) <= bound).all(), np.abs((y - want) / bound).max()
    np.testing.assert_array_equal(op_model.session(proto, threads=3).run(None, f)[0], y)
    stock = op_model.session(proto, library=False).run(None, f)
    assert (np.abs(y - stock[0]) <= 2 * bound).all()
    np.testing.assert_allclose(key, stock[1], rtol=0, atol=2.0**-21)  # as above
    np.testing.assert_array_equal(value, stock[2])


def test_what_is_before_a_window_is_not_read() -> None:
    f = feeds(np.random.default_rng(8), 1, 1, 700, 4, 2, 64)
    for name in ("past_key", "past_value"):
        f[name][:, :, : 700 + 1 - 90] = np.nan
    y = op_model.session(model(4, 2, 64, attention.WINDOW, local_window_size=90)).run(None, f)[0]
    f = {n: np.nan_to_num(x) if n.startswith("past") else x for n, x in f.items()}
    want, bound = expected(f, 4, 2, local_window_size=90)
    assert (np.abs(y - want) <= bound).all()


@pytest.mark.parametrize("sink", [np.nan, np.inf])
def test_a_sink_that_is_no_number_makes_its_head_nan(sink: float) -> None:
    f = feeds(np.random.default_rng(9), 1, 1, 20, 4, 2, 16)
    f["head_sink"] = np.array([0, 0, sink, 0], np.float32)
    y = op_model.session(model(4, 2, 16, attention.SINK)).run(None, f)[0].reshape(4, 16)
    assert np.isnan(y[2]).all() and np.isfinite(y[[0, 1, 3]]).all()


def test_bad_windows_and_sinks() -> None:
    f = feeds(np.random.default_rng(7), 1, 2, 10, 4, 2, 16)
    for window in (0, -2):
        proto = model(4, 2, 16, attention.WINDOW, local_window_size=window)
        with pytest.raises(Exception, match=f"attribute local_window_size: got {window}, expected -1, or 1"):
            op_model.session(proto)
    with pytest.raises(Exception, match=r"SinkGroup.* input head_sink: got shape \[3\], expected \[4\]"):
        op_model.session(model(4, 2, 16, attention.SINK)).run(
            None, f | {"head_sink": np.zeros(3, np.float32)}
        )


def test_fewer_pairs_than_half_a_head_are_rotated() -> None:
    f = feeds(np.random.default_rng(1), 1, 7, 20, 2, 1, 64, pairs=16)
    y, key, _ = op_model.session(model(2, 1, 64)).run(None, f)
    want, bound = expected(f, 2, 1)
    assert (np.abs(y - want) <= bound).all()
    np.testing.assert_array_equal(key[0, 0, 20:, 32:], f["query"][0, :, 2 * 64 + 32 : 3 * 64])


@pytest.mark.parametrize("length", [1, 9, 60])
def test_a_cache_that_grows_in_place(length: int) -> None:
    """As onnxruntime-genai binds it: one buffer of the greatest length, in and out, garbage behind what is in it."""
    f = feeds(np.random.default_rng(2), 1, length, 90, 4, 2, 32)
    want = op_model.session(model(4, 2, 32)).run(None, f)
    session = op_model.session(model(4, 2, 32), threads=2)
    binding = session.io_binding()
    shared = {}
    for name in ("key", "value"):
        buffer = np.full((1, 2, 700, 32), np.nan, np.float32)
        buffer[:, :, :90] = f[f"past_{name}"]
        shared[name] = ort.OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(f"past_{name}", shared[name])
        binding.bind_ortvalue_output(name, shared[name])
    for name in f.keys() - {"past_key", "past_value"}:
        binding.bind_cpu_input(name, f[name])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[-1], want[0])  # in the order of binding
    for index, name in enumerate(("key", "value"), 1):
        got = shared[name].numpy()
        np.testing.assert_array_equal(got[:, :, : 90 + length], want[index])
        assert np.isnan(got[:, :, 90 + length :]).all(), "nothing is written behind it"


def test_a_cache_longer_than_what_is_in_it() -> None:
    """Not in place: what is behind the new positions is zero, as in onnxruntime."""
    f = feeds(np.random.default_rng(3), 1, 3, 50, 2, 2, 16)
    f["seqlens_k"] -= 20
    f["total_sequence_length"] -= 20
    for library in (True, False):
        y, key, value = op_model.session(model(2, 2, 16), library=library).run(None, f)
        assert key.shape == value.shape == (1, 2, 50, 16)
        assert (key[:, :, 33:] == 0).all() and (key[:, :, 30:33] != 0).any()
        want, bound = expected(f, 2, 2)
        assert (np.abs(y - want) <= bound).all()


def test_threads_give_the_same_bits() -> None:
    for length, past in ((1, 1100), (300, 0)):
        f = feeds(np.random.default_rng(4), 2, length, past, 4, 2, 64)
        runs = [op_model.session(model(4, 2, 64), threads=threads).run(None, f) for threads in (1, 2, 4)]
        for other in runs[1:]:
            for first, second in zip(runs[0], other, strict=True):
                np.testing.assert_array_equal(first, second)


def test_nan_stays_in_the_rows_that_see_it() -> None:
    f = feeds(np.random.default_rng(5), 1, 40, 0, 2, 2, 16)
    f["query"][0, 25, 2 * 16] = np.nan  # of the first head's key
    y, _, _ = op_model.session(model(2, 2, 16)).run(None, f)
    assert np.isfinite(y[0, :25]).all() and np.isnan(y[0, 25:, :16]).all() and np.isfinite(y[0, :, 16:]).all()


def test_large_scores() -> None:
    """One key outweighs the others by more than a float's exponent."""
    f = feeds(np.random.default_rng(6), 1, 1, 200, 1, 1, 16)
    f["past_key"] *= 100
    y, _, _ = op_model.session(model(1, 1, 16, scale=50.0)).run(None, f)
    want, _ = expected(f, 1, 1, scale=50.0)
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-3)


BAD = [
    ({"num_heads": 5}, {}, "attribute num_heads: got 5, expected a multiple of kv_num_heads, 2"),
    ({"num_heads": None}, {}, "attribute num_heads is missing"),
    ({"kv_num_heads": 0}, {}, "attribute kv_num_heads: got 0"),
    ({"scale": "x"}, {}, "attribute scale: .*type"),
    (
        {},
        {"query": np.zeros((1, 2, 120), np.float32)},
        r"input query: got shape \[1,2,120\], expected \[batch, length, 8 heads",
    ),
    (
        {},
        {"past_value": np.zeros((1, 2, 9, 16), np.float32)},
        r"input past_value: got shape \[1,2,9,16\], expected \[1,2,10,16\]",
    ),
    ({}, {"seqlens_k": np.array([40], np.int32)}, "input seqlens_k: got 40, expected at least 1"),
    ({}, {"seqlens_k": np.array([0], np.int32)}, "input seqlens_k: got 0, expected at least 1"),
    ({}, {"seqlens_k": np.array([11, 11], np.int32)}, r"input seqlens_k: got shape \[2\], expected \[1\]"),
    (
        {},
        {"total_sequence_length": np.array([1], np.int32)},
        "input total_sequence_length: got 1, expected the length, 2",
    ),
    (
        {},
        {"total_sequence_length": np.array([5000], np.int32)},
        "input cos_cache: got shape .*, expected at least 5000",
    ),
    (
        {},
        {"sin_cache": np.zeros((1200, 4), np.float32)},
        r"input sin_cache: got shape \[1200,4\], expected \[1200,8\]",
    ),
]


@pytest.mark.parametrize(("attributes", "inputs", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_nodes_and_inputs(attributes: dict[str, Any], inputs: Arrays, message: str) -> None:
    values = {"num_heads": 4, "kv_num_heads": 2} | attributes
    f = feeds(np.random.default_rng(7), 1, 2, 10, 4, 2, 16) | inputs
    proto = model(4, 2, 16, **values)
    with pytest.raises(Exception, match=f"GroupQueryAttention 'node': {message}"):
        op_model.session(proto).run(None, f)


@settings(max_examples=300, deadline=None)
@given(
    shape=st.tuples(
        st.integers(0, 2), st.integers(0, 70), st.integers(0, 90), st.integers(1, 6), st.integers(1, 3)
    ),
    lengths=st.lists(st.integers(-3, 200), min_size=1, max_size=3),
    total=st.integers(-3, 200),
    seed=st.integers(0, 9),
    window=st.sampled_from([-1, 1, 2, 50, 64, 2**62]),
)
def test_fuzz(shape: tuple[int, ...], lengths: list[int], total: int, seed: int, window: int) -> None:
    """Whatever lengths are claimed: an error of one line or finite rows; never memory that is not there."""
    batch, length, past, heads, kv_heads = shape
    f = feeds(np.random.default_rng(seed), batch, length, past, heads * kv_heads, kv_heads, 16)
    f["seqlens_k"] = np.resize(np.array(lengths, np.int32), batch if seed else len(lengths))
    f["total_sequence_length"] = np.array([total], np.int32)
    f["head_sink"] = np.linspace(-2, 2, heads * kv_heads, dtype=np.float32)
    try:
        proto = model(heads * kv_heads, kv_heads, 16, attention.SINK, local_window_size=window)
        y, _, _ = op_model.session(proto).run(None, f)
    except Exception as error:
        assert "GroupQueryAttention" in str(error), error
        return
    assert y.shape == (batch, length, heads * kv_heads * 16) and np.isfinite(y).all()


def test_the_file_is_valid() -> None:
    onnx.checker.check_model(model(4, 2, 16), full_check=True)


def test_a_kernel_of_less_is_chosen_as_on_an_older_machine() -> None:
    """The three give different bits in some last places, or they would be one."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import numpy as np, op_model, test_attention as t;"
        "f = t.feeds(np.random.default_rng(0), 1, 60, 0, 4, 2, 64);"
        "print(op_model.session(t.model(4, 2, 64)).run(None, f)[0].tobytes().hex())"
    )
    folders = [str(Path(file).parent) for file in (__file__, op_model.__file__)]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, *folders],
            env={**os.environ, "MXORT_KERNEL": kernel},
            check=True,
            capture_output=True,
        ).stdout
        for kernel in ("avx2", "portable")
    }
    assert len(outputs) == 2


def test_shapes_of_outputs_that_the_model_does_not_declare() -> None:
    """onnxruntime-genai 0.18 dies of logits whose rank nobody knows."""
    proto = model(4, 2, 32)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    y, key, _ = op_model.session(proto).get_outputs()
    assert y.shape[0] == "b" and y.shape[1] == "s" and len(y.shape) == 3
    assert key.shape[:2] == ["b", 2] and key.shape[3] == 32
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = (4 + 2 * 2) * 32
    assert op_model.session(proto).get_outputs()[0].shape == ["b", "s", 4 * 32]
