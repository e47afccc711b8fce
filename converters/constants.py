"""Constant operands: where a value's numbers come from, and reading them without holding a second copy.

A constant is an initializer (of the graph or of an outer scope) or a ``Constant`` node, seen through
``Identity``, ``Transpose``, ``Reshape`` and float-to-float ``Cast`` nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.normalise import SPARSE

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""What the operator computes in, and so what a weight may be."""

_CACHE_LINE_BYTES = 64
_COMPARED_ROWS = 4096
_CONSTANT_INPUTS_BEFORE_IR = 4
"""Before IR version 4 every initializer was listed as a graph input too, and constant all the same."""


class NotConstantError(Exception):
    """Says, as a phrase whose subject is the value, why it is no constant that mxort reads.

    ``computed`` is set where the value depends on what the model is fed with.
    """

    def __init__(self, reason: str, computed: bool = False) -> None:
        super().__init__(reason)
        self.computed = computed


@dataclass(frozen=True)
class Constant:
    """A constant array: ``tensor`` after ``steps`` ("T" permutation, "R" shape), cast to each of ``casts``.

    ``root`` is the initializer or the output of the Constant node that holds ``tensor``.
    """

    root: ir.Value
    tensor: ir.TensorProtocol
    shape: tuple[int, ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()
    casts: tuple[ir.DataType, ...] = ()

    @property
    def dtype(self) -> ir.DataType:
        return self.casts[-1] if self.casts else self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def name(self) -> str:
        return self.root.name or ""

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for constants that are one array for certain; equal numbers elsewhere are not noticed."""
        return (id(self.tensor), self.steps, self.casts)

    def transposed(self) -> Constant:
        """The 2-D constant seen as its transpose."""
        return replace(self, shape=self.shape[::-1], steps=_add(self.steps, ("T", (1, 0))))

    def reshaped(self, shape: tuple[int, ...]) -> Constant:
        return replace(self, shape=shape, steps=_add(self.steps, ("R", shape)))

    def array(self) -> NDArray[Any]:
        """The array before its casts. External data is a view of the file, mapped while the view lives."""
        tensor = self.tensor
        if isinstance(tensor, ir.ExternalTensor):  # a fresh one: the original would keep its mapping for ever
            tensor = ir.ExternalTensor(
                tensor.location,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=tensor.base_dir,
            )
        array = tensor.numpy()
        for step, numbers in self.steps:
            array = array.transpose(numbers) if step == "T" else array.reshape(numbers)
        return array

    def convert(self, part: NDArray[Any]) -> NDArray[Any]:
        """Applies the casts to a part of what :meth:`array` gives."""
        for dtype in self.casts:
            with np.errstate(over="ignore"):  # beyond the narrower type: infinity, as Cast gives
                part = part.astype(dtype.numpy())
        return part

    def numpy(self) -> NDArray[Any]:
        """The whole array, in memory of its own."""
        return np.array(self.convert(self.array()))


def same(a: Constant, b: Constant) -> bool:
    """Whether two constants are equal; copies are read, up to the first chunk of rows that differs."""
    if a.identity == b.identity:
        return a.shape == b.shape
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    left, right = a.array(), b.array()
    return all(
        np.array_equal(a.convert(left[i : i + _COMPARED_ROWS]), b.convert(right[i : i + _COMPARED_ROWS]))
        for i in range(0, len(left), _COMPARED_ROWS)
    )


def padded_rows(
    constant: Constant, array: NDArray[Any], start: int, stop: int, width: int
) -> NDArray[np.float32]:
    """Rows start:stop of the 2-D ``array`` that ``constant.array()`` gave, as float32 [stop - start, width].

    Filled up with zeros beyond the array's own columns. Column-major sources are copied by tiles of one cache
    line, five times faster than numpy's strided copy.
    """
    part = array[start:stop]
    columns = part.shape[1]
    rows = np.zeros((len(part), width), np.float32) if columns < width else np.empty(part.shape, np.float32)
    row_major = part.strides[1] == part.itemsize
    tile = columns if row_major else max(1, _CACHE_LINE_BYTES // part.itemsize)
    for k in range(0, columns, max(tile, 1)):
        rows[:, k : k + tile][:, : columns - k] = constant.convert(part[:, k : k + tile])
    return rows


def resolve(value: ir.Value | None, ir_version: int) -> Constant:
    """The constant behind ``value``. Raises NotConstantError.

    ``ir_version`` is the model's: it decides whether an initializer that is a graph input can be overridden.
    """
    if value is None:
        raise NotConstantError("is absent")
    path: list[ir.Node] = []
    while (node := value.producer()) is not None and node.domain == "" and node.op_type in _STEPS:
        path.append(node)
        if (value := node.inputs[0]) is None:
            raise NotConstantError("is absent")
    tensor = _tensor(value, ir_version)
    if SPARSE in tensor.metadata_props:
        raise NotConstantError("is stored sparse, which takes fewer bytes")
    constant = Constant(value, tensor, tuple(int(d) for d in tensor.shape.numpy()))
    for node in reversed(path):
        constant = _STEPS[node.op_type](constant, node, ir_version)
    return constant


def _tensor(value: ir.Value, ir_version: int) -> ir.TensorProtocol:
    node = value.producer()
    if node is None:
        return _initializer(value, ir_version)
    if node.domain == "" and node.op_type == "Constant":
        return _constant_node(node)
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        raise NotConstantError(f"is quantised already ({node.op_type})")
    if _depends_on_input(value, ir_version):
        raise NotConstantError(f"is computed by {node.op_type}", computed=True)
    raise NotConstantError(f"is computed from constants by {node.op_type} (fold them first)")


def _initializer(value: ir.Value, ir_version: int) -> ir.TensorProtocol:
    if not value.is_initializer() or value.const_value is None:
        raise NotConstantError("is not constant", computed=True)
    if value.is_graph_input() and ir_version >= _CONSTANT_INPUTS_BEFORE_IR:
        raise NotConstantError("is the default of a graph input, which a caller may override")
    return value.const_value


def _constant_node(node: ir.Node) -> ir.TensorProtocol:
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None:
        raise NotConstantError("is a Constant without a value")
    if attribute.is_ref():
        raise NotConstantError("is an attribute of a function")
    if attribute.type == ir.AttributeType.TENSOR:
        tensor: ir.TensorProtocol = attribute.value
        return tensor
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return ir.tensor(np.asarray(attribute.value, np.float32))
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return ir.tensor(np.asarray(attribute.value, np.int64))
    raise NotConstantError(f"is a Constant of type {attribute.type.name.lower()}")


def _depends_on_input(value: ir.Value, ir_version: int) -> bool:
    """Whether anything but constants goes into ``value``; nodes with subgraphs count as such."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        node = current.producer()
        if node is None:
            overridable = current.is_graph_input() and ir_version >= _CONSTANT_INPUTS_BEFORE_IR
            if not current.is_initializer() or overridable:
                return True
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return True
        for source in node.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
    return False


def _identity(constant: Constant, node: ir.Node, ir_version: int) -> Constant:
    return constant


def _transpose(constant: Constant, node: ir.Node, ir_version: int) -> Constant:
    rank = len(constant.shape)
    attribute = node.attributes.get("perm")
    perm = tuple(attribute.as_ints()) if attribute is not None else tuple(reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        raise NotConstantError(f"is transposed by {list(perm)}, which is no permutation of {rank} axes")
    shape = tuple(constant.shape[axis] for axis in perm)
    return replace(constant, shape=shape, steps=_add(constant.steps, ("T", perm)))


def _reshape(constant: Constant, node: ir.Node, ir_version: int) -> Constant:
    target = resolve(node.inputs[1], ir_version).numpy().reshape(-1).tolist()
    allow_zero = "allowzero" in node.attributes and node.attributes["allowzero"].as_int() != 0
    if not allow_zero:
        target = [
            constant.shape[i] if d == 0 and i < len(constant.shape) else d for i, d in enumerate(target)
        ]
    size = int(np.prod(constant.shape, dtype=np.int64))
    known = int(np.prod([d for d in target if d != -1], dtype=np.int64))
    shape = tuple(int(size // known if d == -1 and known else d) for d in target)
    if min(shape, default=0) < 0 or int(np.prod(shape, dtype=np.int64)) != size:
        raise NotConstantError(f"is reshaped from {list(constant.shape)} to {target}, which does not fit")
    return constant.reshaped(shape)


def _cast(constant: Constant, node: ir.Node, ir_version: int) -> Constant:
    target = ir.DataType(node.attributes["to"].as_int())
    if constant.dtype not in FLOAT_TYPES or target not in FLOAT_TYPES:
        raise NotConstantError(f"is cast from {constant.dtype.name} to {target.name}")
    return replace(constant, casts=(*constant.casts, target))


def _add(
    steps: tuple[tuple[str, tuple[int, ...]], ...], step: tuple[str, tuple[int, ...]]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Appends a step; transpositions that undo each other vanish: equal arrays have equal steps."""
    undone = steps and step == ("T", (1, 0)) == steps[-1]
    return steps[:-1] if undone else (*steps, step)


_STEPS = {"Identity": _identity, "Transpose": _transpose, "Reshape": _reshape, "Cast": _cast}
