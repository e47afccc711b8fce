"""Finding the nodes that multiply by a constant matrix, or pick its rows. Each becomes a ``Site``, or a skipped one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import embedding, experts, lazy_weights, lm_head, router
from mxort.converters.constants import FLOAT_TYPES, Constant, NotConstantError
from mxort.converters.functions import DOMAIN
from mxort.converters.resolving import resolve
from mxort.converters.shapes import Ranks
from mxort.formats import WEIGHT_FORMATS, packed_bytes


@dataclass(frozen=True)
class Selection:
    """What the user's recipe says about which nodes to take.

    ``name_reason`` tells why the node of this name is left alone (None: it is not). Its weight becomes what
    ``layer_format`` says, where it does; else an output projection (unless ``convert_lm_head`` counts it among the
    others) and an embedding table become ``table_format``, where they do not stay float (None), any other
    ``weight_format``. Embedding tables of models without an output projection are taken with ``convert_embedding``.
    """

    op_types: tuple[str, ...] = ("MatMul", "Gemm", experts.OP_TYPE)
    min_elements: int = 0
    convert_lm_head: bool = False
    convert_embedding: bool = False
    name_reason: Callable[[str], str | None] = lambda name: None
    layer_format: Callable[[str], str | None] = lambda name: None
    weight_format: str = "mxfp4"
    table_format: str | None = None

    def format_of(self, name: str) -> str:
        """What the weight of an ordinary node becomes."""
        return self.layer_format(name) or self.weight_format

    def head_format(self, name: str) -> str | None:
        """What that of an output projection becomes; None: it stays float."""
        return self.layer_format(name) or (self.weight_format if self.convert_lm_head else self.table_format)


@dataclass(frozen=True)
class Site:
    """A node that multiplies by a weight: Y = (A . W) * alpha + bias, W constant [K, N].

    ``skip`` is why the node is left alone ("" if it is converted). ``weight`` is W^T, [N, K]; None where
    there is no constant matrix. ``bias`` is float32 [N] or None. ``bias_node`` is the Add whose work the bias
    takes over. ``addend`` is a third operand that cannot be a bias: it is added by a node of its own.
    ``table``: W^T is that of an embedding or of an output projection, or of both (``embedding.py``).
    ``weight_format`` is what the weight becomes.

    A stack of ``experts`` is the matrix of all their rows, ``operand`` 0 or 1 of its node, and its multipliers are
    multiplied by ``multiplier``, float32 [N]; ``rotation_width`` is what the rotation of both divides (experts.py).
    """

    node: ir.Node
    skip: str = ""
    weight: Constant | None = None
    transpose_a: bool = False
    alpha: float = 1.0
    bias: NDArray[np.float32] | None = None
    bias_node: ir.Node | None = None
    addend: ir.Value | None = None
    table: bool = False
    note: str = field(default="", compare=False)
    weight_format: str = "mxfp4"
    number: int = field(default=1, compare=False)
    experts: int = 0
    operand: int = 0
    rotation_width: int = 0
    multiplier: NDArray[np.float32] | None = None

    @property
    def name(self) -> str:
        """The node's name, for people: several nodes may have the same. Where it has none, what it computes."""
        return self.node.name or f"{self.node.op_type}({output_name(self.node)})"

    @property
    def id(self) -> str:
        """What no other site of the model is called: the name of the node's output, which does not change.

        Bodies beside each other (an If's branches) may use one name twice: ``number`` then counts from 2 on.
        """
        name = output_name(self.node)
        return name if self.number == 1 else f"{name}#{self.number}"

    @property
    def wide_table(self) -> bool:
        """A table in 8 bits: rounded to nearest, neither calibrated nor rotated; its operand stays as it is."""
        return self.table and WEIGHT_FORMATS[self.weight_format].bits == 8

    @property
    def K(self) -> int:  # noqa: N802 (the operator's name for it)
        return self.weight.shape[1] if self.weight else 0

    @property
    def N(self) -> int:  # noqa: N802
        return self.weight.shape[0] if self.weight else 0

    def stacked(self, array: NDArray[Any]) -> NDArray[Any]:
        """What is stored of an array [N, ...]: [E, N / E, ...] of experts."""
        return array.reshape(self.experts, -1, *array.shape[1:]) if self.experts else array


