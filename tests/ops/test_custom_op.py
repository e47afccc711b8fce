"""The operator inside ONNX Runtime: results, shapes, threads, errors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import op_model
import oracle
from mxort import _native
from mxort.formats import WEIGHT_FORMATS
from mxort.runtime.session import get_library_path
from oracle import FORMATS_AND_LEVELS, random_case

EMULATES_OR_HAS_AMX = any(
    k["name"] in oracle.BFLOAT16_KERNELS and k["available"] for k in _native.describe()["kernels"]
)
ELEM_TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}


@pytest.mark.parametrize("elem_type", ELEM_TYPES, ids=lambda t: np.dtype(ELEM_TYPES[t]).name)
@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
@pytest.mark.parametrize("rotation", [1, 32])
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_oracle(
    elem_type: int, activation_format: str, level: int, rotation: int, weight_format: str
) -> None:
    rng = np.random.default_rng(level + rotation)
    attributes = {"activation_format": activation_format, "accuracy_level": level}
    case = random_case(rng, 33, 100, rotation, weight_format, **attributes)
    a = rng.standard_normal((2, 5, 100)).astype(ELEM_TYPES[elem_type])
    bf16 = elem_type == TensorProto.BFLOAT16
    (y,) = op_model.session(op_model.model(case, elem_type=elem_type)).run(
        None, {"A": a.astype(np.float32) if bf16 else a}
    )
    assert y.shape == (2, 5, 33)
    oracle.assert_close(case, a.reshape(-1, 100), y.astype(a.dtype).reshape(-1, 33), "onnxruntime")


@pytest.mark.parametrize("rotation", [1, 32, 64, 128])
@pytest.mark.parametrize("opset", [15, 18, 21, 22])
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_library_function_and_reference_agree(rotation: int, opset: int, weight_format: str) -> None:
    """Our kernel, the function in stock ONNX Runtime, and onnx.reference: three evaluations of one file."""
    rng = np.random.default_rng(rotation)
    case = random_case(rng, 24, 256 if rotation > 32 else 100, rotation, weight_format, accuracy_level=1)
    proto = op_model.model(case, opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    a = rng.standard_normal((3, 4, case.K)).astype(np.float32)
    exact, _ = oracle.evaluate(case, a.reshape(-1, case.K))
    for y in (
        op_model.session(proto).run(None, {"A": a})[0],
        op_model.session(proto, library=False).run(None, {"A": a})[0],
        onnx.reference.ReferenceEvaluator(proto).run(None, {"A": a})[0],
    ):
        assert oracle.relative_rms(y.reshape(exact.shape), exact) <= oracle.RELATIVE_RMS[1]


def test_the_library_is_what_runs() -> None:
    """With activation quantisation the kernel differs from the function, which has none: so the kernel ran."""
    rng = np.random.default_rng(1)
    case = random_case(rng, 16, 64, activation_format="mxfp4")
    proto, a = op_model.model(case), rng.standard_normal((1, 8, 64)).astype(np.float32)
    exact, _ = oracle.evaluate(case, a[0])
    assert oracle.relative_rms(op_model.session(proto).run(None, {"A": a})[0][0], exact) < 1e-6
    assert oracle.relative_rms(op_model.session(proto, library=False).run(None, {"A": a})[0][0], exact) > 1e-2


HALF_TYPES = [TensorProto.FLOAT16, TensorProto.BFLOAT16]


def with_half_vectors(elem_type: int, **options: object) -> tuple[oracle.Case, onnx.ModelProto]:
    """A case whose column_scale and bias its model holds in A's type, as tools that make models float16 leave them."""
    case = random_case(np.random.default_rng(5), 33, 100, **options)
    halves = {name: getattr(case, name).astype(ELEM_TYPES[elem_type]) for name in ("column_scale", "bias")}
    case.column_scale, case.bias = (halves[name].astype(np.float32) for name in ("column_scale", "bias"))
    return case, op_model.model(case, elem_type=elem_type, **halves)


