"""GatherMXFP4, MXFP6, MXFP8 and MXINT8 in ONNX Runtime, in their functions and in onnx.reference: the same bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import op_model
from mxort.converters import functions
from mxort.formats import WEIGHT_FORMATS, pack_codes
from oracle import Case, random_case

HALF_TYPES = {np.float16: TensorProto.FLOAT16, ml_dtypes.bfloat16: TensorProto.BFLOAT16}
INDEX_TYPES = {np.int64: TensorProto.INT64, np.int32: TensorProto.INT32}


each_format = pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)


def expected(case: Case) -> np.ndarray:
    """float32 [V, K]: element times scale and that times the multiplier, each rounded once, by way of double."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = case.weights[:, : case.K].astype(np.float32).astype(np.float64)
        return (rows * case.column_scale[:, None]).astype(np.float32)


def model(
    case: Case,
    *,
    index_type: int = TensorProto.INT64,
    opset: int = 21,
    dims: tuple[object, ...] | None = ("batch", "sequence"),
    **changes: object,
) -> onnx.ModelProto:
    """indices [*dims] -> Y. `changes` replaces the attribute K (None: leaves it out) or inputs by name."""
    tensors = {"B": case.codes, "B_scale": case.scales, "multiplier": case.column_scale}
    k = changes.pop("K", case.K)
    tensors |= changes
    operator, own = functions.operator_of(case.weight_format, gather=True)
    node = helper.make_node(operator, ["indices", *tensors], ["Y"], name="node", domain="mxort", **own)
    if k is not None:
        node.attribute.append(helper.make_attribute("K", k))
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("indices", index_type, dims)],
        [
            helper.make_tensor_value_info(
                "Y", TensorProto.FLOAT, None if dims is None else [None] * (len(dims) + 1)
            )
        ],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mxort", 1)]
    function = functions.function(operator, opset)
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def run(proto: onnx.ModelProto, indices: np.ndarray, **options: object) -> np.ndarray:
    return op_model.session(proto, **options).run(None, {"indices": indices})[0]


@pytest.mark.parametrize("numpy_type", INDEX_TYPES)
@pytest.mark.parametrize("k", [1, 31, 32, 33, 100, 576])
@each_format
def test_oracle(weight_format: str, k: int, numpy_type: type) -> None:
    rng = np.random.default_rng(k)
    case = random_case(rng, 50, k, weight_format=weight_format)
    proto = model(case, index_type=INDEX_TYPES[numpy_type])
    indices = rng.integers(-50, 50, (3, 70)).astype(numpy_type)
    np.testing.assert_array_equal(run(proto, indices), expected(case)[indices])


@each_format
def test_every_code_with_every_scale(weight_format: str) -> None:
    """Row s: scale s, all codes (in 4 bits in all pairs). Subnormals, infinity at the largest, NaN for scale 255."""
    fmt = WEIGHT_FORMATS[weight_format]
    every = np.arange(256, dtype=np.uint8)
    packed = every if fmt.bits == 4 else pack_codes(every[: 1 << fmt.bits], fmt)
    k = packed.size * 8 // fmt.bits
    scales = np.repeat(every[:, None], k // 32, axis=1)
    multiplier = np.linspace(0.5, 2, 256, dtype=np.float32)
    case = Case(np.tile(packed, (256, 1)), scales, k, column_scale=multiplier, weight_format=weight_format)
    want = expected(case)
    assert np.isnan(want[255]).all() and np.isinf(want[254]).any() and (np.abs(want[1]) < 2.0**-126).any()
    got = run(model(case), np.arange(256)[None])
    np.testing.assert_array_equal(got, want[None])
    np.testing.assert_array_equal(run(model(case), np.arange(256)[None], library=False), want[None])


@pytest.mark.parametrize("opset", [15, 18, 21, 22])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 1, 3), (0,), (2, 0)])
@each_format
def test_library_function_and_reference_agree(weight_format: str, shape: tuple[int, ...], opset: int) -> None:
    rng = np.random.default_rng(opset)
    case = random_case(rng, 24, 100, weight_format=weight_format)
    proto = model(case, opset=opset, dims=tuple(f"d{i}" for i in range(len(shape))))
    onnx.checker.check_model(proto, full_check=True)
    indices = rng.integers(-24, 24, shape)
    want = expected(case)[indices]
    for y in (
        run(proto, indices),
        run(proto, indices, library=False),
        onnx.reference.ReferenceEvaluator(proto).run(None, {"indices": indices})[0],
    ):
        assert y.shape == (*shape, 100)
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("half", HALF_TYPES)
@pytest.mark.parametrize("numpy_type", INDEX_TYPES)
def test_rows_have_the_type_of_the_multiplier(half: type, numpy_type: type) -> None:
    """As tools that make models float16 leave them: products in float, rounded once more."""
    rng = np.random.default_rng(2)
    case = random_case(rng, 50, 100)
    case.column_scale = case.column_scale.astype(half).astype(np.float32)
    proto = model(case, index_type=INDEX_TYPES[numpy_type], multiplier=case.column_scale.astype(half))
    # Python cannot be handed a bfloat16.
    proto.graph.node.append(helper.make_node("Cast", ["Y"], ["wide"], to=TensorProto.FLOAT))
    proto.graph.output[0].name = "wide"
    indices = rng.integers(-50, 50, (3, 7)).astype(numpy_type)
    want = expected(case)[indices].astype(half).astype(np.float32)
    np.testing.assert_array_equal(run(proto, indices), want)
    np.testing.assert_array_equal(run(proto, indices, library=False), want)


