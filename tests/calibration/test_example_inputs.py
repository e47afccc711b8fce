"""mxort/example_inputs.py: generated inputs that a transformer accepts, and files that are refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mxort.calibration.example_inputs import generate_inputs, load_inputs
from mxort.errors import MxortError

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


def model_of(inputs, nodes=(), constants=None):
    """A model with these (name, type, shape) inputs and nodes; its output is the first input."""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    nodes = [*nodes, helper.make_node("Identity", [inputs[0][0]], ["out"])]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "g", infos, [helper.make_tensor_value_info("out", inputs[0][1], None)], tensors
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def generate(inputs, nodes=(), constants=None, **options):
    return generate_inputs(model_of(inputs, nodes, constants), "m.onnx", **options)


def test_a_decoder_with_a_cache():
    made = generate(
        [
            ("input_ids", INT64, ["batch_size", "sequence_length"]),
            ("attention_mask", INT64, ["batch_size", "total_sequence_length"]),
            ("position_ids", INT64, ["batch_size", "sequence_length"]),
            ("past_key_values.0.key", FLOAT, ["batch_size", 3, "past_sequence_length", 64]),
            ("cache_mask", TensorProto.BOOL, ["batch_size", "past_sequence_length + sequence_length"]),
            ("use_cache_branch", TensorProto.BOOL, [1]),
            ("token_type_ids", INT64, ["batch_size", "sequence_length"]),
        ]
    )
    assert {name: array.shape for name, array in made.items()} == {
        "input_ids": (1, 32),
        "attention_mask": (1, 32),
        "position_ids": (1, 32),
        "past_key_values.0.key": (1, 3, 0, 64),
        "cache_mask": (1, 32),
        "use_cache_branch": (1,),
        "token_type_ids": (1, 32),
    }
    assert (made["attention_mask"] == 1).all()
    assert (made["position_ids"] == np.arange(32)).all()
    assert not made["use_cache_branch"].any()
    assert made["cache_mask"].all()
    assert not made["token_type_ids"].any()


def test_given_dimensions_reach_the_sums_made_of_them():
    made = generate(
        [
            ("attention_mask", INT64, ["batch", "total_sequence_length"]),
            ("sum", INT64, ["past_sequence_length + sequence_length"]),
            ("plus", INT64, ["past_sequence_length + 1"]),
            ("past", FLOAT, ["batch", "past_sequence_length"]),
            ("ids", INT64, ["batch", "sequence_length"]),
        ],
        dims={"past_sequence_length": 5, "sequence_length": 2, "batch": 4},
    )
    assert [array.shape for array in made.values()] == [(4, 7), (7,), (6,), (4, 5), (4, 2)]


@pytest.mark.parametrize(
    "layout", ["rows", "columns", "through a cast", "transposed table", "embed layer norm"]
)
def test_indices_stay_inside_their_table(layout):
    rows = 11
    table = np.zeros((rows, 4), np.float32)
    constants = {"table": table}
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"])]
    if layout == "columns":
        constants["table"] = table.T.copy()
        nodes = [helper.make_node("Gather", ["table", "ids"], ["e"], axis=1)]
    elif layout == "through a cast":
        nodes = [
            helper.make_node("Cast", ["ids"], ["narrow"], to=TensorProto.INT32),
            helper.make_node("Gather", ["table", "narrow"], ["e"]),
        ]
    elif layout == "transposed table":
        constants["table"] = table.T.copy()
        nodes = [
            helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
            helper.make_node("Gather", ["t", "ids"], ["e"]),
        ]
    elif layout == "embed layer norm":
        inputs = ["ids", "", "table", "table", "", "gamma", "beta"]
        nodes = [helper.make_node("EmbedLayerNormalization", inputs, ["e", "m"], domain="com.microsoft")]
        constants |= {"gamma": np.ones(4, np.float32), "beta": np.ones(4, np.float32)}
    made = generate([("ids", INT64, ["batch", "seq"])], nodes, constants, dims={"seq": 2000})
    assert made["ids"].min() == 0
    assert made["ids"].max() == rows - 1  # 2000 draws of 11 values: all of the table, nothing beyond


def test_two_tables_bound_by_the_smaller():
    nodes = [helper.make_node("Gather", [name, "ids"], [f"e_{name}"]) for name in ("big", "small")]
    constants = {"big": np.zeros((100, 2), np.float32), "small": np.zeros((3, 2), np.float32)}
    assert generate([("ids", INT64, [500])], nodes, constants)["ids"].max() == 2


@pytest.mark.parametrize(("domain", "apart"), [("com.microsoft", ["", ""]), ("mxort", [])])
def test_head_size_from_the_rotary_table(domain, apart):
    """Of exported and of converted decoders."""
    inputs = [("q", FLOAT, ["batch", "seq", 192]), ("past", FLOAT, ["batch", 3, "past", "kv_cache_dim"])]
    operands = ["q", *apart, "past", "past", "lens", "total", "cos", "sin"]
    nodes = [helper.make_node("GroupQueryAttention", operands, ["a", "k", "v"], domain=domain)]
    constants = {name: np.zeros((128, 16), np.float32) for name in ("cos", "sin")}
    constants |= {"lens": np.zeros(1, np.int32), "total": np.zeros((), np.int32)}
    assert generate(inputs, nodes, constants)["past"].shape == (1, 3, 0, 32)
    assert generate(inputs, nodes, constants, dims={"kv_cache_dim": 8})["past"].shape == (1, 3, 0, 8)


def test_floats_are_normal_and_seeded():
    inputs = [("x", FLOAT, [100, 100]), ("h", TensorProto.FLOAT16, [2]), ("d", TensorProto.DOUBLE, [2])]
    first, again, other = generate(inputs, seed=1), generate(inputs, seed=1), generate(inputs, seed=2)
    assert [array.dtype for array in first.values()] == [np.float32, np.float16, np.float64]
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first["x"], other["x"])
    assert abs(float(first["x"].mean())) < 0.05
    assert abs(float(first["x"].std()) - 1) < 0.05


def test_initializers_listed_as_inputs_are_not_fed():
    made = generate([("x", FLOAT, [1]), ("w", FLOAT, [1])], constants={"w": np.ones(1, np.float32)})
    assert list(made) == ["x"]


@pytest.mark.parametrize(
    ("info", "options", "message"),
    [
        (("s", TensorProto.STRING, [1]), {}, "m.onnx: cannot make up a string for input s"),
        (("c", TensorProto.COMPLEX64, [1]), {}, "cannot make up a complex64 for input c"),
        (("x", FLOAT, None), {}, "input x has no type or rank"),
        (("x", FLOAT, ["n"]), {"dims": {"m": 1}}, r"no symbolic dimension 'm' \(it has: n\)"),
        (("x", FLOAT, ["n"]), {"dims": {"n": -1}}, "dimension n cannot be -1"),
    ],
)
def test_inputs_that_cannot_be_made_up(info, options, message):
    with pytest.raises(MxortError, match=message):
        generate([info], **options)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 truncated", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "inputs.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MxortError, match=r"inputs\.npz: (no such file|not an \.npz file)"):
        load_inputs(path)


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.array([object()]))
    with pytest.raises(MxortError, match=r"not an \.npz file of arrays"):
        load_inputs(tmp_path / "inputs.npz")


def test_a_single_npy_is_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(2))
    with pytest.raises(MxortError, match=r"not an \.npz file of arrays"):
        load_inputs(tmp_path / "x.npz")