@pytest.mark.parametrize("elem_type", HALF_TYPES)
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("constant", [True, False])
def test_vectors_of_the_type_of_a(elem_type: int, weight_format: str, constant: bool) -> None:
    case, proto = with_half_vectors(elem_type, weight_format=weight_format, activation_format="mxfp4")
    a = np.random.default_rng(0).standard_normal((2, 5, 100)).astype(ELEM_TYPES[elem_type])
    feeds = {"A": a.astype(np.float32) if elem_type == TensorProto.BFLOAT16 else a}
    if not constant:  # known only when the session runs
        kept = [t for t in proto.graph.initializer if t.name not in ("column_scale", "bias")]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        for name in ("column_scale", "bias"):
            proto.graph.input.append(helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, [case.N]))
            proto.graph.node.insert(0, helper.make_node("Cast", [f"{name}_in"], [name], to=elem_type))
            feeds[f"{name}_in"] = getattr(case, name)
    (y,) = op_model.session(proto).run(None, feeds)
    oracle.assert_close(case, a.reshape(-1, 100), y.astype(a.dtype).reshape(-1, 33), "onnxruntime")


def test_the_function_takes_vectors_of_the_type_of_a() -> None:
    case, proto = with_half_vectors(TensorProto.FLOAT16)
    a = np.random.default_rng(0).standard_normal((1, 8, 100)).astype(np.float16)
    exact, _ = oracle.evaluate(case, a[0])
    for y in (
        op_model.session(proto, library=False).run(None, {"A": a})[0],
        onnx.reference.ReferenceEvaluator(proto).run(None, {"A": a})[0],
    ):
        assert y.dtype == np.float16
        assert oracle.relative_rms(y[0].astype(np.float64), exact) <= 2.0**-11  # Y is rounded to float16


@pytest.mark.parametrize("shape", [(100,), (3, 100), (2, 3, 100), (2, 1, 3, 1, 100), (0, 100), (2, 0, 100)])
def test_ranks_and_empty_inputs(shape: tuple[int, ...]) -> None:
    case = random_case(np.random.default_rng(2), 7, 100)
    proto = op_model.model(case, dims=[f"d{i}" for i in range(len(shape) - 1)])
    (y,) = op_model.session(proto).run(None, {"A": np.ones(shape, np.float32)})
    assert y.shape == (*shape[:-1], 7)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [(("batch", "seq"), ["batch", "seq", 7]), ((2, "seq"), [2, "seq", 7]), ((2, 3), [2, 3, 7]), ((), [7])],
)
def test_symbolic_dimensions_survive(dims: tuple[object, ...], expected: list[object]) -> None:
    proto = op_model.model(random_case(np.random.default_rng(3), 7, 32), dims=dims)
    assert op_model.session(proto).get_outputs()[0].shape == expected


def test_unnamed_dimensions_do_not_clash_with_the_next_operator() -> None:
    """A bare -1 written back as a value made a following Add fail."""
    case = random_case(np.random.default_rng(4), 7, 32)
    proto = op_model.model(case, dims=(None, None))
    proto.graph.node[-1].output[0] = "Y_cast"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((5, 1, 7), np.float32), "more"))
    proto.graph.node.append(helper.make_node("Add", ["Y_cast", "more"], ["Y"]))
    (y,) = op_model.session(proto).run(None, {"A": np.ones((5, 2, 32), np.float32)})
    assert y.shape == (5, 2, 7)


def test_weights_that_are_no_constants() -> None:
    """Not what the converter makes, but a valid use of the operator: packed in every run."""
    rng = np.random.default_rng(5)
    case = random_case(rng, 20, 64)
    proto = op_model.model(case)
    kept = [t for t in proto.graph.initializer if t.name not in ("B", "B_scale")]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for name in ("B", "B_scale"):
        proto.graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.UINT8, [f"{name}0", f"{name}1"])
        )
    run = op_model.session(proto)
    a = rng.standard_normal((1, 4, 64)).astype(np.float32)
    for seed in (1, 2):
        other = random_case(np.random.default_rng(seed), 20, 64)
        other.column_scale, other.bias = case.column_scale, case.bias
        (y,) = run.run(None, {"A": a, "B": other.codes, "B_scale": other.scales})
        oracle.assert_close(other, a[0], y[0], "dynamic weights")
    with pytest.raises(
        Exception, match=r"MatMulMXFP4 'node': input B: got shape \[20,31\], expected \[20,32\]"
    ):
        run.run(None, {"A": a, "B": case.codes[:, :31].copy(), "B_scale": case.scales})


