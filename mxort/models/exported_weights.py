"""The weights of an imported model under the checkpoint's names, and why some cannot be said in other formats."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from mxort.conversion.recipe import Recipe
from mxort.converters import functions
from mxort.converters.constants import NotConstantError
from mxort.converters.epilogue import FACTOR
from mxort.converters.metadata import conversions
from mxort.converters.model_io import Source
from mxort.converters.resolving import resolve
from mxort.errors import MxortError
from mxort.models import origin
from mxort.quantize import ALGORITHMS

_MXFP4 = "mxfp4"
_STACKS = (2, 4)
"""Where com.microsoft MoE has its weights."""

_INPUTS = 4
"""Of a product for each of its weights: codes, scales, multipliers, biases."""

Rows = NDArray[Any]


@dataclass
class Weight:
    """Rows of a matrix of the checkpoint by the row that each part begins at: (codes, scales), or (numbers,).

    ``experts``: the rows are those of a stack of so many matrices; 0: of one matrix.
    """

    parts: dict[int, tuple[Rows, ...]] = field(default_factory=dict)
    experts: int = 0

    @property
    def is_packed(self) -> bool:
        return len(next(iter(self.parts.values()))) > 1

    def columns(self, index: int) -> list[Rows]:
        """The codes (0), scales (1) or numbers (0) of all rows, in order."""
        return [self.parts[start][index] for start in sorted(self.parts)]


@dataclass(frozen=True)
class Weights:
    """``by_name``: the matrices. ``activation_format``: what the operands of the packed ones are rounded to."""

    by_name: Mapping[str, Weight]
    activation_format: str


def collect(source: Source) -> Weights:
    """Finds all of them. Raises MxortError for what only mxort's operators say, and for a model without names."""
    _refuse_smoothing(source)
    found: dict[str, Weight] = defaultdict(Weight)
    rounded: dict[str, str] = {}
    for node in source.model.graph.all_nodes():
        for names, operand in _named(source, node):
            parts = _packed(source, node, operand) if _holds_weight(node) else _float(source, node, operand)
            if len(parts) > 1:
                rounded.setdefault(_activation_format(node), node.name or "")
            _cut(source, node, found, parts, names)
    if not rounded:
        raise MxortError(f"{source.name}: has no weight in MXFP4 with a name of a checkpoint")
    if len(rounded) > 1:
        both = " and ".join(f"{name} ({node})" for name, node in sorted(rounded.items())[:2])
        raise MxortError(f"{source.name}: activations are rounded to {both}, expected one format")
    for name, weight in found.items():
        _check_whole(source, name, weight)
    return Weights(found, next(iter(rounded)))


def _refuse_smoothing(source: Source) -> None:
    """Raises MxortError where smoothing has changed norms, which are then not the checkpoint's."""
    for conversion in conversions(source.model.metadata_props):
        algorithm = Recipe.from_json(conversion.recipe).algorithm if conversion.recipe else ""
        if algorithm in ALGORITHMS and ALGORITHMS[algorithm].smooth:
            raise MxortError(
                f"{source.name}: algorithm {algorithm} has changed norms, expected one that does not"
            )


@dataclass(frozen=True)
class _Piece:
    """Rows of a node's weight: ``rows`` of them are those of the tensors ``names`` from row ``start`` on, in turn."""

    names: list[str]
    start: int
    rows: int


def _named(source: Source, node: ir.Node) -> Iterator[tuple[list[_Piece], int]]:
    """(the names, which of its weights) of each weight of a node. Raises MxortError where one has no name."""
    holds = _holds_weight(node)
    for operand in range(functions.operands_of(node.op_type) if holds and not _is_moe(node) else 1):
        prefix = f"{FACTOR}." * operand
        names, rows = (node.metadata_props.get(prefix + key) for key in (origin.NAMES, origin.ROWS))
        if names is not None and rows is not None:
            pieces = _pieces(source, node, names, rows)
            yield from _by_stack(source, node, pieces) if _is_moe(node) else ((pieces, operand),)
        elif holds:
            raise MxortError(f"{source.name}: node {node.name!r} does not name the tensors of its weight")


def _by_stack(source: Source, node: ir.Node, pieces: list[_Piece]) -> Iterator[tuple[list[_Piece], int]]:
    """A mixture of experts has one list of names for both of its stacks."""
    experts, rows, _ = _array(source, node, 2).shape
    at, total = 0, 0
    while at < len(pieces) and total < experts * rows:
        total += pieces[at].rows
        at += 1
    yield pieces[:at], 0
    yield pieces[at:], 1


