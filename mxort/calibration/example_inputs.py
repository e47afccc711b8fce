"""Model inputs for compare and bench: from an .npz file, or generated so that a transformer accepts them.

Generated inputs are reproducible (a seed) and modest: one row, 32 tokens, an empty KV cache, masks of ones,
token ids below the size of the embedding table they are looked up in, everything else standard normal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import functions
from mxort.errors import MxortError

Inputs = dict[str, NDArray[np.generic]]
"""Input name -> array."""

InputSource = str | os.PathLike[str] | Mapping[str, NDArray[np.generic]]
"""Arrays by input name, or the path of an .npz file of them."""

_SEQUENCE = re.compile(r"seq|len|token|time", re.IGNORECASE)
_PAST = re.compile(r"past", re.IGNORECASE)
_TOTAL = re.compile(r"total", re.IGNORECASE)  # past + sequence

_DIM_SIZES = (
    (_PAST, 0),
    (re.compile(r"batch", re.IGNORECASE), 1),
    (_SEQUENCE, 32),
    (re.compile(r"height|width", re.IGNORECASE), 224),
    (re.compile(r"channel", re.IGNORECASE), 3),
)
"""Size of a symbolic dimension by its name, first match first; ``_UNKNOWN_SIZES`` where nothing matches."""

_UNKNOWN_SIZES = (1, 16)  # a first axis is most often a batch

_CACHE_OPERANDS, _CACHE_AXIS = (3, 4), 2
"""Operands past_key and past_value of GroupQueryAttention [batch, heads, positions, head size]; their positions."""

_TABLE_OPERAND = {
    ("Gather", 1): 0,
    ("GatherBlockQuantized", 1): 0,
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
}
"""(op type, input that holds indices) -> input that holds the table."""

_MADE_UP = "its inputs were made up: --inputs FILE.npz gives others, --dim NAME=SIZE other sizes"

_SHAPE_OPS = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand"}
"""Operators whose first output holds the values of their first input."""


def inputs_for(
    model: ir.Model,
    name: str,
    source: InputSource | None,
    *,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
) -> Inputs:
    """Inputs of ``model`` (called ``name`` in errors) from ``source``, or generated where there is none.

    Raises MxortError for a source that cannot be read, does not fit, or cannot be made up.
    """
    if source is None:
        return generate_inputs(model, name, seed=seed, dims=dims)
    inputs = load_inputs(source)
    check_inputs(inputs, model, name)
    return inputs


def hint(source: InputSource | None) -> str:
    """What to add to a complaint about inputs from ``source``: where there is none, that they were made up."""
    return "" if source is not None else f" ({_MADE_UP})"


def load_inputs(source: InputSource) -> Inputs:
    """Inputs from a mapping or an .npz file of named arrays. Raises MxortError for anything else."""
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise MxortError(f"{path}: no such file") from None
    except Exception as error:  # numpy and zipfile raise half a dozen types for a broken archive
        raise MxortError(f"{path}: not an .npz file of arrays ({error})") from error


def check_inputs(inputs: Inputs, model: ir.Model, name: str) -> None:
    """Raises MxortError unless ``inputs`` have the names, dtypes and shapes that ``model`` takes."""
    declared = {_name(value): value for value in _inputs(model)}
    if missing := sorted(declared.keys() - inputs.keys()):
        raise MxortError(f"{name}: no array for input {', '.join(missing)}")
    if unknown := sorted(inputs.keys() - declared.keys()):
        raise MxortError(f"{name}: has no input {', '.join(unknown)} (it has: {', '.join(declared)})")
    for key, value in declared.items():
        array = inputs[key]
        if value.dtype is not None and array.dtype != value.dtype.numpy():
            raise MxortError(f"{name}: input {key} is {value.dtype.numpy()}, got an array of {array.dtype}")
        if value.shape is not None and not _fits(array.shape, value.shape):
            raise MxortError(f"{name}: input {key} has shape {list(value.shape)}, got {list(array.shape)}")


def generate_inputs(
    model: ir.Model,
    name: str,
    *,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    given: Collection[str] = (),
) -> Inputs:
    """One array for each input of ``model`` (called ``name`` in errors) that is not ``given``.

    ``dims`` sets symbolic dimensions by name. Raises MxortError for a name that no input has, and for an
    input that cannot be made up (a string, a type numpy lacks, an unknown rank).
    """
    values = list(_inputs(model))
    sizes = _DimSizes(dict(dims or {}))
    _check_dims(sizes.given, values, name)
    rng = np.random.default_rng(seed)
    return {_name(value): _generate(value, sizes, rng, name) for value in values if _name(value) not in given}


def _generate(
    value: ir.Value, sizes: _DimSizes, rng: np.random.Generator, model_name: str
) -> NDArray[np.generic]:
    name = _name(value)
    if value.dtype is None or value.shape is None:
        raise MxortError(f"{model_name}: input {name} has no type or rank; give the inputs")
    dtype = value.dtype
    shape = [
        dim if _is_fixed(dim) else _symbolic_size(value, axis, _symbol(dim), sizes)
        for axis, dim in enumerate(value.shape)
    ]
    if window := cache_window(value):
        shape[_CACHE_AXIS] = max(window, shape[_CACHE_AXIS])
    if dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return rng.standard_normal(shape).astype(dtype.numpy())
    if dtype == ir.DataType.BOOL:
        return np.full(shape, "use_cache" not in name, np.bool_)
    if not dtype.is_integer():
        raise MxortError(
            f"{model_name}: cannot make up a {dtype.name.lower()} for input {name}; give the inputs"
        )
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype.numpy())
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype.numpy())
    rows = None if "mask" in name else table_rows(value)
    if rows is None:
        return np.ones(shape, dtype.numpy())
    return rng.integers(0, rows, shape).astype(dtype.numpy())


class _DimSizes:
    """Sizes of symbolic dimensions: given ones first, then by what the name says."""

    def __init__(self, given: dict[str, int]) -> None:
        self.given = given

    def size(self, symbol: str | None, axis: int) -> int:
        if symbol is None:
            return _UNKNOWN_SIZES[min(axis, 1)]
        if symbol in self.given:
            return self.given[symbol]
        if symbol.isdigit():  # a term of "past_sequence_length + 1"
            return int(symbol)
        if "+" in symbol:
            return sum(self.size(term.strip(), axis) for term in symbol.split("+"))
        if _TOTAL.search(symbol):
            return self._like(_PAST) + self._like(_SEQUENCE)
        for pattern, size in _DIM_SIZES:
            if pattern.search(symbol):
                return size
        return _UNKNOWN_SIZES[min(axis, 1)]

    def _like(self, pattern: re.Pattern[str]) -> int:
        """A given size whose name is of this kind (past_sequence_length: past), else the kind's default."""
        for symbol, size in self.given.items():
            kind = next((p for p in (_TOTAL, _PAST, _SEQUENCE) if p.search(symbol)), None)
            if kind is pattern:
                return size
        return dict(_DIM_SIZES)[pattern]


