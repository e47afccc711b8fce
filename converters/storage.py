"""What of a model's stored bytes goes when sites are converted, what comes, and who reads what stays.

The one calculation behind inspect's estimate, the choice of a data file, and the reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters import functions
from mxort.converters.opset import opset_of
from mxort.converters.resolving import depends_on_input, is_step, leads_from_constants
from mxort.converters.sites import Site
from mxort.converters.walk import TensorPlace, bodies, tensors
from mxort.formats import packed_bytes

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Storage:
    """``freed``: bytes of constants that nothing reads any more. ``added``: bytes of what takes their place.

    ``tensors``: bytes of all constants as they were. ``read_by``: node -> bytes of the constants that stay for it, one
    that several nodes read under the first, a product before others; None: those that nobody reads.
    ``float_too``: id of a converted site -> nodes that go on reading its weight as it was.
    """

    freed: int
    added: int
    tensors: int
    read_by: dict[ir.Node | None, int]
    float_too: dict[str, tuple[ir.Node, ...]]

    def size(self, nbytes: int) -> int:
        """About what a model of so many bytes takes after the conversion."""
        return nbytes - self.freed + self.added


def after(model: ir.Model, sites: Sequence[Site]) -> Storage:
    """Converts nothing: works out what converting those of ``sites`` that are not skipped would do to ``model``."""
    converted = [site for site in sites if not site.skip and site.weight is not None]
    gone, dead = _gone(converted)
    finder = _Readers(gone, _folded(model))
    freed = total = 0
    read_by: Counter[ir.Node | None] = Counter()
    products = {s.node for s in sites if s.weight is not None and s.node.op_type != "Gather"}
    preferred = [products, {s.node for s in sites}]
    for place in tensors(model):
        kept = getattr(place.tensor, "source_bytes", None)  # a lazy weight: what it takes in its file
        nbytes = place.tensor.nbytes if kept is None else kept
        total += nbytes
        if place.node in gone or place.value in dead:
            freed += nbytes
        else:
            read_by[finder.first(place, preferred)] += nbytes
    float_too = {
        site.id: tuple(dict.fromkeys(reader for root in _roots(site) for reader in finder.of(root)))
        for site in converted
    }
    return Storage(
        freed,
        _added(model, converted),
        total,
        dict(read_by),
        {name: readers for name, readers in float_too.items() if readers},
    )


def _added(model: ir.Model, converted: Iterable[Site]) -> int:
    weights: dict[tuple[object, ...], int] = {}
    vectors: dict[tuple[object, ...], int] = {}
    operators: set[str] = set()
    for site in converted:
        assert site.weight is not None
        key = (site.weight.identity, site.weight_format)
        weights[key] = packed_bytes(site.N, site.K, site.weight_format)
        vectors["column_scale", key] = site.N * _FLOAT_BYTES
        gather = site.node.op_type == "Gather"
        if not gather:
            bias = ("zeros", site.N) if site.bias is None else ("bias", site.id)
            vectors[bias] = site.N * _FLOAT_BYTES
        operator = functions.operator_of(site.weight_format, gather=gather)[0]
        operators.add(functions.EXPERTS if site.experts else operator)
    opset = max(opset_of(model.graph), functions.MIN_OPSET)
    written = sum(int(functions.function(name, opset).ByteSize()) for name in operators)
    return sum(weights.values()) + sum(vectors.values()) + written


def _gone(converted: Sequence[Site]) -> tuple[set[ir.Node], set[ir.Value]]:
    """(nodes that a rewrite takes away, initializers that nothing reads then)."""
    gone = {node for site in converted for node in (site.node, site.bias_node) if node is not None}
    dead: set[ir.Value] = set()
    pending = [value for site in converted for value in _constants(site)]
    while pending:
        value = pending.pop()
        if value.is_graph_output() or any(user not in gone for user, _ in value.uses()):
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input():
                dead.add(value)
        elif node not in gone and leads_from_constants(node) and _unread(node, gone):
            gone.add(node)
            pending += [v for v in node.inputs if v is not None]
    return gone, dead


def _unread(node: ir.Node, gone: set[ir.Node]) -> bool:
    return not any(
        output.is_graph_output() or any(user not in gone for user, _ in output.uses())
        for output in node.outputs
    )


def _constants(site: Site) -> Iterator[ir.Value]:
    """What the site's nodes read and the operator will not: weight and bias, be they constants or steps from one."""
    first = 1 if site.node.op_type == "Gather" else 0
    operands = site.node.inputs[first : 2 if site.experts else first + 1]
    stays = {*operands, site.addend, site.node.outputs[0]}
    for node in (site.node, site.bias_node):
        for value in () if node is None else node.inputs:
            if value is not None and value not in stays:
                yield value


def _roots(site: Site) -> list[ir.Value]:
    assert site.weight is not None
    return [root.root for root in site.weight.source.roots]


def _folded(model: ir.Model) -> set[ir.Node]:
    """Steps into which only constants go. One pass in the order of the graph: asking each alone walks back for each."""
    folded: set[ir.Node] = set()

    def is_constant(value: ir.Value | None) -> bool:
        node = None if value is None else value.producer()
        if value is None or node in folded:
            return True
        return (node is None or node.op_type == "Constant") and not depends_on_input(value, model.ir_version)

    for body in bodies(model):
        for node in ir.traversal.RecursiveGraphIterator(body):
            if is_step(node) and all(map(is_constant, node.inputs)):
                folded.add(node)
    return folded


@dataclass(frozen=True)
class _Readers:
    """Finds the nodes that stay, not being among ``gone``, and read a constant, be it behind others that are folded."""

    gone: set[ir.Node]
    folded: set[ir.Node]

    def of(self, value: ir.Value) -> Iterator[ir.Node]:
        pending, seen = [value], {value}
        while pending:
            for user, _ in pending.pop().uses():
                if user in self.gone:
                    continue
                if user not in self.folded or any(output.is_graph_output() for output in user.outputs):
                    yield user
                    continue
                new = [output for output in user.outputs if output not in seen]
                seen.update(new)
                pending += new

    def first(self, place: TensorPlace, preferred: Sequence[set[ir.Node]]) -> ir.Node | None:
        """Of the readers of a constant the first in the first of the sets ``preferred`` that has one, or of all."""
        if place.node is not None and place.node.op_type != "Constant":
            return place.node
        value = place.value if place.node is None else place.node.outputs[0]
        readers = [] if value is None else list(self.of(value))
        for group in preferred:
            if first := next((reader for reader in readers if reader in group), None):
                return first
        return next(iter(readers), None)