OTHER_WEIGHT_OPS: dict[tuple[str, str], str] = {
    ("", "Conv"): "Conv has no MXFP4 operator",
    ("", "ConvTranspose"): "ConvTranspose has no MXFP4 operator",
    ("", "Einsum"): "Einsum is not converted (rewrite it as MatMul)",
    ("", "Gather"): embedding.LEFT,
    ("", "LSTM"): "a recurrent operator is not converted",
    ("", "GRU"): "a recurrent operator is not converted",
    ("", "RNN"): "a recurrent operator is not converted",
    ("", "MatMulInteger"): "is quantised already",
    ("", "QLinearMatMul"): "is quantised already",
    ("", "QLinearConv"): "is quantised already",
    ("", "ConvInteger"): "is quantised already",
    ("com.microsoft", "MatMulNBits"): "is quantised already",
    ("com.microsoft", "MatMulBnb4"): "is quantised already",
    ("com.microsoft", "GatherBlockQuantized"): "is quantised already",
    ("com.microsoft", "DynamicQuantizeMatMul"): "is quantised already",
    ("com.microsoft", "MatMulIntegerToFloat"): "is quantised already",
    ("com.microsoft", "QGemm"): "is quantised already",
    ("com.microsoft", "QAttention"): "is quantised already",
    (
        "com.microsoft",
        "Attention",
    ): "its weights are inside a fused attention (export without attention fusion)",
    (
        "com.microsoft",
        "FusedMatMul",
    ): "a fused operator is not converted (save the model without optimisation)",
    ("com.microsoft", "FusedGemm"): "a fused operator is not converted (save the model without optimisation)",
    (
        "com.microsoft",
        "TransposeMatMul",
    ): "a fused operator is not converted (save the model without optimisation)",
}
"""(domain, operator) that may hold large weights and is left alone -> the reason given to the user."""


def output_name(node: ir.Node) -> str:
    """The name of the first output that the node has."""
    return next((value.name for value in node.outputs if value.name), "")


def find(model: ir.Model, selection: Selection) -> list[Site]:
    """All nodes of ``model`` that multiply by a weight, or look as if they might, in graph order."""
    finder = _Finder(model, selection)
    sites = [
        site for node in ir.traversal.RecursiveGraphIterator(model.graph) for site in finder.site_of(node)
    ]
    of_experts = experts.together([s for s in sites if experts.is_one(s.node)])
    sites = [s for s in sites if not experts.is_one(s.node)]
    heads = lm_head.find(model, [s for s in sites if not s.skip and s.weight is not None and not s.table])
    routers = router.find([s for s in sites if not s.skip and not s.table])
    sites = [replace(s, skip=routers[s.node]) if s.node in routers else s for s in sites]
    sites = [finder.checked(site) for site in embedding.settle(sites, heads, selection)]
    sites += of_experts
    for function in model.functions.values():
        if function.domain != DOMAIN:
            sites += _inside_function(function)
    return _numbered(sites)


def _numbered(sites: Sequence[Site]) -> list[Site]:
    """The sites, each with an id of its own."""
    result: list[Site] = []
    taken: set[str] = set()
    for site in sites:
        while site.id in taken:
            site = replace(site, number=site.number + 1)
        taken.add(site.id)
        result.append(site)
    return result


def _inside_function(function: ir.Function) -> Iterator[Site]:
    for node in ir.traversal.RecursiveGraphIterator(function):
        if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
            yield Site(
                node,
                f"is inside the model-local function {function.domain}::{function.name} (inline it first)",
            )


class _Skip(Exception):  # noqa: N818 (not an error)
    """Leaves a site alone, for the reason in its text."""


