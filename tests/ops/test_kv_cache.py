"""GroupQueryAttention with caches in MXFP8 and MXFP4: the bytes of the format's oracle, the attention over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import op_model
from mxort.converters import attention, kv_cache
from mxort.formats import dequantize, pack_codes
from mxort.scales import quantize_blocks
from ops import test_attention as floats

CACHES = list(kv_cache.CACHES)
Arrays = dict[str, np.ndarray]


def packed(x: np.ndarray, cache: str) -> np.ndarray:
    """float32 [..., size] -> uint8 [..., bytes] by numpy and the rules of mxort/scales.py."""
    fmt = kv_cache.CACHES[cache]
    codes, scales = quantize_blocks(
        x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // 32, 32), fmt, "even"
    )
    rows = pack_codes(codes, fmt).reshape(*x.shape[:-1], x.shape[-1] * fmt.bits // 8)
    return np.concatenate([rows, scales], axis=-1)


def unpacked(rows: np.ndarray, cache: str) -> np.ndarray:
    """uint8 [..., bytes] -> float32 [..., size]."""
    fmt = kv_cache.CACHES[cache]
    blocks = rows.shape[-1] // (32 * fmt.bits // 8 + 1)
    flat = rows.reshape(-1, rows.shape[-1])
    codes, scales = np.split(flat, [flat.shape[-1] - blocks], axis=1)
    x = dequantize(np.ascontiguousarray(codes), np.ascontiguousarray(scales), blocks * 32, fmt)
    return x.reshape(*rows.shape[:-1], blocks * 32)


def model(
    cache: str, heads: int, kv_heads: int, size: int, operator: str = attention.NAME, **attributes: Any
) -> onnx.ModelProto:
    proto = floats.model(heads, kv_heads, size, operator, **attributes)
    nbytes = kv_cache.row_bytes(size, kv_cache.CACHES[cache])
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in ("past_key", "past_value", "key", "value"):
            value.type.tensor_type.elem_type = TensorProto.UINT8
            value.type.tensor_type.shape.dim[3].dim_value = nbytes
    proto.graph.node[0].op_type = kv_cache.operator(cache, operator)
    del proto.functions[:]
    proto.functions.extend(kv_cache.functions_of(cache, 21, operator))
    return proto


def feeds(cache: str, seed: int, *shape: int, rotate: bool = False) -> Arrays:
    f = floats.feeds(np.random.default_rng(seed), *shape)
    if not rotate:  # rotated by nothing, so that the bytes do not depend on how a rotation was rounded
        f["cos_cache"][:], f["sin_cache"][:] = 1, 0
    return f | {name: packed(f[name], cache) for name in ("past_key", "past_value")}


def as_floats(f: Arrays, cache: str, heads: int, kv_heads: int, *, rounded: bool) -> Arrays:
    """The same with float caches; the new keys and values as the cache will hold them, if `rounded`."""
    f = f | {name: unpacked(f[name], cache) for name in ("past_key", "past_value")}
    if rounded:
        batch, length, width = f["query"].shape
        query = f["query"].reshape(batch, length, heads + 2 * kv_heads, -1).copy()
        query[:, :, heads:] = unpacked(packed(query[:, :, heads:], cache), cache)
        f["query"] = query.reshape(batch, length, width)
    return f


def new_rows(f: Arrays, heads: int, kv_heads: int, past: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys, values) [batch, kv_heads, length, size] of the new positions, rotated as expected() does."""
    batch, length, width = f["query"].shape
    x = f["query"].astype(np.float64).reshape(batch, length, -1, width // (heads + 2 * kv_heads))
    _, keys, values = np.split(x, [heads, heads + kv_heads], axis=2)
    keys = np.stack([floats.rotated(k, past, f, False) for k in keys])
    return keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)


CASES = [
    # batch, length, past, heads, kv_heads, head size, attributes
    (1, 1, 0, 9, 3, 64, {}),
    (2, 1, 63, 4, 2, 32, {}),
    (1, 1, 513, 9, 3, 64, {}),
    (2, 1, 1100, 2, 1, 128, {}),
    (1, 5, 70, 4, 4, 32, {}),
    (1, 1, 90, 16, 2, 32, {}),
    (1, 17, 100, 6, 1, 96, {"scale": 0.3}),
    (1, 33, 600, 2, 2, 64, {}),
    (1, 130, 0, 6, 3, 64, {}),
    (1, 70, 333, 4, 2, 64, {"softcap": 5.0}),
]


