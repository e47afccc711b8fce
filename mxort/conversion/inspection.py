"""What a model holds: what mxort converted in it, or what it would convert."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir

from mxort.conversion import gains, rows, selection
from mxort.conversion.gains import Gain
from mxort.conversion.recipe import Recipe
from mxort.conversion.report import CONVERTED, SKIPPED, SiteReport
from mxort.converters import (
    epilogue,
    experts,
    functions,
    lazy_weights,
    lm_head,
    model_io,
    rewrite,
    sites,
    storage,
)
from mxort.converters.metadata import Conversion, conversions
from mxort.converters.opset import opset_of
from mxort.converters.resolving import resolve
from mxort.converters.storage import Storage
from mxort.formats import packed_bytes

_LEFT = "left alone by the conversion"
_UNFOLDED = (
    "another tool has put standard operators in the place of mxort's: no kernel of mxort runs, and the weights become "
    "float when a session loads them (optimise before converting)"
)

CONVERTIBLE = "convertible"
"""Status of a node that a conversion would take, unless its weight turns out to hold a NaN."""


@dataclass(frozen=True)
class Inspection:
    """A model as mxort sees it. Byte counts are of the file with its external data.

    ``recipe`` is the one in the file; for an unconverted model, the one that was asked about. ``sites``
    are converted, convertible or skipped. ``estimated_bytes`` is about what a conversion would write; of a
    converted model, its size. ``lm_head`` is the status of a language model's output projection, "" if it has
    none. ``sites`` ends with other nodes that hold much of the file, and what of it is no constant. ``gains``: what
    options would make of its size.
    """

    model: str
    file_bytes: int
    estimated_bytes: int
    converted: bool
    mxort_version: str
    source_sha256: str
    recipe: Recipe
    ir_version: int
    opset: int
    producer: str
    nodes: int
    lm_head: str
    sites: tuple[SiteReport, ...]
    gains: tuple[Gain, ...] = ()
    warnings: tuple[str, ...] = ()

    def count(self, status: str) -> int:
        """Number of sites with this status."""
        return sum(site.status == status for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "recipe": self.recipe.to_dict(),
            "sites": [asdict(site) for site in self.sites],
            "gains": [asdict(gain) for gain in self.gains],
        }


def inspect(path: str | os.PathLike[str], recipe: Recipe | None = None) -> Inspection:
    """Looks at a model without changing or running it; ``recipe`` (None: default) is for unconverted models.

    Raises MxortError for a file that is missing or is no valid ONNX model.
    """
    source = model_io.load(path)
    model = source.model
    converted = rewrite.is_converted(model)
    made = next(iter(conversions(model.metadata_props)), Conversion("", ""))
    if converted and made.recipe:
        recipe = Recipe.from_json(made.recipe)
    recipe = recipe or Recipe()
    nodes = sum(1 for _ in model.graph.all_nodes())
    found, warnings = selection.find(model, recipe)
    ours = [
        n
        for n in model.graph.all_nodes()
        if n.domain == functions.DOMAIN and n.op_type in functions.WITH_WEIGHTS
    ]
    if converted:
        found = [replace(site, skip=site.skip or _LEFT) for site in found]
        warnings = (_UNFOLDED,) if rewrite.is_unfolded(model) else ()
    stored = storage.after(model, found)
    size = stored.size(source.nbytes)
    return Inspection(
        model=source.name,
        file_bytes=source.nbytes,
        estimated_bytes=size,
        converted=converted,
        mxort_version=made.version,
        source_sha256=made.source_sha256 if converted else source.sha256,
        recipe=recipe,
        ir_version=model.ir_version,
        opset=opset_of(model.graph),
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        nodes=nodes,
        lm_head=_lm_head(model, found, ours),
        sites=(
            *_converted_rows(ours),
            *(_unconverted_row(site, stored) for site in found),
            *rows.kept(stored, {*ours, *(site.node for site in found)}, source.nbytes),
        ),
        gains=() if converted else gains.find(model, recipe, source.nbytes, size),
        warnings=warnings,
    )


def _converted_rows(nodes: list[ir.Node]) -> list[SiteReport]:
    """One row per weight of our operators; the bytes of a weight that several share are on the first."""
    rows: list[SiteReport] = []
    seen: set[int] = set()
    for node, operand in ((n, i) for n in nodes for i in range(functions.operands_of(n.op_type))):
        inputs = node.inputs[functions.first_weight(node.op_type) + 4 * operand :]
        tensors = [value.const_value for value in inputs[:2] if value is not None]
        new = [tensor for tensor in tensors if tensor is not None and id(tensor) not in seen]
        seen.update(map(id, new))
        attributes = node.attributes
        level = attributes.get_int("accuracy_level", 0)
        weight = next(iter(inputs), None)  # a damaged file may have none
        stacks = node.op_type == functions.EXPERTS
        name = node.metadata_props.get(epilogue.FACTOR, "") if operand and not stacks else node.name
        k, n = _matrix(node, next(iter(tensors), None))
        notes = [f"{experts.STACKS[operand]} of the experts"] if stacks else []
        rows.append(
            SiteReport(
                node=name or f"{node.op_type}({node.outputs[0].name})",
                op_type=node.op_type,
                status=CONVERTED,
                K=attributes.get_int("K", k),
                N=attributes.get_int("N", n),
                weight="" if weight is None else weight.name or "",
                converted_bytes=sum(tensor.nbytes for tensor in new),
                rotation=attributes.get_int("rotation", 1),
                activation_format=attributes.get_string("activation_format", "none"),
                weight_format=_weight_format(node),
                note=", ".join([*notes, *([f"accuracy level {level}"] if level else [])]),
            )
        )
    return rows


def _matrix(node: ir.Node, codes: ir.TensorProtocol | None) -> tuple[int, int]:
    """(K, N) of a weight that has no attributes for them: N of a table, both of experts; 0: not known."""
    if codes is None:
        return 0, 0
    *rows, nbytes = codes.shape.numpy()
    return (2 * nbytes if node.op_type == functions.EXPERTS else 0), math.prod(rows)


def _weight_format(node: ir.Node) -> str:
    """The weight format of one of our nodes; "" for an operator of a later version."""
    try:
        bits = node.attributes.get_int(functions.EXPONENT_BITS, 0)
        return functions.weight_format_of(node.op_type, bits)
    except KeyError:
        return ""


def _unconverted_row(site: sites.Site, stored: Storage) -> SiteReport:
    weight, reason = site.weight, site.skip
    return SiteReport(
        node=site.name,
        op_type=site.op_type,
        status=SKIPPED if reason else CONVERTIBLE,
        reason=reason,
        K=site.K,
        N=site.N,
        weight=weight.name if weight else "",
        original_bytes=lazy_weights.source_bytes(site)
        if weight and not reason
        else stored.read_by.get(site.node, 0),
        converted_bytes=packed_bytes(site.N, site.K, site.weight_format) if weight and not reason else 0,
        weight_format="" if reason else site.weight_format,
        note=", ".join(note for note in (*site.notes, rows.float_too(stored, site)) if note),
    )


def _lm_head(model: ir.Model, found: list[sites.Site], ours: list[ir.Node]) -> str:
    """Status of the output projection; what recognises it in the original recognises it when converted."""
    kept = [site.skip for site in found if site.skip.startswith("lm_head")]
    if kept:
        return f"{SKIPPED}: {kept[0]}"
    constant = (
        node
        for node in ours
        if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None
    )
    packed = [sites.Site(node, weight=resolve(node.inputs[1], model.ir_version)) for node in constant]
    if lm_head.find(model, packed):
        return CONVERTED
    candidates = [site for site in found if site.weight is not None and not site.skip]
    return CONVERTIBLE if lm_head.find(model, candidates) else ""
