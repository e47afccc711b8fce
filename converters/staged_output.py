"""Writing a model and its data so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import model_io
from mxort.converters.hashing import Follower
from mxort.converters.lazy_weights import LazyWeight
from mxort.converters.model_io import Source, size_of, to_proto
from mxort.converters.walk import tensors
from mxort.errors import MxortError

_EXTERNAL_TENSOR_BYTES = 1024
"""Smaller tensors stay in the model file, where shape inference finds them."""

_ALIGNMENT = 4096
"""Offset of tensors in the data file, so that runtimes which map pages need not copy."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the file system inside the block are about writing ``path``."""
    try:
        yield
    except OSError as error:
        raise MxortError(f"{path}: cannot write: {error.strerror or error}") from None


class StagedOutput:
    """A model file, with its data file if it has one: both appear at their place on :meth:`commit`, or neither.

    A context manager. Everything is written into a temporary folder beside the target, which leaving the
    block removes; :meth:`commit` synchronises the files to disk and renames them. The data file has a name made from
    its content (``model.onnx.1a2b3c4d.data``): until the model file is renamed the one before and its data are whole,
    and from then on the new ones, so that a process killed at any moment leaves one or the other.
    """

    def __init__(self, path: str | os.PathLike[str], source: Source, external: bool) -> None:
        self.path = Path(path)
        self.data_path = self.path.with_name(self.path.name + ".data")  # while it is written
        self._external = external
        self._data: BinaryIO | None = None
        self._follower: Follower | None = None
        self._staging: Path | None = None
        self._refuse_bad_target(source)

    def _refuse_bad_target(self, source: Source) -> None:
        if not self.path.parent.is_dir():
            raise MxortError(f"{self.path}: cannot write: the folder {self.path.parent} does not exist")
        if self.path.exists() and not self.path.is_file():
            raise MxortError(f"{self.path}: cannot write: it exists and is no regular file")
        self._inputs = [source.path, *source.data_files] if source.path else [*source.data_files]
        if self._is_input(self.path):
            raise MxortError(f"{self.path}: the output would overwrite the input {self.path}")

    def _is_input(self, path: Path) -> bool:
        return path.exists() and any(path.samefile(file) for file in self._inputs)

    def __enter__(self) -> StagedOutput:
        with writing(self.path):
            self._staging = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
            if self._external:
                self._open_data()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._follower is not None:
            self._follower.close()
        if self._data is not None:
            with contextlib.suppress(OSError):  # closing flushes: a full disk complains again
                self._data.close()
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _open_data(self) -> None:
        path = self._staged(self.data_path)
        self._data = path.open("wb")
        self._follower = Follower(path)

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
        with writing(self.path):
            self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
            offset = self._data.tell()
            if isinstance(tensor, ir.Tensor):
                self._data.write(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
            else:
                _copy(tensor, self._data)
            self._data.flush()  # calibration reads back what was stored, by a mapping of the file
            if self._follower is not None:
                self._follower.advance(self._data.tell())
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
        if self._data is None and size_of(model) > model_io.SINGLE_FILE_BYTES:
            with writing(self.path):
                self._open_data()
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
        self._name_data()
        for place in tensors(model):
            if isinstance(place.tensor, ir.ExternalTensor):
                ours = self._is_ours(place.tensor)
                place.put(self._renamed(place.tensor) if ours else _in_memory(place.tensor))
        proto = to_proto(model)
        with writing(self.path):
            self.staged_path.write_bytes(proto.SerializeToString())

    def _name_data(self) -> None:
        """Closes the data file and gives it the name of its content."""
        if self._data is None or self._follower is None:
            return
        with writing(self.path):
            self._data.flush()
            digest = self._follower.hexdigest(self._data.tell())
            self._data.close()
            named = self.path.with_name(f"{self.path.name}.{digest[:8]}.data")
            self._staged(self.data_path).rename(self._staged(named))
        self.data_path = named

    def _renamed(self, tensor: ir.ExternalTensor) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self.data_path.name,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=self._staged(self.path).parent,
        )

    def _is_ours(self, tensor: ir.TensorProtocol) -> bool:
        return isinstance(tensor, ir.ExternalTensor) and tensor.base_dir == self._staged(self.path).parent

    def commit(self) -> int:
        """Puts the written files in their place and returns their bytes; on failure the old files are as before."""
        files = [self.path] if self._data is None else [self.data_path, self.path]
        stale = self._data_of_before() - set(files)
        with writing(self.path):
            for path in files:
                synchronise(self._staged(path))
            nbytes = sum(self._staged(path).stat().st_size for path in files)
            new_data = self._data is not None and not self.data_path.exists()
            try:
                for path in files:
                    self._staged(path).replace(path)
            except OSError:
                if new_data:
                    self.data_path.unlink(missing_ok=True)
                raise
            synchronise(self.path.parent)
        for path in stale:
            if not self._is_input(path):
                with contextlib.suppress(OSError):
                    path.unlink()
        return nbytes

    def _data_of_before(self) -> set[Path]:
        """Data files that the model to be replaced reads, of those with names that conversions give."""
        try:
            before = onnx.load(self.path, load_external_data=False)
        except Exception:  # absent, or something else: then it has none
            return set()
        ours = re.compile(re.escape(self.path.name) + r"(\.[0-9a-f]{8})?\.data")
        held = [
            entry.value
            for t in before.graph.initializer
            for entry in t.external_data
            if entry.key == "location"
        ]
        return {self.path.with_name(name) for name in held if ours.fullmatch(name)}


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    array = tensor.numpy().copy()
    tensor.release()
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _copy(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Writes a tensor's bytes; those of external data go from file to file inside the kernel where it can."""
    if isinstance(tensor, ir.ExternalTensor | LazyWeight):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