KERNELS = [("mxfp4", "avx512"), *((cache, kernel) for cache in CACHES for kernel in floats.KERNELS)]
"""With MXFP4 few rows are integers on AVX-512, whose products have two forms: with VNNI, and without."""


@pytest.mark.parametrize(("cache", "kernel"), KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle(monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...], cache: str, kernel: str) -> None:
    batch, length, past, heads, kv_heads, size, attributes = case
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    f = feeds(cache, length + past, batch, length, past, heads, kv_heads, size)
    y, key, value = op_model.session(model(cache, heads, kv_heads, size, **attributes)).run(None, f)
    want, bound = floats.expected(
        as_floats(f, cache, heads, kv_heads, rounded=True), heads, kv_heads, **attributes
    )
    assert (np.abs(y - want) <= bound).all(), np.abs((y - want) / bound).max()
    for got, old, new in zip(
        (key, value), ("past_key", "past_value"), new_rows(f, heads, kv_heads, past), strict=True
    ):
        np.testing.assert_array_equal(got[:, :, :past], f[old])
        np.testing.assert_array_equal(got[:, :, past:], packed(new, cache))


@pytest.mark.parametrize("kernel", ["avx512_vnni", "avx512", "portable"])
@pytest.mark.parametrize("operator", [attention.WINDOW, attention.SINK])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("length", [1, 40])
def test_windows_and_sinks(
    monkeypatch: pytest.MonkeyPatch, length: int, cache: str, operator: str, kernel: str
) -> None:
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    f = feeds(cache, 9, 1, length, 700, 6, 2, 64)
    if operator == attention.SINK:
        f["head_sink"] = np.array([0, -np.inf, 3, -2, 8, 1], np.float32)
    y = op_model.session(model(cache, 6, 2, 64, operator, local_window_size=150)).run(None, f)[0]
    want, bound = floats.expected(as_floats(f, cache, 6, 2, rounded=True), 6, 2, local_window_size=150)
    assert (np.abs(y - want) <= bound).all(), np.abs((y - want) / bound).max()


