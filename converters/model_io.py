"""Reading models without loading their weights, and writing them so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import verify
from mxort.converters.walk import bodies, tensors
from mxort.errors import MxortError, first_line

SINGLE_FILE_BYTES = 1_500_000_000
"""Models up to this size are written as one file: protobuf ends at 2 GiB and needs a copy in memory."""

_EXTERNAL_TENSOR_BYTES = 1024
"""Smaller tensors stay in the model file, where shape inference finds them."""

_ALIGNMENT = 4096
"""Offset of tensors in the data file, so that runtimes which map pages need not copy."""


@dataclass(frozen=True)
class Source:
    """A loaded model. ``nbytes`` counts all its files; ``path`` is None for a model in memory.

    The model is mxort's own to change. ``name`` is what messages call it.
    """

    model: ir.Model
    name: str
    nbytes: int
    sha256: str
    path: Path | None = None
    data_files: tuple[Path, ...] = ()


def load(path: str | os.PathLike[str]) -> Source:
    """Opens an ONNX file; external data is mapped when it is read, not before.

    Raises MxortError for a file that is missing, no ONNX, damaged, or short of external data.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MxortError(f"{path}: cannot read: {error.strerror or error}") from None
    digest = hashlib.sha256(data)
    proto = _parse(data, str(path))
    nbytes = len(data)
    del data
    model = _to_ir(proto, str(path))
    data_files = _attach_external_data(model, file, str(path))
    _check(model, str(path))
    for data_file in data_files:
        nbytes += data_file.stat().st_size
        with data_file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return Source(model, str(path), nbytes, digest.hexdigest(), file, data_files)


def from_memory(model: onnx.ModelProto | ir.Model) -> Source:
    """A model in memory, which is not changed. Raises MxortError if it is damaged."""
    name = "<model in memory>"
    if isinstance(model, onnx.ModelProto):
        copy = _to_ir(model, name)
        data_files = _attach_external_data(
            copy, Path("model.onnx"), name
        )  # relative to the working directory
    else:
        copy = model.clone()
        data_files = _attach_external_data(copy, None, name)
    _check(copy, name)
    return Source(copy, name, size_of(model), "", None, data_files)


def size_of(model: onnx.ModelProto | ir.Model) -> int:
    """Bytes of a model in memory: a proto's without external data, an onnx_ir model's tensors with it."""
    if isinstance(model, onnx.ModelProto):
        return int(model.ByteSize())
    return sum(place.tensor.nbytes for place in tensors(model))


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
    if proto.graph.sparse_initializer:
        raise MxortError(f"{name}: sparse initializers are not supported")
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


class StagedOutput:
    """A model file, with its data file if it has one: both appear at their place on :meth:`commit`, or neither.

    A context manager. Everything is written into a temporary folder beside the target, which leaving the
    block removes; :meth:`commit` synchronises the files to disk and renames them.
    """

    def __init__(self, path: str | os.PathLike[str], source: Source, external: bool) -> None:
        self.path = Path(path)
        self.data_path = self.path.with_name(self.path.name + ".data")
        self._external = external
        self._data: BinaryIO | None = None
        self._staging: Path | None = None
        self._refuse_bad_target(source)

    def _refuse_bad_target(self, source: Source) -> None:
        if not self.path.parent.is_dir():
            raise MxortError(f"{self.path}: cannot write: the folder {self.path.parent} does not exist")
        inputs = [source.path, *source.data_files] if source.path else [*source.data_files]
        for target in (self.path, self.data_path):
            if target.exists() and not target.is_file():
                raise MxortError(f"{target}: cannot write: it exists and is no regular file")
            if any(target.exists() and target.samefile(file) for file in inputs):
                raise MxortError(f"{self.path}: the output would overwrite the input {target}")

    def __enter__(self) -> StagedOutput:
        with self._writing():
            self._staging = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
            if self._external:
                self._data = self._staged(self.data_path).open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._data is not None:
            with contextlib.suppress(OSError):  # closing flushes: a full disk complains again
                self._data.close()
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MxortError(f"{self.path}: cannot write: {error.strerror or error}") from None

    def _staged(self, path: Path) -> Path:
        assert self._staging is not None, "used outside of its with block"
        return self._staging / path.name

    @property
    def staged_path(self) -> Path:
        """Where the model file is before :meth:`commit`."""
        return self._staged(self.path)

    def put(self, array: NDArray[Any]) -> ir.TensorProtocol:
        """Stores a packed tensor: at once in the data file if there is one, else in memory."""
        tensor = ir.Tensor(array)
        return self._append(tensor) if self._goes_out(tensor) else tensor

    def _goes_out(self, tensor: ir.TensorProtocol) -> bool:
        return (
            self._data is not None
            and tensor.dtype != ir.DataType.STRING
            and tensor.nbytes >= _EXTERNAL_TENSOR_BYTES
        )

    def _append(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        assert self._data is not None
        with self._writing():
            self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
            offset = self._data.tell()
            if isinstance(tensor, ir.Tensor):
                self._data.write(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
            else:
                _copy(tensor, self._data)
        return ir.ExternalTensor(
            self.data_path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=self._staged(self.path).parent,
        )

    def write(self, model: ir.Model) -> None:
        """Writes the model into the staging folder. Raises MxortError if that cannot be done."""
        if self._data is None and size_of(model) > SINGLE_FILE_BYTES:
            with self._writing():
                self._data = self._staged(self.data_path).open("wb")
        moved: dict[int, ir.ExternalTensor] = {}
        kept: list[ir.TensorProtocol] = []  # alive until the end, so that ids stay unique
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or not self._goes_out(tensor) or self._is_ours(tensor):
                    continue
                kept.append(tensor)
                if id(tensor) not in moved:
                    moved[id(tensor)] = self._append(tensor)
                value.const_value = moved[id(tensor)]
        for place in tensors(model):
            if isinstance(place.tensor, ir.ExternalTensor) and not self._is_ours(place.tensor):
                place.put(_in_memory(place.tensor))
        proto = ir.to_proto(model)
        with self._writing():
            self.staged_path.write_bytes(proto.SerializeToString())
            if self._data is not None:
                self._data.flush()

    def _is_ours(self, tensor: ir.TensorProtocol) -> bool:
        return isinstance(tensor, ir.ExternalTensor) and tensor.base_dir == self._staged(self.path).parent

    def _set_aside(self, path: Path) -> Path | None:
        """Keeps a file that is about to be replaced, under another name, until the block is left."""
        if not os.path.lexists(path):
            return None
        backup = self._staged(path).with_suffix(".old")
        try:
            os.link(path, backup, follow_symlinks=False)
        except OSError:  # a file system without hard links: the target is absent for a moment
            path.rename(backup)
        return backup

    def commit(self) -> int:
        """Puts the written files in their place and returns their bytes; on failure the old files are back."""
        files = [self.path] if self._data is None else [self.data_path, self.path]
        undo: list[tuple[Path, Path | None]] = []
        with self._writing():
            if self._data is not None:
                self._data.close()
            for path in files:
                _synchronise(self._staged(path))
            nbytes = sum(self._staged(path).stat().st_size for path in files)
            try:
                for path in files:
                    undo.append((path, self._set_aside(path)))
                    self._staged(path).replace(path)
            except OSError:
                for path, backup in reversed(undo):
                    with contextlib.suppress(OSError):
                        backup.replace(path) if backup is not None else path.unlink(missing_ok=True)
                raise
            _synchronise(self.path.parent)
        return nbytes


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    array = tensor.numpy().copy()
    tensor.release()
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _copy(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Writes a tensor's bytes; those of external data go from file to file inside the kernel where it can."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