def test_beside_onnxruntimes_own_int8_kernels() -> None:
    """Both use the tile unit where a CPU has AMX, whose configuration belongs to the thread: neither may leave its own
    behind. Nodes of both kinds take turns on the same threads, and each must stay right."""
    rng = np.random.default_rng(12)
    layers, size = 4, 256
    cases = [random_case(rng, size, size, accuracy_level=3) for _ in range(layers)]
    integers = [rng.integers(-127, 128, (size, size), dtype=np.int8) for _ in range(layers)]
    proto = op_model.model(cases[0], dims=("M",))
    node = next(n for n in proto.graph.node if n.domain == "mxort")
    del proto.graph.node[:], proto.graph.output[:], proto.graph.initializer[:]
    for i, (case, w) in enumerate(zip(cases, integers, strict=True)):
        tensors = {
            "B": case.codes,
            "B_scale": case.scales,
            "column_scale": case.column_scale,
            "bias": case.bias,
        }
        tensors |= {"W": w, "zero": np.array(128, np.uint8)}
        proto.graph.initializer.extend(numpy_helper.from_array(v, f"{k}{i}") for k, v in tensors.items())
        ours = onnx.NodeProto()
        ours.CopyFrom(node)
        ours.name = f"node{i}"
        del ours.input[:], ours.output[:]
        ours.input.extend(["A", *(f"{k}{i}" for k in ("B", "B_scale", "column_scale", "bias"))])
        ours.output.append(f"Y{i}")
        theirs = helper.make_node("MatMulInteger", ["U", f"W{i}", f"zero{i}"], [f"Z{i}"])
        proto.graph.node.extend([ours, theirs])
        proto.graph.output.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, [None, size]))
        proto.graph.output.append(helper.make_tensor_value_info(f"Z{i}", TensorProto.INT32, [None, size]))
    proto.graph.input.append(helper.make_tensor_value_info("U", TensorProto.UINT8, ["M", size]))
    shared = op_model.session(proto, threads=2)

    def run() -> None:
        local = np.random.default_rng(threading.get_ident())
        for m in (1, 33, 64, 200) * 3:
            a = local.standard_normal((m, size)).astype(np.float32)
            u = local.integers(0, 256, (m, size), dtype=np.uint8)
            outputs = shared.run(None, {"A": a, "U": u})
            for case, y in zip(cases, outputs[::2], strict=True):
                kernel = oracle.BFLOAT16_KERNELS[0] if m > 1 and EMULATES_OR_HAS_AMX else ""
                oracle.assert_close(case, a, y, f"M={m}", kernel)
            for w, z in zip(integers, outputs[1::2], strict=True):
                np.testing.assert_array_equal(z, (u.astype(np.int64) - 128) @ w.astype(np.int64))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run) for _ in range(4)]:
            future.result()