def words_bound(f: Arrays, heads: int, kv_heads: int, past: int) -> np.ndarray:
    """Of one new position of an MXFP4 cache, [heads, size], relative to floats.expected: a row of q is rounded by 2^-16
    of its largest magnitude, so a score errs by that times the sum of the key's magnitudes, and the weights relatively
    by twice that; a weight times its block's scale is rounded by 2^-16 of the largest there is, and adds that times the
    magnitude of its code."""
    size = f["query"].shape[-1] // (heads + 2 * kv_heads)
    x = f["query"].reshape(-1, size).astype(np.float64)
    out = np.empty((heads, size))
    for h in range(heads):
        g = h // (heads // kv_heads)
        keys = np.concatenate([f["past_key"][0, g, :past], x[None, heads + g]]).astype(np.float64)
        rows = np.concatenate([f["past_value"][0, g, :past], x[None, heads + kv_heads + g]])
        q, values = x[h] / np.sqrt(size), rows.astype(np.float64)
        weights = np.exp(keys @ q - (keys @ q).max())
        weights /= weights.sum()
        packed_rows = packed(values.astype(np.float32), "mxfp4")
        scales = 2.0 ** (packed_rows[:, size // 2 :].astype(np.float64) - 127)
        codes = np.abs(values) / np.repeat(scales, 32, axis=1)
        rounding = np.repeat((weights[:, None] * scales).max(axis=0), 32) * codes.sum(axis=0)
        score = np.abs(keys).sum(axis=1).max() * np.abs(q).max()
        out[h] = 2.0**-16 * (rounding + 2 * score * np.abs(values).max())
    return out


@pytest.mark.parametrize("kernel", ["avx512_vnni", "avx512", "avx2"])
@pytest.mark.parametrize(
    ("query", "keys", "values"),
    [
        (1, 1, 1),
        (0, 1, 1),
        (1e-3, 300, 1),
        (2.0**-70, 2.0**70, 1),
        (1, 1, 2.0**-80),
        (1, 1, 2.0**70),
        (1, 0, 0),
    ],
)
def test_numbers_of_any_size(
    monkeypatch: pytest.MonkeyPatch, query: float, keys: float, values: float, kernel: str
) -> None:
    """Integers where they can be, floats where not: the same within what integers round."""
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    size, past = 64, 200
    f = floats.feeds(np.random.default_rng(11), 1, 1, past, 6, 2, size)
    f["cos_cache"][:], f["sin_cache"][:] = 1, 0
    heads = f["query"].reshape(10, size)
    heads[:6] *= query
    heads[6:8] *= keys
    heads[8:] *= values
    f["past_key"] *= keys
    f["past_value"] *= values
    f["past_value"][..., :32, :] *= 2.0**-9  # blocks far apart
    f = f | {name: packed(f[name], "mxfp4") for name in ("past_key", "past_value")}
    y = op_model.session(model("mxfp4", 6, 2, size)).run(None, f)[0].reshape(6, size)
    exact = as_floats(f, "mxfp4", 6, 2, rounded=True)
    want, bound = (x.reshape(6, size) for x in floats.expected(exact, 6, 2))
    assert (np.abs(y - want) <= bound + words_bound(exact, 6, 2, past)).all()


@pytest.mark.parametrize("kernel", ["avx512_vnni", "avx512", "avx2"])
def test_a_scale_of_nan_is_seen(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    f = feeds("mxfp4", 12, 1, 1, 100, 2, 2, 64)
    f["past_key"][0, 0, 70, -1] = 255  # the first head's weights
    f["past_value"][0, 1, 3, -2] = 255  # the second's first block of columns
    y = op_model.session(model("mxfp4", 2, 2, 64)).run(None, f)[0].reshape(2, 64)
    assert np.isnan(y[0]).all() and np.isnan(y[1, :32]).all() and np.isfinite(y[1, 32:]).all()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("length", "past"), [(1, 40), (7, 0), (7, 40)])
def test_the_function(cache: str, length: int, past: int) -> None:
    """The same bytes; its attention sees the new positions before they are rounded."""
    proto = model(cache, 4, 2, 64)
    onnx.checker.check_model(proto, full_check=True)
    f = feeds(cache, 3, 1, length, past, 4, 2, 64)
    y, key, value = op_model.session(proto, library=False).run(None, f)
    ours = op_model.session(proto).run(None, f)
    np.testing.assert_array_equal(key, ours[1])
    np.testing.assert_array_equal(value, ours[2])
    want, bound = floats.expected(as_floats(f, cache, 4, 2, rounded=False), 4, 2)
    assert (np.abs(y - want) <= 2 * bound).all()


@pytest.mark.parametrize("cache", CACHES)
def test_keys_are_rotated_before_they_are_rounded(cache: str) -> None:
    f = feeds(cache, 5, 1, 9, 30, 2, 1, 64, rotate=True)
    _, key, value = op_model.session(model(cache, 2, 1, 64)).run(None, f)
    keys, values = new_rows(f, 2, 1, 30)
    np.testing.assert_array_equal(value[:, :, 30:], packed(values, cache))
    differ = key[:, :, 30:] != packed(keys, cache)  # where a rotation rounded to float falls across a tie
    assert differ.mean() < 0.01
    step = 2.0 ** -kv_cache.CACHES[cache].mantissa_bits
    np.testing.assert_allclose(unpacked(key[:, :, 30:], cache), keys, rtol=step, atol=step)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("length", [1, 9, 60])
def test_a_cache_that_grows_in_place(cache: str, length: int) -> None:
    """One buffer of the greatest length, in and out, garbage behind what is in it; the same bits with two threads."""
    f = feeds(cache, 2, 1, length, 90, 4, 2, 32)
    proto = model(cache, 4, 2, 32)
    want = op_model.session(proto).run(None, f)
    for threads in (1, 2):
        session = op_model.session(proto, threads=threads)
        bound = session.io_binding()
        buffers = {}
        for name in ("past_key", "past_value"):
            room = np.full((1, 2, 200, f[name].shape[-1]), 77, np.uint8)
            room[:, :, :90] = f[name]
            buffers[name] = ort.OrtValue.ortvalue_from_numpy(room)
            bound.bind_ortvalue_input(name, buffers[name])
            bound.bind_ortvalue_output(name.removeprefix("past_"), buffers[name])
        for name in f.keys() - buffers.keys():
            bound.bind_cpu_input(name, f[name])
        bound.bind_output("y")
        session.run_with_iobinding(bound)
        np.testing.assert_array_equal(_y(bound), want[0])
        for name, made in zip(buffers, want[1:], strict=True):
            np.testing.assert_array_equal(buffers[name].numpy()[:, :, : 90 + length], made)
            assert (buffers[name].numpy()[:, :, 90 + length :] == 77).all()


def _y(bound: ort.IOBinding) -> np.ndarray:
    (y,) = (o.numpy() for o in bound.get_outputs() if o.element_type() == TensorProto.FLOAT)
    return y


def _run(name: str, cache: str, x: np.ndarray, reference: bool) -> np.ndarray:
    kind = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    graph = helper.make_graph(
        [helper.make_node(name + cache.upper(), ["x"], ["y"], domain="mxort")],
        "one_node",
        [helper.make_tensor_value_info("x", kind[x.dtype], [None] * x.ndim)],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.UINT8 if name == "Encode" else TensorProto.FLOAT, [None] * x.ndim
            )
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("mxort", 1)]
    functions = [p for p in kv_cache.functions_of(cache, 21) if p.name == name + cache.upper()]
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    if reference:
        return np.asarray(onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0])
    return np.asarray(op_model.session(proto, library=False).run(None, {"x": x})[0])


