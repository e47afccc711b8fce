"""What AMD Quark makes of a model's weights, for docs/accuracy.md. Runs in an environment of its own, with
amd-quark==0.13, onnxruntime and torch, for they need other versions than this project.

Usage: python tools/accuracy/quark_weights.py CONFIG model.onnx calibration/ out.onnx

CONFIG is one of Quark's presets, as MXFP4E2M1. out.onnx is the float model with every weight as Quark's own operator
rounds it: Quark's files keep float weights and round them at every run. Activations are not rounded.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader
from quark.onnx import ModelQuantizer
from quark.onnx.operators.custom_ops import get_library_path
from quark.onnx.quantization.config.config import Config
from quark.onnx.quantization.config.custom_config import get_default_config

ROUND = "MXQuantizeDequantize"


class Reader(CalibrationDataReader):
    """The .npy files of a folder, each the tokens of one sample."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._names = [i.name for i in ort.InferenceSession(model).get_inputs()]
        self._files = iter(sorted(folder.glob("*.npy")))

    def get_next(self) -> dict[str, np.ndarray] | None:
        file = next(self._files, None)
        if file is None:
            return None
        tokens = np.load(file)[None]
        made = {
            name: np.zeros_like(tokens) if "type" in name else np.ones_like(tokens) for name in self._names
        }
        return made | {"input_ids": tokens}


def rounded(node: onnx.NodeProto, weight: onnx.TensorProto) -> np.ndarray:
    """The weight through Quark's operator."""
    alone = helper.make_node(node.op_type, ["w"], ["q"], domain=node.domain)
    alone.attribute.extend(node.attribute)
    value = helper.make_tensor_value_info
    shape = list(weight.dims)
    graph = helper.make_graph([alone], "weight", [value("w", 1, shape)], [value("q", 1, shape)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(node.domain, 1)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path("CPU"))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"w": numpy_helper.to_array(weight)})[0]


def main(preset: str, source: Path, calibration: Path, out: Path) -> None:
    """Quantise the MatMuls that have weights, and nothing else, with the preset's own settings."""
    model = onnx.load(source)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    config = get_default_config(preset)
    config.op_types_to_quantize = ["MatMul"]
    config.nodes_to_exclude = [
        n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] not in constants
    ]
    source, calibration, out = source.resolve(), calibration.resolve(), out.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # Quark writes a table into it
        target = Path(folder, "quark.onnx")
        quantizer = ModelQuantizer(Config(global_quant_config=config))
        quantizer.quantize_model(str(source), str(target), Reader(source, calibration))
        quantized = onnx.load(target)
    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    done = 0
    for node in quantized.graph.node:
        if node.op_type == ROUND and node.input[0] in weights and len(weights[node.input[0]].dims) == 2:
            name = node.input[0]
            constants[name].CopyFrom(numpy_helper.from_array(rounded(node, weights[name]), name))
            done += 1
    onnx.save(model, out)
    print(f"{done} weights")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