def test_four_threads_share_a_session() -> None:
    """1000 runs from four threads, each result identical to one thread's."""
    rng = np.random.default_rng(6)
    case = random_case(rng, 200, 256)
    run = op_model.session(op_model.model(case), threads=2)
    inputs = [rng.standard_normal((1, m, 256)).astype(np.float32) for m in (1, 2, 7, 33)]
    expected = [run.run(None, {"A": a})[0] for a in inputs]
    wrong: list[int] = []

    def work(first: int) -> None:
        for i in range(250):
            which = (first + i) % len(inputs)
            if not np.array_equal(run.run(None, {"A": inputs[which]})[0], expected[which]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


BAD_NODES = [
    ({"rotation": 7}, "attribute rotation: got 7, expected 1, 32, 64 or 128"),
    (
        {"rotation": 64},
        "attribute rotation: got 64 with K=32, expected a divisor of K rounded up to blocks, 32",
    ),
    ({"rotation": 1.5}, "attribute rotation: .*type"),
    ({"accuracy_level": -1}, "attribute accuracy_level: got -1, expected 0, 1, 3 or 4"),
    (
        {"activation_format": "fp8"},
        "attribute activation_format: got 'fp8', expected one of none, mxfp8_e4m3",
    ),
    ({"activation_format": 3}, "attribute activation_format: .*type"),
    ({"K": -5}, "attribute K: got -5, expected 1 to 2147483647"),
    ({"K": 64}, r"input B: got shape \[7,16\], expected \[7,32\]"),
    ({"K": None}, "attribute K is missing"),
    ({"N": 0}, "attribute N: got 0, expected 1 to 2147483647"),
    ({"N": 2**40}, "attribute N: got 1099511627776, expected 1 to 2147483647"),
    ({"B": np.zeros((7, 15), np.uint8)}, r"input B: got shape \[7,15\], expected \[7,16\]"),
    ({"B": np.zeros((112,), np.uint8)}, r"input B: got shape \[112\], expected \[7,16\]"),
    ({"B_scale": np.zeros((6, 1), np.uint8)}, r"input B_scale: got shape \[6,1\], expected \[7,1\]"),
    ({"column_scale": np.ones(6, np.float32)}, r"input column_scale: got shape \[6\], expected \[7\]"),
    ({"bias": np.ones((1, 7), np.float32)}, r"input bias: got shape \[1,7\], expected \[7\]"),
    ({"B": np.zeros((7, 16), np.int8)}, "int8"),
    ({"bias": np.zeros(7, np.float64)}, r"tensor\(double\)"),
    ({"bias": np.zeros(7, np.float16)}, "no kernel def matches"),  # column_scale is float
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD_NODES, ids=lambda v: str(v)[:40] if isinstance(v, dict) else ""
)
def test_bad_nodes(changes: dict[str, object], message: str) -> None:
    proto = op_model.model(random_case(np.random.default_rng(7), 7, 32), **changes)
    with pytest.raises(Exception, match=message):
        op_model.session(proto).run(None, {"A": np.ones((1, 1, 32), np.float32)})


def test_absent_attributes_have_their_defaults() -> None:
    case = random_case(np.random.default_rng(8), 7, 32)
    proto = op_model.model(case, rotation=None, activation_format=None, accuracy_level=None)
    a = np.random.default_rng(9).standard_normal((1, 3, 32)).astype(np.float32)
    oracle.assert_close(case, a[0], op_model.session(proto).run(None, {"A": a})[0][0], "defaults")


def test_wrong_input_at_run_time() -> None:
    proto = op_model.model(random_case(np.random.default_rng(10), 7, 32))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    run = op_model.session(proto)
    for shape in ((31,), (2, 33), (), (32, 0)):
        with pytest.raises(Exception, match=r"MatMulMXFP4 'node': input A: got shape .*expected \[..., 32\]"):
            run.run(None, {"A": np.ones(shape, np.float32)})
    assert run.run(None, {"A": np.ones((1, 32), np.float32)})[0].shape == (1, 7)  # and the session goes on
    with pytest.raises(Exception, match="int64"):
        run.run(None, {"A": np.ones((1, 32), np.int64)})


BAD_WIDE_NODES = [
    (
        "mxfp6_e2m3",
        {"B": np.zeros((7, 16), np.uint8)},
        r"MatMulMXFP6 'node': input B: got shape \[7,16\], expected \[7,24\]",
    ),
    ("mxfp6_e2m3", {"exponent_bits": 4}, "attribute exponent_bits: got 4, expected 2 or 3"),
    ("mxfp6_e3m2", {"exponent_bits": "3"}, "attribute exponent_bits: .*type"),
    (
        "mxfp8_e4m3",
        {"B": np.zeros((7, 24), np.uint8)},
        r"MatMulMXFP8 'node': input B: got shape \[7,24\], expected \[7,32\]",
    ),
    ("mxfp8_e4m3", {"exponent_bits": 5}, "attribute exponent_bits: got 5, expected 4"),
    ("mxfp4", {"exponent_bits": 3}, "attribute exponent_bits: got 3, expected 2"),
]


@pytest.mark.parametrize(("weight_format", "changes", "message"), BAD_WIDE_NODES)
def test_bad_wide_nodes(weight_format: str, changes: dict[str, object], message: str) -> None:
    case = random_case(np.random.default_rng(7), 7, 32, weight_format=weight_format)
    with pytest.raises(Exception, match=message):
        op_model.session(op_model.model(case, **changes)).run(None, {"A": np.ones((1, 1, 32), np.float32)})


def test_absent_exponent_bits_are_e2m3() -> None:
    case = random_case(np.random.default_rng(8), 7, 32, weight_format="mxfp6_e2m3")
    proto = op_model.model(case, exponent_bits=None)
    a = np.random.default_rng(9).standard_normal((1, 3, 32)).astype(np.float32)
    for library in (True, False):
        (y,) = op_model.session(proto, library=library).run(None, {"A": a})
        oracle.assert_close(case, a[0], y[0], f"library {library}")


small = st.integers(-2, 70)
anything = st.one_of(small, st.sampled_from([2**31, -(2**63), 2**63 - 1]))


@settings(max_examples=1500, deadline=None)
@given(
    attributes=st.fixed_dictionaries(
        {},
        optional={
            "K": anything,
            "N": anything,
            "rotation": st.one_of(
                st.sampled_from([1, 32, 64, 128]), anything, st.floats(width=32), st.text(max_size=3)
            ),
            "accuracy_level": st.one_of(st.sampled_from([0, 1, 3, 4]), anything),
            "exponent_bits": st.one_of(st.sampled_from([2, 3, 4]), anything, st.text(max_size=3)),
            "activation_format": st.one_of(
                st.sampled_from(["none", "mxfp4", "mxfp6_e2m3"]), st.text(max_size=5), small
            ),
            "B": st.tuples(st.integers(0, 8), st.integers(0, 40)).map(lambda s: np.zeros(s, np.uint8)),
            "B_scale": st.lists(st.integers(0, 8), max_size=3).map(lambda s: np.full(s, 127, np.uint8)),
            "bias": st.lists(st.integers(0, 8), max_size=2).map(lambda s: np.zeros(s, np.float32)),
        },
    ),
    shape=st.lists(st.integers(0, 34), max_size=3),
    weight_format=st.sampled_from(list(WEIGHT_FORMATS)),
)
def test_fuzz_a_node(attributes: dict[str, object], shape: list[int], weight_format: str) -> None:
    """Whatever the node says and gets: an error of one line, or an output of the right shape. Never a crash."""
    case = random_case(np.random.default_rng(11), 7, 32, weight_format=weight_format)
    proto = op_model.model(case, **attributes)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    try:
        (y,) = op_model.session(proto).run(None, {"A": np.ones(shape, np.float32)})
    except Exception as error:
        assert "MatMulMXFP" in str(error) or "ONNXRuntimeError" in str(error), error
        return
    n = attributes.get("N", 7)
    assert y.shape == (*shape[:-1], n)


@pytest.mark.parametrize("elem_type", ELEM_TYPES, ids=lambda t: np.dtype(ELEM_TYPES[t]).name)
def test_each_type_has_its_own_kernel(elem_type: int, tmp_path: Path) -> None:
    """ONNX Runtime would silently cast around a node whose type has no kernel; only the own casts may remain."""
    proto = op_model.model(random_case(np.random.default_rng(12), 7, 32), elem_type=elem_type)
    optimized = tmp_path / "optimized.onnx"
    op_model.session(proto, optimized=str(optimized))
    own_casts = (
        2 if elem_type == TensorProto.BFLOAT16 else 1
    )  # of the other identity casts, the first is removed
    assert [n.op_type for n in onnx.load(optimized).graph.node].count("Cast") == own_casts


def test_pages_of_packed_weights_are_given_back(tmp_path: Path) -> None:
    """ONNX Runtime maps a data file. What has been packed of it leaves the process, and comes back when it is read."""
    case = random_case(np.random.default_rng(11), 4096, 1024)
    proto = op_model.model(case, dims=("M",))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data")
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    resident, mapped, inside = 0, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith("m.data")
        elif inside and line.startswith(("Rss:", "Size:")):
            kilobytes = int(line.split()[1])
            resident, mapped = (
                (resident + kilobytes, mapped) if line[0] == "R" else (resident, mapped + kilobytes)
            )
    assert mapped >= case.codes.nbytes // 1024, "a data file is mapped, or this test sees nothing"
    assert resident < mapped / 10
    a = np.random.default_rng(12).standard_normal((3, 1024)).astype(np.float32)
    a[1, 5] = 1e38  # a row for the reference, which reads the weights as they were
    oracle.assert_close(case, a, session.run(None, {"A": a})[0], "mapped")