def _hard_blocks() -> np.ndarray:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((400, 32)) * 2.0 ** rng.integers(-20, 20, (400, 1))
    ties = rng.integers(-512, 512, (200, 32)) / 2.0 ** rng.integers(0, 10, (200, 1))
    powers = 2.0 ** rng.integers(-30, 3, (100, 32)) * rng.choice([-1, 1], (100, 32))
    edges = np.zeros((6, 32))
    edges[1, 3], edges[2, 4], edges[3, :] = 1e-45, 3e-39, 2.0**-126
    edges[4, :2] = 2.5e38, -2.5e38
    edges[5, 0] = 2 - 2.0**-5
    return np.concatenate([normal, ties, powers, edges]).astype(np.float32)


@pytest.mark.parametrize("reference", [False, True], ids=["onnxruntime", "onnx.reference"])
@pytest.mark.parametrize("cache", CACHES)
def test_encoding_and_decoding_in_standard_operators(cache: str, reference: bool) -> None:
    x = _hard_blocks()
    rows = _run("Encode", cache, x, reference)
    want = packed(x, cache)
    np.testing.assert_array_equal(
        unpacked(rows, cache), unpacked(want, cache)
    )  # a zero may have lost its sign
    nonzero = unpacked(want, cache).any(axis=-1)
    np.testing.assert_array_equal(rows[nonzero][:, -1], want[nonzero][:, -1])
    np.testing.assert_array_equal(_run("Decode", cache, want, reference), unpacked(want, cache))
    np.testing.assert_array_equal(
        _run("Encode", cache, unpacked(want, cache), reference)[nonzero], rows[nonzero]
    )


@pytest.mark.parametrize("cache", CACHES)
def test_every_code_is_decoded(cache: str) -> None:
    """By the function, and by the kernels: a key of zeros makes all weights equal, so that y is the values' mean."""
    fmt = kv_cache.CACHES[cache]
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    codes = codes[np.isfinite(fmt.values)]
    codes = np.concatenate([codes, np.zeros(-len(codes) % 32, np.uint8)]).reshape(-1, 32)
    rows = np.concatenate([pack_codes(codes, fmt), np.full((len(codes), 1), 125, np.uint8)], axis=1)
    np.testing.assert_array_equal(_run("Decode", cache, rows, False), unpacked(rows, cache))
    for row in rows:
        f = feeds(cache, 0, 1, 1, 1, 1, 1, 32)
        f["query"][:] = 0
        f["past_value"][0, 0, 0] = row
        (y, *_) = op_model.session(model(cache, 1, 1, 32)).run(None, f)
        np.testing.assert_allclose(y[0, 0], unpacked(row, cache) / 2, rtol=2.0**-22)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_makes_its_block_nan(cache: str, value: float) -> None:
    f = feeds(cache, 1, 1, 1, 5, 2, 1, 64)
    f["query"][0, 0, -1] = value  # of the value's second block
    for library in (True, False):
        _, key, made = op_model.session(model(cache, 2, 1, 64), library=library).run(None, f)
        assert np.isnan(unpacked(made[0, 0, 5], cache)[32:]).all()
        assert (
            np.isfinite(unpacked(made[0, 0, 5], cache)[:32]).all() and np.isfinite(unpacked(key, cache)).all()
        )


def test_bad_input() -> None:
    f = feeds("mxfp8", 0, 1, 1, 5, 2, 1, 64)
    f["past_key"] = f["past_key"][..., :64]
    proto = model("mxfp8", 2, 1, 64)
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=r"GroupQueryAttentionMXFP8 'node': input past_key: got shape .*66"):
        op_model.session(proto).run(None, f)
    f = feeds("mxfp4", 0, 1, 1, 5, 2, 1, 32)
    f["query"] = np.zeros((1, 1, 4 * 48), np.float32)
    proto = model("mxfp4", 2, 1, 32)
    with pytest.raises(Exception, match="4 heads of a multiple of 32"):
        op_model.session(proto).run(None, f)
