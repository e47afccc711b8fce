"""Constant arrays: numbers that stand in the file, and what a model makes of them before it meets its inputs.

Nothing is read before :meth:`Constant.array` is called, and what is a view of the file then stays one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""What the operator computes in, and so what a weight may be."""

SPARSE = "mxort.sparse"
"""Metadata key of tensors that are sparse in the file, while the model is in memory."""

_CACHE_LINE_BYTES = 64
_COMPARED_ROWS = 4096

Step = tuple[str, tuple[Any, ...]]
"""A view of an array: ("T", permutation), ("R", shape) or ("S", a (start, stop, step) for each axis)."""


class NotConstantError(Exception):
    """Says, as a phrase whose subject is the value, why it is no constant that mxort reads.

    ``computed`` is set where the value depends on what the model is fed with.
    """

    def __init__(self, reason: str, computed: bool = False) -> None:
        super().__init__(reason)
        self.computed = computed


@dataclass(frozen=True)
class Stored:
    """An array of the file. ``holder`` is what has it in the model, and so what makes it the same array."""

    root: ir.Value
    tensor: ir.TensorProtocol
    holder: object = field(repr=False)

    @property
    def dtype(self) -> ir.DataType:
        return self.tensor.dtype

    @property
    def identity(self) -> tuple[Any, ...]:
        return (id(self.holder),)

    @property
    def roots(self) -> tuple[Stored, ...]:
        return (self,)

    def array(self) -> NDArray[Any]:
        """The numbers; those of a lazy weight in the type that its checkpoint has them in."""
        tensor = self.tensor
        if (stored := getattr(tensor, "stored", None)) is not None:
            lazy: NDArray[Any] = stored()
            return lazy
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
        return tensor.numpy()


@dataclass(frozen=True)
class Computed:
    """An array that ``operator`` computes from others, whenever it is read."""

    operator: str
    operands: tuple[Constant, ...]
    parameters: tuple[int, ...]
    dtype: ir.DataType
    run: Callable[..., NDArray[Any]] = field(repr=False, compare=False)

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.operator, self.parameters, *(operand.identity for operand in self.operands))

    @property
    def roots(self) -> tuple[Stored, ...]:
        return tuple(root for operand in self.operands for root in operand.source.roots)

    def array(self) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return self.run(*(operand.numpy() for operand in self.operands))


@dataclass(frozen=True)
class Constant:
    """A constant array: ``source`` after ``steps``, cast to each of ``casts``.

    ``name`` is the initializer's or, where a node picks a part of one or computes with it, that of the result:
    different numbers have different names.
    """

    source: Stored | Computed
    shape: tuple[int, ...]
    name: str
    steps: tuple[Step, ...] = ()
    casts: tuple[ir.DataType, ...] = ()

    @property
    def dtype(self) -> ir.DataType:
        return self.casts[-1] if self.casts else self.source.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What the array takes in the type that it is stored in; bytes of the file, where it is no computed one."""
        return math.ceil(self.size * self.source.dtype.itemsize)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for constants that are one array for certain; equal numbers elsewhere are not noticed."""
        return (self.source.identity, self.steps, self.casts)

    def transposed(self) -> Constant:
        """The 2-D constant seen as its transpose."""
        return self.permuted((1, 0))

    def permuted(self, axes: tuple[int, ...]) -> Constant:
        """Its axes in another order. Two transpositions that undo each other vanish: equal arrays have equal steps."""
        shape = tuple(self.shape[axis] for axis in axes)
        undone = bool(self.steps) and ("T", axes) == self.steps[-1] == ("T", (1, 0))
        return replace(self, shape=shape, steps=self.steps[:-1] if undone else (*self.steps, ("T", axes)))

    def reshaped(self, shape: tuple[int, ...]) -> Constant:
        if shape == self.shape:
            return self
        return replace(self, shape=shape, steps=(*self.steps, ("R", shape)))

    def sliced(self, ranges: tuple[range, ...], name: str) -> Constant:
        """The elements at ``ranges``, one of each axis; ``name`` is the part's, where it is less than all."""
        shape = tuple(len(r) for r in ranges)
        if all(r == range(d) for r, d in zip(ranges, self.shape, strict=True)):
            return self
        # Beyond the first element on the way down there is no index: None.
        bounds = tuple((r.start, r.stop if r.stop >= 0 else None, r.step) for r in ranges)
        return replace(self, shape=shape, name=name, steps=(*self.steps, ("S", bounds)))

    def array(self) -> NDArray[Any]:
        """The array before its casts. External data is a view of the file, mapped while the view lives."""
        array = self.source.array()
        for step, numbers in self.steps:
            if step == "T":
                array = array.transpose(numbers)
            elif step == "R":
                array = array.reshape(numbers)
            else:
                array = array[tuple(slice(*bounds) for bounds in numbers)]
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
