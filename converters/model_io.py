"""Reading models without loading their weights."""

from __future__ import annotations

import os
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google.protobuf.message  # type: ignore[import-untyped]
import onnx
import onnx.checker
import onnx_ir as ir

from mxort.converters import verify
from mxort.converters.hashing import sha256_of
from mxort.converters.normalise import normalise_model, normalise_proto, sparse_again
from mxort.converters.walk import bodies, tensors
from mxort.errors import MxortError, first_line

SINGLE_FILE_BYTES = 1_500_000_000
"""Models up to this size are written as one file: protobuf ends at 2 GiB and needs a copy in memory."""


@dataclass(frozen=True)
class Source:
    """A loaded model. ``nbytes`` counts all its files; ``path`` is None for a model in memory.

    The model is mxort's own to change. ``name`` is what messages call it. ``digest``: that of its files, where somebody
    is at it already.
    """

    model: ir.Model
    name: str
    nbytes: int
    path: Path | None = None
    data_files: tuple[Path, ...] = ()
    digest: Future[str] | None = None

    @cached_property
    def sha256(self) -> str:
        """Of the model file and its data files, read when first asked for; "" for a model in memory."""
        if self.path is None:
            return ""
        return self.digest.result() if self.digest else sha256_of((self.path, *self.data_files))


def load(path: str | os.PathLike[str]) -> Source:
    """Opens an ONNX file; external data is mapped when it is read, not before.

    Raises MxortError for a file that is missing, no ONNX, damaged, or short of external data.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MxortError(f"{path}: cannot read: {error.strerror or error}") from None
    proto = _parse(data, str(path))
    nbytes = len(data)
    del data
    model = _to_ir(proto, str(path))
    data_files = _attach_external_data(model, file, str(path))
    _check(model, str(path))
    nbytes += sum(data_file.stat().st_size for data_file in data_files)
    normalise_model(model)
    return Source(model, str(path), nbytes, file, data_files)


def from_memory(model: onnx.ModelProto | ir.Model) -> Source:
    """A model in memory, which is not changed. Raises MxortError if it is damaged."""
    name = "<model in memory>"
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        copy = _to_ir(proto, name)
        data_files = _attach_external_data(
            copy, Path("model.onnx"), name
        )  # relative to the working directory
    else:
        copy = model.clone()
        data_files = _attach_external_data(copy, None, name)
    _check(copy, name)
    normalise_model(copy)
    return Source(copy, name, size_of(model), None, data_files)


def size_of(model: onnx.ModelProto | ir.Model) -> int:
    """Bytes of a model in memory: a proto's without external data, an onnx_ir model's tensors with it."""
    if isinstance(model, onnx.ModelProto):
        return int(model.ByteSize())
    return sum(place.tensor.nbytes for place in tensors(model))


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as it is written."""
    proto = ir.to_proto(model)
    sparse_again(proto)
    return proto


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
    except google.protobuf.message.DecodeError:
        raise MxortError(
            f"{name}: not an ONNX model, or truncated (it cannot be parsed as protobuf)"
        ) from None
    if not proto.HasField("graph") or not proto.ir_version or not proto.opset_import:
        raise MxortError(f"{name}: not an ONNX model (no graph, IR version or opset in it)")
    return proto


def _to_ir(proto: onnx.ModelProto, name: str) -> ir.Model:
    if proto.training_info:
        raise MxortError(f"{name}: models with training information are not supported")
    normalise_proto(proto, name)
    try:
        return ir.from_proto(proto)
    except Exception as error:  # what a damaged file raises here is open-ended
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        raise MxortError(f"{name}: not a valid ONNX model: {first_line(cause)}") from None


def _check(model: ir.Model, name: str) -> None:
    for node in (node for body in bodies(model) for node in ir.traversal.RecursiveGraphIterator(body)):
        values = [v.name for v in (*node.inputs, *node.outputs) if v is not None]
        if not all(isinstance(text, str) for text in (node.name, node.op_type, node.domain, *values)):
            raise MxortError(f"{name}: not a valid ONNX model: a name in node {node.name!r} is not UTF-8")
    try:
        verify.check(model)
    except Exception as error:  # ValidationError, or what serialising a damaged model raises
        raise MxortError(f"{name}: not a valid ONNX model: {first_line(error)}") from None


def _attach_external_data(model: ir.Model, file: Path | None, name: str) -> tuple[Path, ...]:
    """Checks every tensor's size against its shape and points external ones at their resolved file.

    ``file`` is the model's path; None for an onnx_ir Model, whose tensors know their folder.
    """
    files: dict[Path, int] = {}
    for place in tensors(model):
        tensor = place.tensor
        label = f"{name}: tensor {tensor.name!r}"
        if tensor.dtype == ir.DataType.UNDEFINED or any(d < 0 for d in tensor.shape.numpy()):
            shape = list(tensor.shape.numpy())
            raise MxortError(f"{label} has the type {tensor.dtype.name} and the shape {shape}")
        if isinstance(tensor, ir.serde.TensorProtoTensor):
            _check_inline(tensor, label)
        elif isinstance(tensor, ir.ExternalTensor):
            if tensor.dtype == ir.DataType.STRING:
                raise MxortError(f"{label} has strings in external data, expected numbers")
            path = Path(tensor.path).resolve() if file is None else _data_path(tensor, file, label)
            if path not in files:
                try:
                    files[path] = path.stat().st_size
                except OSError as error:
                    raise MxortError(f"{label}: external data {path}: {error.strerror}") from None
            offset, length = tensor.offset or 0, tensor.nbytes
            if tensor.length not in (None, length):
                raise MxortError(f"{label} needs {length} bytes, its external data has {tensor.length}")
            if offset < 0 or offset + length > files[path]:
                raise MxortError(
                    f"{label} ends at byte {offset + length} of {path}, which has {files[path]} bytes"
                )
            place.put(
                ir.ExternalTensor(
                    str(path),
                    offset,
                    length,
                    tensor.dtype,
                    shape=tensor.shape,
                    name=tensor.name,
                    doc_string=tensor.doc_string,
                )
            )
    return tuple(files)


def _check_inline(tensor: ir.serde.TensorProtoTensor, label: str) -> None:
    proto = tensor.raw
    if not proto.HasField(
        "raw_data"
    ):  # one number per field: small, or the checker's copy is the least of it
        try:
            onnx.checker.check_tensor(proto)
        except onnx.checker.ValidationError as error:
            raise MxortError(f"{label}: {first_line(error)}") from None
    elif len(proto.raw_data) != tensor.nbytes:
        raise MxortError(f"{label} needs {tensor.nbytes} bytes, it has {len(proto.raw_data)}")


def _data_path(tensor: ir.ExternalTensor, file: Path, label: str) -> Path:
    """Where a tensor's data is: it must be in the model's folder, or in that of the file the model links to."""
    if isinstance(tensor.location, bytes):  # what protobuf gives for a string that is not UTF-8
        raise MxortError(f"{label} has its external data at {tensor.location!r}, which is not UTF-8")
    location = Path(tensor.location)
    folder = file.absolute().parent
    try:
        path = (folder / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise MxortError(f"{label} has its external data at {str(location)!r}: {error}") from None
    allowed = folder.resolve(), file.resolve().parent
    if not any(path != root and path.is_relative_to(root) for root in allowed):
        raise MxortError(f"{label} has its external data at {path}, expected a path inside {allowed[0]}")
    return path
