"""Looking at what an import wrote: its logits, and the bytes of every weight by the checkpoint's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as og
from onnx import numpy_helper

import checkpoints
import expert_tensors
import mxort
from mxort.converters import functions
from mxort.models.origin import NAMES


def run(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The logits of int64 [1, n] tokens, without a past."""
    options = ort.SessionOptions()
    mxort.register(options)
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    head_size = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, head_size), np.float32)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(tokens.shape[1])[None]
    return session.run(["logits"], feeds)[0]


def last_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 [vocabulary]: what onnxruntime-genai computes for the token after int64 [1, n] tokens."""
    parameters = og.GeneratorParams(model := og.Model(str(folder)))
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(tokens[0].tolist())
    return np.array(generator.get_logits())[0, -1]


def relative_rms(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def packed_rows(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(codes, scales) of every MXFP4 weight, by the names of its pieces with + between them; experts' by the node's."""
    model = onnx.load(folder / "model.onnx")
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.domain != "mxort" or not node.op_type.endswith("MXFP4"):
            continue
        notes = {entry.key: entry.value for entry in node.metadata_props}
        for operand in range(functions.operands_of(node.op_type)):
            if node.op_type == functions.EXPERTS:
                at = 2 + 4 * operand
                found[f"{node.name}/{operand}"] = arrays[node.input[at]], arrays[node.input[at + 1]]
                continue
            names = json.loads(notes["mxort_factor." * operand + "mxort.checkpoint"])
            codes, scales = (arrays[key] for key in node.input[1 + 4 * operand : 3 + 4 * operand])
            found["+".join(names)] = codes, scales
    return found


def made_of(folder: Path) -> dict[str, tuple[dict[str, np.ndarray], list[str], onnx.NodeProto]]:
    """By layer's node: (the operator's constants by its names of them, the checkpoint's names, the node)."""
    model = onnx.load(folder / "model.onnx")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    inputs = functions.function(functions.EXPERTS, 21).input
    found = {}
    for node in model.graph.node:
        if node.op_type == functions.EXPERTS:
            values = {n: constants[g] for n, g in zip(inputs, node.input, strict=True) if g in constants}
            names = next((p.value for p in node.metadata_props if p.key == NAMES), "[]")
            found[node.name] = values, json.loads(names), node
    return found


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def assert_expert_bytes(tiny: checkpoints.Tiny, architecture: str, folder: Path) -> None:
    """Every byte of every expert is in the file, at its expert's and row's place, and none is anywhere else."""
    layers = made_of(folder)
    assert list(layers) == [f"/model/layers.{i}/moe/MoE" for i in range(2)]
    for number, (values, names, node) in enumerate(layers.values()):
        prefix = f"model.layers.{number}.mlp.experts"
        for product, stack in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
            if architecture == "gpt_oss":
                matrix = tiny.packed[f"{prefix}.{stack}"]
                codes, scales = matrix.bytes, matrix.scales
                np.testing.assert_array_equal(
                    values[f"{product}_bias"],
                    tiny.model.state_dict()[f"{prefix}.{stack}_bias"].numpy(),
                )
            else:
                parts = expert_tensors.PARTS[architecture][stack]
                linears = [
                    [
                        tiny.packed[expert_tensors.renamed(architecture, f"{prefix}.{e}.{part}")]
                        for part in parts
                    ]
                    for e in range(4)
                ]
                codes = np.stack([np.concatenate([m.bytes for m in row]) for row in linears])
                scales = np.stack([np.concatenate([m.scales for m in row]) for row in linears])
                assert not values[f"{product}_bias"].any()
            np.testing.assert_array_equal(values[f"{product}_B"], codes)
            np.testing.assert_array_equal(values[f"{product}_B_scale"], scales)
            assert (values[f"{product}_column_scale"] == 1).all()
        assert attribute(node, "swiglu_fusion") == (1 if architecture == "gpt_oss" else 2)
        assert len(names) == (2 if architecture == "gpt_oss" else 12)


def assert_bytes(tiny: checkpoints.Tiny, folder: Path) -> None:
    """Every row of every MXFP4 weight of the checkpoint is in the model, unchanged, and nothing else is."""
    seen = 0
    for names, (codes, scales) in packed_rows(folder).items():
        parts = [_rows_of(tiny, name) for name in names.split("+")]
        np.testing.assert_array_equal(codes, np.concatenate([part[0] for part in parts]), names)
        np.testing.assert_array_equal(scales, np.concatenate([part[1] for part in parts]), names)
        seen += len(codes)
    assert seen == sum(len(matrix.codes) for matrix in tiny.packed.values()) > 0


def _rows_of(tiny: checkpoints.Tiny, source: str) -> tuple[np.ndarray, np.ndarray]:
    name, _, rows = source.removesuffix("]").partition("[")
    matrix = tiny.packed[name.removesuffix(".weight")]
    part = slice(*map(int, rows.split(":"))) if rows else slice(None)
    return matrix.bytes[part], matrix.scales[part]
