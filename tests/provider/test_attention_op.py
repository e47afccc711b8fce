"""The attention operators on the provider, beside onnxruntime's CPU kernels in float."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from simulated import run

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
TYPES = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}

# Of y: the CPU's and our float sums of at most 100 terms of about 1, and what a half type loses: inputs are exact in
# every type, so there remain weights and y, rounded to 11 or 8 bits each; keys and rotated queries where there is
# rotation, whose errors reach the scores (of a few units) and so the weights.
BOUND = {"float": 2e-5, "float16": 6e-3, "bfloat16": 5e-2}


def exact(rng: np.random.Generator, *shape: int) -> Array:
    """Numbers of seven bits: exact in every type."""
    return (rng.integers(-64, 65, shape) / 32).astype(np.float32)


def angles(positions: int, pairs: int) -> tuple[Array, Array]:
    a = np.arange(positions)[:, None] / 10.0 ** (np.arange(pairs) / pairs)
    return tuple((np.round(f(a) * 64) / 64).astype(np.float32) for f in (np.cos, np.sin))  # type: ignore[return-value]


def gqa(
    batch: int = 1,
    length: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 32,
    past: list[int] | None = None,
    capacity: int = 0,
    packed: bool = True,
    pairs: int = 0,
    bias: bool = False,
    sink: bool = False,
    ids: bool = False,
    **attributes: Any,
) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    past = past or [0] * batch
    total = max(past) + length
    shape = (batch, kv_heads, capacity or max(past), size)
    x: dict[str, Array] = {}
    if packed:
        x["query"] = exact(rng, batch, length, (heads + 2 * kv_heads) * size)
    else:
        x["query"] = exact(rng, batch, length, heads * size)
        x["key"], x["value"] = (exact(rng, batch, length, kv_heads * size) for _ in range(2))
    x["past_key"], x["past_value"] = exact(rng, *shape), exact(rng, *shape)
    x["seqlens_k"] = np.array([p + length - 1 for p in past], np.int32)
    x["total_sequence_length"] = np.array([total], np.int32)
    if pairs:
        x["cos_cache"], x["sin_cache"] = angles(total + 3, pairs)
        attributes["do_rotary"] = 1
    if ids:
        x["position_ids"] = np.array([[p + i for i in range(length)] for p in past], np.int64)
    if bias:
        x["attention_bias"] = exact(rng, 1, heads, length, total)
    if sink:
        x["head_sink"] = exact(rng, heads)
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"]
    names += ["cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink"]
    attributes |= {"num_heads": heads, "kv_num_heads": kv_heads}
    # Behind what is filled of a cache the CPU leaves what was there, or zeros.
    filled = [p + length for p in past]
    return model("GroupQueryAttention", MICROSOFT, names, x, 3, attributes) | {"filled": filled}


def own_gqa(**options: Any) -> dict[str, Any]:
    """mxort's, from com.microsoft's."""
    case = gqa(**options)
    x = case["inputs"]
    for name in ("cos_cache", "sin_cache"):
        x.setdefault(name, np.ones((1, 1), np.float32))
    names = [
        "query",
        "past_key",
        "past_value",
        "seqlens_k",
        "total_sequence_length",
        "cos_cache",
        "sin_cache",
    ]
    sink, window = "head_sink" in x, "local_window_size" in case["attributes"]
    names += ["head_sink"] if sink else []
    operator = ("Sink" if sink else "Window" if window else "") + "GroupQueryAttention"
    made = model(operator, "mxort", names, x, 3, case["attributes"])
    return made | {"filled": case["filled"]}


def cached_gqa(cache: str, **options: Any) -> dict[str, Any]:
    """mxort's of quantised caches, whose numbers are of about 1."""
    case = own_gqa(**options)
    rng, x, codes = np.random.default_rng(0), case["inputs"], case["inputs"]["past_key"].shape[-1]
    shape = x["past_key"].shape[:-1]
    for name in ("past_key", "past_value"):
        packed = (
            rng.integers(0, 0x7E, (*shape, codes))
            if cache == "MXFP8"
            else rng.integers(0, 256, (*shape, codes // 2))
        )
        scales = rng.integers(117, 120, (*shape, codes // 32)) + (0 if cache == "MXFP8" else 7)
        x[name] = np.concatenate([packed, scales], axis=-1).astype(np.uint8)
    made = model(case["operator"] + cache, "mxort", case["names"], x, 3, case["attributes"])
    return made | {"filled": case["filled"], "bytes": True}


def mha(
    batch: int = 2,
    length: int = 5,
    keys: int = 7,
    heads: int = 3,
    size: int = 32,
    value_size: int = 0,
    bias: bool = False,
    padding: Array | None = None,
    mask: tuple[int, int] | None = None,
    past: int = 0,
    present: bool = False,
    **attributes: Any,
) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    value_size = value_size or size
    x: dict[str, Array] = {
        "query": exact(rng, batch, length, heads * size),
        "key": exact(rng, batch, keys, heads * size),
        "value": exact(rng, batch, keys, heads * value_size),
    }
    if bias:
        x["bias"] = exact(rng, heads * (2 * size + value_size))
    if padding is not None:
        x["key_padding_mask"] = padding.astype(np.int32)
    if mask:
        x["attention_bias"] = exact(rng, *mask, length, past + keys)
    if past:
        x["past_key"] = exact(rng, batch, heads, past, size)
        x["past_value"] = exact(rng, batch, heads, past, value_size)
    names = ["query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key", "past_value"]
    attributes["num_heads"] = heads
    return model("MultiHeadAttention", MICROSOFT, names, x, 3 if present else 1, attributes)


def own_mha(mask: tuple[int, ...], **attributes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = {name: exact(rng, 2, n, 3, 48) for name, n in (("query", 70), ("key", 37), ("value", 37))}
    x["mask"] = exact(rng, *mask)
    return model("MultiHeadAttention", "mxort", list(x), x, 1, attributes)


def onnx_attention(
    length: int = 5, keys: int = 7, past: int = 0, flat: bool = False, mask: Any = None, **attributes: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    heads, kv_heads, size, value_size = 4, 2, 24, 40
    x: dict[str, Array] = {
        "Q": exact(rng, 2, heads, length, size),
        "K": exact(rng, 2, kv_heads, keys, size),
        "V": exact(rng, 2, kv_heads, keys, value_size),
    }
    if flat:
        x = {n: v.transpose(0, 2, 1, 3).reshape(2, v.shape[2], -1).copy() for n, v in x.items()}
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    if mask is not None:
        x["attn_mask"] = mask(rng, length, past + keys)
    if past:
        x["past_key"] = exact(rng, 2, kv_heads, past, size)
        x["past_value"] = exact(rng, 2, kv_heads, past, value_size)
    names = ["Q", "K", "V", "attn_mask", "past_key", "past_value"]
    return model("Attention", "", names, x, 3 if past else 1, attributes)


def rotary(shape: tuple[int, ...], pairs: int, one_id: bool = False, **attributes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    length = shape[1] if len(shape) == 3 else shape[2]
    ids = np.array([2]) if one_id else rng.permutation(shape[0] * length).reshape(shape[0], length)
    cos, sin = angles(shape[0] * length + 2, pairs)
    x = {
        "input": exact(rng, *shape),
        "position_ids": ids.astype(np.int64),
        "cos_cache": cos,
        "sin_cache": sin,
    }
    return model("RotaryEmbedding", MICROSOFT, list(x), x, 1, attributes)


def model(
    operator: str,
    domain: str,
    names: list[str],
    x: dict[str, Array],
    outputs: int,
    attributes: dict[str, Any],
) -> dict[str, Any]:
    return {"operator": operator, "domain": domain, "names": names, "inputs": x, "outputs": outputs,
            "attributes": attributes}  # fmt: skip


def bools(rng: np.random.Generator, *shape: int) -> Array:
    """A mask with a row of False."""
    mask = rng.random(shape) > 0.4
    mask[0] = False
    return mask


def resident(capacity: int, window: int, positions: int) -> int:
    """Positions that a cache which holds a window has of so many: room for capacity - window + 1 is made at once."""
    room = capacity - window + 1
    return positions if positions <= capacity else positions - room * -((capacity - positions) // room)


def windowed(capacity: int, window: int, **other: Any) -> dict[str, Any]:
    case = gqa(capacity=capacity, local_window_size=window, sliding_window_cache=1, **other)
    return case | {"filled": [resident(capacity, window, t) for t in case["filled"]]}


RAGGED = {"batch": 2, "past": [3, 9], "capacity": 16}
CASES: dict[str, dict[str, Any]] = {
    "gqa: first prompt": gqa(length=9, pairs=16),
    "gqa: a prompt of many rows": gqa(length=70, heads=6, kv_heads=2, size=64, pairs=32),
    "gqa: decode": gqa(**RAGGED, pairs=16),
    "gqa: decode, grown cache": gqa(past=[11], pairs=8, rotary_interleaved=1),
    "gqa: decode, keys apart": gqa(**RAGGED, packed=False, heads=3, kv_heads=1, size=128),
    "gqa: a prompt behind another": gqa(length=6, past=[12], capacity=20, pairs=16),
    "gqa: window": gqa(length=4, past=[20], local_window_size=5),
    "gqa: window, first prompt": gqa(length=12, local_window_size=5),
    "window cache: first prompt": windowed(16, 12, length=9, pairs=16),
    "window cache: a prompt longer than it": windowed(16, 12, length=40, pairs=16),
    "window cache: a prompt of many rows": windowed(32, 32, length=100, heads=6, size=64, pairs=32),
    "window cache: decode, with room": windowed(16, 12, past=[5], pairs=16),
    "window cache: decode, full": windowed(16, 16, past=[30], pairs=16),
    "window cache: decode, ragged": windowed(16, 12, batch=5, past=[20, 15, 16, 3, 19], pairs=16),
    "window cache: decode, larger than a turn": windowed(600, 577, past=[1300], sink=True, packed=False),
    "window cache: a prompt behind another": windowed(16, 12, length=6, past=[21], pairs=16),
    "window cache: one longer than it": windowed(16, 12, length=30, past=[21], pairs=16, softcap=3.0),
    "gqa: softcap, sink, scale": gqa(**RAGGED, softcap=3.0, sink=True, scale=0.5),
    "gqa: bias": gqa(length=5, bias=True),
    "gqa: bias behind a prompt": gqa(past=[8], bias=True),
    "gqa: smooth softmax": gqa(past=[8], smooth_softmax=1),
    "gqa: positions": gqa(length=3, past=[8], pairs=16, ids=True),
    "own gqa": own_gqa(**RAGGED, pairs=16),
    "own gqa: first prompt": own_gqa(length=9, softcap=2.0),
    "own gqa: window": own_gqa(**RAGGED, pairs=16, local_window_size=5),
    "own gqa: window, first prompt": own_gqa(length=70, pairs=16, local_window_size=20),
    "own gqa: sink": own_gqa(**RAGGED, pairs=16, sink=True),
    "own gqa: sink and window": own_gqa(length=6, past=[12], sink=True, local_window_size=7),
    "mxfp8: window": cached_gqa("MXFP8", **RAGGED, size=64, pairs=32, local_window_size=5),
    "mxfp4: sink and window": cached_gqa("MXFP4", length=6, past=[12], sink=True, local_window_size=7),
    "mxfp8: decode": cached_gqa("MXFP8", **RAGGED, size=64, pairs=32),
    "mxfp8: a prompt behind another": cached_gqa("MXFP8", length=6, past=[12], size=96),
    "mxfp4: decode": cached_gqa("MXFP4", **RAGGED, size=64, pairs=32, softcap=3.0),
    "mxfp4: first prompt": cached_gqa("MXFP4", length=70, capacity=80, size=32),
    "mha": mha(),
    "mha: many rows": mha(length=80, keys=90, size=64),
    "mha: other values": mha(value_size=64, scale=0.3),
    "mha: bias": mha(bias=True, keys=5),
    "mha: bias, other keys": mha(bias=True),
    "mha: lengths": mha(padding=np.array([3, 7])),
    "mha: padding": mha(padding=np.arange(14).reshape(2, 7) % 3 > 0),
    "mha: padding by row": mha(padding=np.arange(70).reshape(2, 5, 7) % 4 > 0, mask=(1, 3)),
    "mha: mask": mha(mask=(2, 1)),
    "mha: cache": mha(past=4, present=True, keys=5, unidirectional=1),
    "mha: keys are kept": mha(present=True, keys=5),
    "own mha": own_mha((2, 1, 1, 37), scale=0.125),
    "own mha: no mask": own_mha((1,)),
    "own mha: mask of positions": own_mha((70, 37), scale=0.125),
    "attention": onnx_attention(),
    "attention: flat, causal": onnx_attention(flat=True, is_causal=1, keys=5),
    "attention: many rows, causal": onnx_attention(length=70, keys=70, is_causal=1),
    "attention: cache": onnx_attention(past=3, is_causal=1, keys=5, softcap=2.0),
    "attention: mask": onnx_attention(mask=lambda rng, n, k: exact(rng, 2, 1, n, k), scale=0.25),
    "attention: bool mask": onnx_attention(mask=bools),
    "attention: bool mask, many rows": onnx_attention(length=70, mask=bools),
    "rotary": rotary((2, 3, 64), 16),
    "rotary: heads first": rotary((2, 3, 5, 48), 24, interleaved=1),
    "rotary: one position": rotary((2, 3, 64), 16, one_id=True),
    "rotary: a part": rotary((2, 3, 64), 8, num_heads=2, rotary_embedding_dim=16),
}  # fmt: skip


def proto(case: dict[str, Any], dtype: str) -> onnx.ModelProto:
    """Inputs and outputs in float; the operator in its type."""
    graph_in, nodes, used = [], [], []
    for name in case["names"]:
        value = case["inputs"].get(name)
        if value is None:
            used.append("")
            continue
        graph_in.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        )
        used.append(name)
        if value.dtype == np.float32 and dtype != "float":
            nodes.append(helper.make_node("Cast", [name], [name + "_t"], to=TYPES[dtype]))
            used[-1] = name + "_t"
    while not used[-1]:
        used.pop()
    outputs = [f"y{i}" for i in range(case["outputs"])]
    typed = outputs if dtype == "float" else [f"{name}_t" for name in outputs]
    nodes.append(
        helper.make_node(
            case["operator"], used, typed, domain=case["domain"], name="it", **case["attributes"]
        )
    )
    if dtype != "float":
        nodes += [helper.make_node("Cast", [f"{y}_t"], [y], to=TensorProto.FLOAT) for y in outputs]
    caches = TensorProto.UINT8 if case.get("bytes") else TensorProto.FLOAT
    graph_out = [
        helper.make_tensor_value_info(y, caches if i else TensorProto.FLOAT, None)
        for i, y in enumerate(outputs)
    ]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid("mxort", 1)]
    graph = helper.make_graph(nodes, "one", graph_in, graph_out)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def differences(got: list[Any], want: list[Any], filled: list[int] | None) -> list[float]:
    """The largest of each output; of caches, where they are filled."""
    worst = []
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape, (g.shape, w.shape)
        x, y = np.array(g, np.float64), np.array(w, np.float64)
        for b, count in enumerate(filled or []):
            if x.ndim == 4:
                x[b, :, count:] = y[b, :, count:] = 0
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        worst.append(float(np.where(same, 0, np.abs(x - y)).max(initial=0)))
    return worst


def compared(dtype: str) -> dict[str, Any]:
    """In the child: of every case, where the operator ran and how it differs from the CPU's, or what went wrong."""
    import gpu

    import mxort

    os.environ["MXORT_KERNEL"] = "portable"  # AVX-512 rounds queries over MXFP4 caches
    found: dict[str, dict[str, Any]] = {}
    with gpu.registered():
        for name, case in CASES.items():
            if case["domain"] == "mxort" and dtype != "float":
                continue
            try:
                opened = gpu.session(proto(case, dtype).SerializeToString())
                taken = case["operator"] in gpu.placement(opened).get(gpu.EP, [])
                got = opened.run(None, case["inputs"])
                del opened
                reference = proto(case, "float").SerializeToString()
                on_cpu = mxort.InferenceSession(reference, providers=["CPUExecutionProvider"])
                want = on_cpu.run(None, case["inputs"])
                found[name] = {"taken": taken, "worst": differences(got, want, case.get("filled"))}
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {gpu.message(error)[:300]}"}
    return {"found": found, "live": gpu.live()}


@pytest.mark.parametrize("dtype", list(TYPES))
def test_results_are_those_of_the_cpu(dtype: str) -> None:
    result: dict[str, Any] = run(compared, dtype)
    found = result["found"]
    assert {name: row for name, row in found.items() if "error" in row} == {}
    assert [name for name, row in found.items() if not row["taken"]] == []
    assert {name: row for name, row in found.items() if max(row["worst"]) > BOUND[dtype]} == {}
    assert result["live"] == {}


STEPS = 5


def decoded_from_a_graph(cache: str) -> dict[str, Any]:
    """In the child: decode steps over one cache, the first two run and recorded, the others replayed with other
    lengths on the device. The largest differences to results and caches of the CPU, and launches of the last three."""
    import gpu
    import onnxruntime as ort

    import mxort

    os.environ["MXORT_KERNEL"] = "portable"  # as above
    case = own_gqa(**RAGGED, size=64, pairs=32)
    if cache == "window":
        case = windowed(12, 9, batch=2, past=RAGGED["past"], size=64, pairs=32)
    elif cache:
        case = cached_gqa(cache, **RAGGED, size=64, pairs=32)
    x = dict(case["inputs"])
    rng, first = np.random.default_rng(3), x["seqlens_k"]
    x["cos_cache"], x["sin_cache"] = angles(RAGGED["capacity"], 32)
    x["total_sequence_length"] = np.array([RAGGED["capacity"]], np.int32)
    case["inputs"] = x
    serialized = proto(case, "float").SerializeToString()
    on_cpu = mxort.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    worst, before = [], 0
    with gpu.registered():
        opened = gpu.session(serialized, options={"graph_capture": 1})
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(value, "gpu", 0, gpu.VENDOR)
            for name, value in x.items()
            if name != "total_sequence_length"
        }
        y = ort.OrtValue.ortvalue_from_shape_and_type([2, 1, 4 * 64], np.float32, "gpu", 0, gpu.VENDOR)
        binding = opened.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_cpu_input("total_sequence_length", x["total_sequence_length"])
        for output, value in zip(
            ["y0", "y1", "y2"], [y, values["past_key"], values["past_value"]], strict=True
        ):
            binding.bind_ortvalue_output(output, value)
        for step in range(STEPS):
            x["query"], x["seqlens_k"] = exact(rng, 2, 1, 8 * 64), (first + step).astype(np.int32)
            values["query"].update_inplace(x["query"])
            values["seqlens_k"].update_inplace(x["seqlens_k"])
            if step == STEPS - 3:
                before = gpu.sim.counters()["launches"]
            opened.run_with_iobinding(binding)
            want, x["past_key"], x["past_value"] = on_cpu.run(None, x)
            worst.append(float(np.abs(y.numpy() - want).max()))
        caches = [values["past_key"].numpy(), values["past_value"].numpy()]
        filled = [resident(12, 9, t) if cache == "window" else t for t in (first + STEPS).tolist()]
        worst += differences(caches, [x["past_key"], x["past_value"]], filled)
        launches = gpu.sim.counters()["launches"] - before
        del opened, binding, values, y
    return {"worst": worst, "launches": launches}


@pytest.mark.parametrize("cache", ["", "MXFP8", "MXFP4", "window"])
def test_a_captured_step_serves_all_lengths(cache: str) -> None:
    result = run(decoded_from_a_graph, cache)
    assert max(result["worst"]) <= BOUND["float"]
    # The caches, as far as they are filled; with rotation the CPU's keys differ in their last bit.
    assert max(result["worst"][STEPS:]) <= (1e-6 if cache == "window" else 0)
    # Append and attention, and what moves a window; one range of keys needs no merging.
    assert result["launches"] == 3 * (3 if cache == "window" else 2)