def test_the_library_is_what_runs() -> None:
    """Its message about a bad index is not that of ONNX Runtime's Gather, which the function has."""
    case = random_case(np.random.default_rng(0), 5, 32)
    with pytest.raises(Exception, match="index 1: got 5, expected -5 to 4"):
        run(model(case), np.array([[0, 5]]))
    with pytest.raises(Exception, match="out of data bounds"):
        run(model(case), np.array([[0, 5]]), library=False)


def test_threads_give_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    case = random_case(rng, 300, 576)
    indices = rng.integers(-300, 300, (4, 257))
    np.testing.assert_array_equal(run(model(case), indices, threads=4), expected(case)[indices])


@pytest.mark.parametrize(
    ("dims", "want"),
    [
        (("batch", "seq"), ["batch", "seq", 40]),
        ((2, "seq"), [2, "seq", 40]),
        ((3,), [3, 40]),
        ((None,), None),
    ],
)
def test_shapes_are_inferred(dims: tuple[object, ...], want: list[object] | None) -> None:
    got = (
        op_model.session(model(random_case(np.random.default_rng(2), 7, 40), dims=dims))
        .get_outputs()[0]
        .shape
    )
    assert got == want if want else (len(got) == 2 and got[1] == 40)


def test_a_table_that_is_no_constant() -> None:
    case = random_case(np.random.default_rng(3), 20, 64)
    proto = model(case)
    kept = [t for t in proto.graph.initializer if t.name != "B"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.append(helper.make_tensor_value_info("B", TensorProto.UINT8, ["V", "bytes"]))
    session = op_model.session(proto)
    indices = np.array([[0, -1, 7]])
    np.testing.assert_array_equal(
        session.run(None, {"indices": indices, "B": case.codes})[0], expected(case)[indices]
    )
    with pytest.raises(
        Exception, match=r"GatherMXFP4 'node': input B: got shape \[20,31\], expected \[20,32\]"
    ):
        session.run(None, {"indices": indices, "B": case.codes[:, :31].copy()})


BAD_NODES = [
    ({"K": None}, "attribute K is missing"),
    ({"K": 0}, "attribute K: got 0, expected 1 to 2147483647"),
    ({"K": 1.5}, "attribute K: .*type"),
    ({"K": 33}, r"input B: got shape \[7,16\], expected \[7,32\]"),
    ({"B": np.zeros(16, np.uint8)}, r"input B: got shape \[16\], expected \[16,16\]"),
    ({"B": np.uint8(3)}, r"input B: got shape \[\], expected \[0,16\]"),
    ({"B_scale": np.zeros((6, 1), np.uint8)}, r"input B_scale: got shape \[6,1\], expected \[7,1\]"),
    ({"multiplier": np.ones((7, 1), np.float32)}, r"input multiplier: got shape \[7,1\], expected \[7\]"),
    ({"B": np.zeros((7, 16), np.int8)}, "int8"),
    ({"multiplier": np.ones(7, np.float16)}, "float16"),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD_NODES, ids=lambda v: str(v)[:40] if isinstance(v, dict) else ""
)
def test_bad_nodes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(model(random_case(np.random.default_rng(4), 7, 32), **changes), np.zeros((1, 1), np.int64))


@pytest.mark.parametrize("index", [7, -8, 2**62, -(2**63)])
def test_an_index_out_of_range(index: int) -> None:
    session = op_model.session(model(random_case(np.random.default_rng(5), 7, 32)))
    with pytest.raises(Exception, match=rf"GatherMXFP4 'node': index 2: got {index}, expected -7 to 6"):
        session.run(None, {"indices": np.array([[0, 1, index]])})
    assert session.run(None, {"indices": np.array([[6, -7]])})[0].shape == (
        1,
        2,
        32,
    )  # and the session goes on


def test_an_empty_table() -> None:
    nothing = np.zeros((0, 16), np.uint8)
    proto = model(Case(nothing, nothing[:, :1], 32, column_scale=np.zeros(0, np.float32)))
    assert run(proto, np.zeros((1, 0), np.int64)).shape == (1, 0, 32)
    with pytest.raises(Exception, match="index 0: got 0, expected 0 to -1"):
        run(proto, np.zeros((1, 1), np.int64))


def test_indices_of_another_type() -> None:
    with pytest.raises(Exception, match="float"):
        op_model.session(model(random_case(np.random.default_rng(7), 7, 32), index_type=TensorProto.FLOAT))


small_shapes = st.lists(st.integers(0, 40), max_size=3)


@settings(max_examples=500, deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "K": st.one_of(
                st.integers(-2, 70), st.sampled_from([2**31, -(2**63), 2**63 - 1]), st.floats(width=32)
            ),
            "B": small_shapes.map(lambda s: np.zeros(s, np.uint8)),
            "B_scale": small_shapes.map(lambda s: np.full(s, 127, np.uint8)),
            "multiplier": small_shapes.map(lambda s: np.ones(s, np.float32)),
        },
    ),
    indices=st.lists(st.integers(-9, 9), max_size=4),
    shape=st.sampled_from([(-1,), (-1, 1), (1, -1, 1)]),
    weight_format=st.sampled_from(list(WEIGHT_FORMATS)),
)
def test_fuzz_a_node(
    changes: dict[str, object], indices: list[int], shape: tuple[int, ...], weight_format: str
) -> None:
    """Whatever the node says and gets: an error of one line, or an output of the right shape. Never a crash."""
    fed = np.array(indices, np.int64).reshape([len(indices) if d == -1 else d for d in shape])
    try:
        case = random_case(np.random.default_rng(8), 7, 32, weight_format=weight_format)
        y = run(model(case, dims=None, **changes), fed)
    except Exception as error:
        assert "GatherMX" in str(error) or "ONNXRuntimeError" in str(error), error
        return
    assert y.shape == (*fed.shape, changes.get("K", 32))
    rows = len(changes.get("B", range(7)))
    assert all(-rows <= i < rows for i in indices)