def _symbolic_size(value: ir.Value, axis: int, symbol: str | None, sizes: _DimSizes) -> int:
    if symbol not in sizes.given and value.shape is not None and axis == len(value.shape) - 1:
        head_size = _attention_head_size(value)
        if head_size is not None:
            return head_size
    return sizes.size(symbol, axis)


def _attention_head_size(value: ir.Value) -> int | None:
    """Last axis of a KV-cache input, which some exporters leave symbolic: read from the rotary table."""
    for node, index in _uses(value):
        if node.op_type != "GroupQueryAttention":
            continue
        caches, table = ((1, 2), 5) if node.domain == functions.DOMAIN else (_CACHE_OPERANDS, 7)
        if index in caches and len(node.inputs) > table:
            cosines = node.inputs[table]  # cos_cache [max_position, head_size / 2]
            if cosines is not None and cosines.const_value is not None:
                return 2 * cosines.const_value.shape.numpy()[1]
    return None


def cache_window(value: ir.Value) -> int:
    """Positions that a KV-cache input must have room for: the window of an attention that slides over it; 0 for others.

    Such a cache (sliding_window_cache of GroupQueryAttention) keeps its size, whatever of it is filled.
    """
    if value.shape is None or len(value.shape) <= _CACHE_AXIS:
        return 0
    return max(
        (
            node.attributes.get_int("local_window_size", 0)
            for source in _copies(value)
            for node, index in _uses(source)
            if node.op_type == "GroupQueryAttention"
            and index in _CACHE_OPERANDS
            and node.attributes.get_int("sliding_window_cache", 0) != 0
        ),
        default=0,
    )


def sliding_caches(model: ir.Model) -> frozenset[str]:
    """Names of the inputs that are such caches."""
    return frozenset(_name(value) for value in _inputs(model) if cache_window(value))


def _copies(value: ir.Value) -> Iterator[ir.Value]:
    """The value, and what it is cast to."""
    yield value
    for node, _ in _uses(value):
        if node.op_type in ("Cast", "Identity"):
            yield from _copies(node.outputs[0])


def table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest table that ``value`` indexes, also through shape-only operators, or None."""
    sizes: list[int] = []
    pending, seen = [value], {value}
    while pending:
        for node, index in _uses(pending.pop()):
            if node.op_type in _SHAPE_OPS and index == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
            operand = _TABLE_OPERAND.get((node.op_type, index))
            table = None if operand is None else node.inputs[operand]
            if table is not None and (shape := _static_shape(table)):
                sizes.append(shape[node.attributes.get_int("axis", 0)])
    return min(sizes, default=None)


def _static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Shape of a constant or of a transposed constant."""
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    shape = _static_shape(node.inputs[0])
    perm = node.attributes.get_ints("perm", None)
    if shape is None:
        return None
    return tuple(shape[i] for i in perm) if perm else shape[::-1]


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    return ((usage.node, usage.idx) for usage in value.uses())


def _inputs(model: ir.Model) -> Iterator[ir.Value]:
    """Graph inputs that the caller must feed: older models list their initializers among the inputs."""
    return (value for value in model.graph.inputs if _name(value) not in model.graph.initializers)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _is_fixed(dim: int | ir.SymbolicDim) -> TypeGuard[int]:
    """Whether a dimension is a size: some exporters write a dynamic one as -1, which onnxruntime takes."""
    return isinstance(dim, int) and dim >= 0


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def _fits(shape: tuple[int, ...], declared: ir.Shape) -> bool:
    return len(shape) == len(declared) and all(
        not _is_fixed(want) or want == got for want, got in zip(declared, shape, strict=True)
    )


def _check_dims(given: Mapping[str, int], values: list[ir.Value], name: str) -> None:
    known: set[str] = set()
    for value in values:
        for dim in value.shape or ():
            text = _symbol(dim)
            known.update(term.strip() for term in (text or "").split("+") if term.strip())
            known.update([text] if text else [])
    for symbol, size in given.items():
        if symbol not in known:
            raise MxortError(
                f"{name}: has no symbolic dimension {symbol!r} (it has: {', '.join(sorted(known))})"
            )
        if size < 0:
            raise MxortError(f"{name}: dimension {symbol} cannot be {size}")
