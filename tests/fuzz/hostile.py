"""Files that are damaged or lie: converted, inspected, or refused with one line. Nothing else may happen."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

import mxort
from fuzz.models import Builder
from fuzz.worker import WrongError
from mxort.conversion.inspection import inspect
from mxort.errors import MxortError

ABSURD = [0, -1, 1, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]


def run(rng: np.random.Generator) -> str:
    builder = Builder(rng)
    model = builder.model()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "m.onnx"), Path(folder, "out.onnx")
        if rng.random() < 0.4:
            onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=16)
            model = onnx.load(path, load_external_data=False)
        how = str(rng.choice(["bytes", "truncated", "proto"]))
        content = model.SerializeToString()
        if how == "proto":
            for _ in range(int(rng.integers(1, 4))):
                _damage(rng, model)
            content = model.SerializeToString()
        elif how == "truncated":
            content = content[: int(rng.integers(0, len(content)))]
        else:
            content = _bytes(rng, content)
        path.write_bytes(content)
        data = Path(folder, "m.data")
        if data.exists() and rng.random() < 0.2:
            os.truncate(data, int(rng.integers(0, data.stat().st_size + 1)))
        return f"{how}: {_use(path, out)}"


def _use(path: Path, out: Path) -> str:
    inspected = _refusal(lambda: inspect(path))
    converted = _refusal(lambda: mxort.convert(path, out, min_elements=1))
    if converted:
        if out.exists():
            raise WrongError(f"refused, and yet there is an output: {converted}")
        return "refused"
    if inspected:
        raise WrongError(f"convert took what inspect refused: {inspected}")
    onnx.load(out)
    return "converted"


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except MxortError as error:
        text = str(error)
        if not text.strip() or "\n" in text.strip():
            raise WrongError(f"the error is not one line: {text!r}") from error
        return text
    return ""


def _bytes(rng: np.random.Generator, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, max(1, len(damaged))))
        length = int(rng.integers(1, 9))
        kind = int(rng.integers(0, 4))
        if kind == 0 and damaged:
            damaged[at] = int(rng.integers(0, 256))
        elif kind == 1:
            del damaged[at : at + length]
        elif kind == 2:
            damaged[at:at] = rng.bytes(length)
        else:
            damaged[at:at] = damaged[at : at + length]
    return bytes(damaged)


class _Liar:
    """Ways to lie about a model; each changes one thing, or nothing where it does not apply."""

    def __init__(self, rng: np.random.Generator, model: onnx.ModelProto) -> None:
        self.rng, self.model, self.graph = rng, model, model.graph
        self.node = self.any(self.graph.node)
        self.tensor = self.any(self.graph.initializer) or TensorProto()

    def any(self, items: Any) -> Any:
        return items[int(self.rng.integers(0, len(items)))] if len(items) else None

    def number(self) -> int:
        return int(self.rng.choice(np.array(ABSURD)))

    def dimension(self) -> None:
        if self.tensor.dims:
            self.tensor.dims[int(self.rng.integers(0, len(self.tensor.dims)))] = self.number()

    def tensor_type(self) -> None:
        self.tensor.data_type = int(self.rng.integers(0, 30))

    def tensor_bytes(self) -> None:
        data = self.tensor.raw_data
        self.tensor.raw_data = data[: int(self.rng.integers(0, len(data) + 1))]

    def external(self) -> None:
        self.tensor.data_location = TensorProto.EXTERNAL
        places = [
            "/etc/passwd",
            "../m.onnx",
            "m.onnx",
            "",
            "nowhere.data",
            "./././m.data",
            "a\0b",
            "x" * 5000,
        ]
        del self.tensor.external_data[:]
        self.tensor.external_data.add(key="location", value=str(self.rng.choice(places)))
        for key in ("offset", "length"):
            self.tensor.external_data.add(key=key, value=str(self.number()))

    def attribute(self) -> None:
        if (attribute := self.any(self.node.attribute)) is not None:
            attribute.i, attribute.f = self.number(), float("nan")
            attribute.ints[:] = [self.number() for _ in range(int(self.rng.integers(0, 4)))]
            attribute.type = int(self.rng.integers(0, 15))

    def input_name(self) -> None:
        if self.node.input:
            at = int(self.rng.integers(0, len(self.node.input)))
            self.node.input[at] = str(self.rng.choice(["", "absent", self.node.output[0]]))

    def output_name(self) -> None:
        self.node.output[0] = str(self.rng.choice(["", "x", self.graph.node[0].output[0]]))

    def operator(self) -> None:
        names = ["", "MatMul", "Gemm", "Loop", "If", "MatMulMXFP4", "NoSuchOp"]
        self.node.op_type = str(self.rng.choice(names))

    def domain(self) -> None:
        self.node.domain = str(self.rng.choice(["mxort", "com.microsoft", "ai.onnx", "nobody"]))

    def ir_version(self) -> None:
        self.model.ir_version = self.number() % 2**62

    def opset(self) -> None:
        if self.model.opset_import:
            self.model.opset_import[0].version = self.number()

    def no_opset(self) -> None:
        del self.model.opset_import[:]

    def missing_node(self) -> None:
        if len(self.graph.node) > 1:
            self.graph.node.remove(self.node)

    def input_shape(self) -> None:
        self.graph.input[0].type.tensor_type.shape.dim.add().dim_value = self.number()


_LIES = [
    name
    for name, value in vars(_Liar).items()
    if callable(value) and name not in ("__init__", "any", "number")
]


def _damage(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """One lie in the model."""
    getattr(_Liar(rng, model), str(rng.choice(_LIES)))()