class _Finder:
    def __init__(self, model: ir.Model, selection: Selection) -> None:
        self.ir_version = model.ir_version
        self.selection = selection
        self.ranks = Ranks(model)

    def site_of(self, node: ir.Node) -> Iterator[Site]:
        """The site of a candidate node; nothing for other nodes."""
        if node.domain == "" and node.op_type in _FINDERS:
            try:
                site = _FINDERS[node.op_type](self, node)
            except _Skip as skip:
                yield Site(node, str(skip))
            else:
                yield self.checked(replace(site, weight_format=self.selection.format_of(site.name)))
        elif experts.is_one(node):
            for site in experts.find(node, self.ir_version, Site):
                yield site if lazy_weights.is_packed(site) else self.checked(site)
        elif why := experts.picked(node, self.ir_version):
            yield Site(node, why)
        elif table := self._table(node):
            yield self.checked(Site(node, weight=table, table=True))
        elif reason := OTHER_WEIGHT_OPS.get((node.domain, node.op_type)):
            yield from self._other(node, reason)

    def _table(self, node: ir.Node) -> Constant | None:
        """The embedding table that a node reads, where it is worth the mention."""
        table = embedding.table_of(node, self.ir_version)
        if table is None or self.selection.convert_embedding:
            return table
        large = int(np.prod(table.shape)) >= max(1, self.selection.min_elements)
        return table if large and table.dtype in FLOAT_TYPES else None

    def _other(self, node: ir.Node, reason: str) -> Iterator[Site]:
        """A row for an operator that is not converted, if it holds a weight worth the mention."""
        for value in node.inputs:
            try:
                constant = resolve(value, self.ir_version)
            except NotConstantError as error:
                if not error.computed and node.op_type != "Gather":  # of unknown size, but no activation
                    yield Site(node, reason)
                    return
                continue
            elements = int(np.prod(constant.shape, dtype=np.int64))
            if len(constant.shape) >= 2 and elements >= max(1, self.selection.min_elements):
                yield Site(node, reason)
                return

    def matmul(self, node: ir.Node) -> Site:
        left, right = node.inputs
        try:
            weight = resolve(right, self.ir_version)
        except NotConstantError as reason:
            raise _Skip(self._not_constant(left, reason)) from None
        if len(weight.shape) > 2 and all(d == 1 for d in weight.shape[:-2]):
            rank = self.ranks.of(left)
            if rank is None:
                raise _Skip(
                    f"weight has unit batch dimensions {list(weight.shape)} and the rank of A is unknown"
                )
            if rank < len(weight.shape):
                raise _Skip(f"weight of shape {list(weight.shape)} adds dimensions to A of rank {rank}")
            weight = weight.reshaped(weight.shape[-2:])
        site = Site(node, weight=_as_matrix(weight))
        return self._with_following_add(site)

    def gemm(self, node: ir.Node) -> Site:
        left, right = node.inputs[0], node.inputs[1]
        try:
            weight = resolve(right, self.ir_version)
        except NotConstantError as reason:
            raise _Skip(self._not_constant(left, reason)) from None
        attributes = node.attributes
        matrix = _as_matrix(weight)
        if attributes.get_int("transB", 0):
            matrix = matrix.transposed()
        site = Site(
            node,
            weight=matrix,
            transpose_a=bool(attributes.get_int("transA", 0)),
            alpha=attributes.get_float("alpha", 1.0),
        )
        beta = attributes.get_float("beta", 1.0)
        c = node.inputs[2] if len(node.inputs) > 2 else None
        if c is None or beta == 0:
            return self._with_following_add(site)
        bias = self._row_vector(c, site.N, rank=2)
        if bias is not None:
            return replace(site, bias=bias * np.float32(beta))
        if beta != 1:
            raise _Skip(f"beta is {beta:g} and C is not a constant row of {site.N} numbers")
        return replace(site, addend=c, note="C added by a node of its own")

    def _with_following_add(self, site: Site) -> Site:
        """Folds an Add of a constant row into the bias, where the product goes nowhere else."""
        product = site.node.outputs[0]
        uses = product.uses()
        if len(uses) != 1 or product.is_graph_output():
            return site
        add, index = next(iter(uses))
        if add.domain != "" or add.op_type != "Add" or add.graph is not site.node.graph:
            return site
        other = add.inputs[1 - index]
        rank = 2 if site.node.op_type == "Gemm" else self.ranks.known(site.node.inputs[0])
        bias = None if other is None else self._row_vector(other, site.N, rank)
        if bias is None:
            return site
        return replace(site, bias=bias, bias_node=add, note="bias folded")

    def _row_vector(self, value: ir.Value, n: int, rank: int | None) -> NDArray[np.float32] | None:
        """``value`` as float32 [n] if it is constant and can be added to [..., n] without changing its shape."""
        try:
            constant = resolve(value, self.ir_version)
        except NotConstantError:
            return None
        *outer, last = constant.shape or (1,)
        if any(d != 1 for d in outer) or last not in (1, n) or constant.dtype not in FLOAT_TYPES:
            return None
        if outer and (rank is None or len(constant.shape) > rank):
            return None  # it would add dimensions, or nobody knows
        row = constant.numpy().astype(np.float32).reshape(-1)
        return np.ascontiguousarray(np.broadcast_to(row, (n,)))

    def _not_constant(self, left: ir.Value | None, right: NotConstantError) -> str:
        if not right.computed:
            return f"weight {right}"
        try:
            resolve(left, self.ir_version)
        except NotConstantError:
            return "no operand is constant"
        return "the constant is the left operand"

    def checked(self, site: Site) -> Site:
        """The site, skipped where the operator or the user's recipe excludes it."""
        if site.skip or site.weight is None:
            return site
        try:
            self._check(site)
        except _Skip as skip:
            return replace(site, skip=str(skip))
        return site

    def _check(self, site: Site) -> None:
        assert site.weight is not None
        dtype, elements = site.weight.dtype, site.K * site.N
        if reason := self.selection.name_reason(site.name):
            raise _Skip(reason)
        op_type = experts.OP_TYPE if site.experts else site.node.op_type
        if not site.table and op_type not in self.selection.op_types:
            raise _Skip(f"op_types leaves {op_type} alone")
        wanted = self.selection.format_of(site.name)
        if site.experts and wanted != site.weight_format:
            raise _Skip(f"experts become {site.weight_format}, and the recipe asks for {wanted}")
        if dtype not in FLOAT_TYPES:
            raise _Skip(f"weight is {dtype.name.lower()}; float, float16 and bfloat16 are converted")
        if elements == 0:
            raise _Skip(f"weight of shape [{site.K}, {site.N}] has no elements")
        if elements < self.selection.min_elements:
            raise _Skip(
                f"weight has {elements} elements, fewer than min_elements = {self.selection.min_elements}"
            )
        if packed_bytes(site.N, site.K, site.weight_format) >= elements * dtype.itemsize:
            raise _Skip(f"weight of shape [{site.K}, {site.N}] would not become smaller")


def _as_matrix(weight: Constant) -> Constant:
    """W [K, N] as W^T."""
    if len(weight.shape) != 2:
        raise _Skip(f"weight of shape {list(weight.shape)} is not a matrix")
    return weight.transposed()


_FINDERS: dict[str, Callable[[_Finder, ir.Node], Site]] = {"MatMul": _Finder.matmul, "Gemm": _Finder.gemm}