def _pieces(source: Source, node: ir.Node, names: str, rows: str) -> list[_Piece]:
    """Of ``name``, ``name[start:stop]`` or ``name|name``. Raises MxortError."""
    found = []
    try:
        for piece, count in zip(json.loads(names), json.loads(rows), strict=True):
            name, bracket, bounds = piece.partition("[")
            first = int(bounds.partition(":")[0]) if bracket else 0
            found.append(_Piece(name.split(origin.IN_TURN), first, int(count)))
    except (ValueError, TypeError, AttributeError):
        raise MxortError(f"{source.name}: node {node.name!r}: its names of tensors are damaged") from None
    return found


def _is_moe(node: ir.Node) -> bool:
    return node.op_type in (functions.EXPERTS, functions.MOE)


def _holds_weight(node: ir.Node) -> bool:
    return node.domain == functions.DOMAIN and node.op_type in functions.WITH_WEIGHTS


def _activation_format(node: ir.Node) -> str:
    return (
        str(node.attributes["activation_format"].value) if "activation_format" in node.attributes else "none"
    )


def _packed(source: Source, node: ir.Node, operand: int) -> tuple[Rows, Rows]:
    """Codes and scales. Raises MxortError for a weight that has more to it."""
    label = f"{source.name}: node {node.name!r}"
    bits = (
        node.attributes[functions.EXPONENT_BITS].as_int() if functions.EXPONENT_BITS in node.attributes else 0
    )
    if (kind := functions.weight_format_of(node.op_type, bits)) != _MXFP4:
        hint = " (import with table_format float)" if node.op_type.startswith(functions.GATHER) else ""
        raise MxortError(f"{label} has weights in {kind}, expected {_MXFP4}{hint}")
    if "rotation" in node.attributes and (rotation := node.attributes["rotation"].as_int()) != 1:
        raise MxortError(f"{label} has rotation {rotation}, expected 1 (preset portable)")
    first = functions.first_weight(node.op_type) + _INPUTS * operand
    codes, scales, multipliers = (_array(source, node, first + i) for i in range(3))
    if (multipliers != 1).any():
        raise MxortError(f"{label} has a column_scale that is not 1, expected none (preset portable)")
    return codes, scales


def _float(source: Source, node: ir.Node, operand: int) -> tuple[Rows]:
    """The numbers of a float weight, [N, K]: a table's as they are, a product's transposed; of a stack [E, N, K]."""
    if _is_moe(node):
        return (_array(source, node, _STACKS[operand]),)
    for index, value in enumerate(node.inputs):
        if value is None or (index == 0 and node.op_type != "Gather"):
            continue
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose":
            return (_array(source, producer, 0),)
        if value.is_initializer():
            array = _array(source, node, index)
            return (array if node.op_type == "Gather" else array.T,)
    raise MxortError(f"{source.name}: node {node.name!r} names tensors of a checkpoint and has no weight")


def _array(source: Source, node: ir.Node, at: int) -> Rows:
    try:
        return resolve(node.inputs[at], source.model.ir_version).array()
    except NotConstantError as error:
        raise MxortError(f"{source.name}: node {node.name!r}: input {at} {error}") from None


def _cut(
    source: Source, node: ir.Node, found: dict[str, Weight], weight: tuple[Rows, ...], pieces: list[_Piece]
) -> None:
    """Gives the rows of a node's weight to the tensors that they are of."""
    stack = len(weight[0]) if weight[0].ndim > 2 else 0
    weight = tuple(part.reshape(-1, part.shape[-1]) for part in weight)
    first, count = 0, len(weight[0])
    for piece in pieces:
        turns = len(piece.names)
        for turn, name in enumerate(piece.names):
            rows = tuple(part[first + turn : first + piece.rows : turns] for part in weight)
            found[name].parts.setdefault(piece.start, rows)
            found[name].experts = stack if stack and turns == 1 and piece.rows == count else 0
        first += piece.rows
    if first != count:
        raise MxortError(f"{source.name}: node {node.name!r} has {count} rows, its names {first}")


def _check_whole(source: Source, name: str, weight: Weight) -> None:
    """Raises MxortError for a tensor with a gap, or of two kinds."""
    expected = 0
    for start in sorted(weight.parts):
        if start != expected:
            raise MxortError(f"{source.name}: tensor {name!r} lacks rows {expected} to {start}")
        expected += len(weight.parts[start][0])
    if len({len(part) for part in weight.parts.values()}) > 1:
        raise MxortError(f"{source.name}: tensor {name!r} is MXFP4 in some rows and float in others")
