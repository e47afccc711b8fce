"""``python -m tools.step_bound [MODEL.onnx] [--tokens N] [--context N] [--json]``: what a decoder's step costs.

A bound from published peaks and the provider's count of launches, never a measurement.
Of an ONNX file (converted or not), or, without one, of shapes of well-known models, whose weights are never made.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from mxort import _native

BYTES_PER_SECOND = 8e12  # HBM3E of an MI355X, AMD's data sheet
CLOCKS_PER_SECOND, COMPUTE_UNITS = 2.4e9, 256
FLOP_PER_CLOCK = (
    4 * 2 * 16 * 16 * 128 / 16
)  # of a compute unit: four SIMDs, an FP4 or FP6 instruction in 16 clocks
BFLOAT16_SLOWER = 4
LAUNCH_SECONDS = (2e-6, 5e-6)

BITS = {"MXFP4": 4.25, "MXINT8": 8.25, "MXFP8": 8.25, "MXFP6": 6.25, "float16": 16.0, "float": 32.0}
CACHE_BITS = {"float16": 16.0, "mxfp8": 8.25, "mxfp4": 4.25}

# Launches of an operator in a decode step (docs/mi355x.md): attention appends, attends and joins its splits; views and
# shapes are free. Experts of few rows are routed beside the preparation and summed in the second product. What is no
# product with quantised weights and not here is one.
EXPERTS_FEW_ROWS, EXPERTS_LAUNCHES = 16, (4, 7)
LAUNCHES = {
    "MatMul": 2, "GroupQueryAttention": 3, "MultiHeadAttention": 1, "Reshape": 0, "Squeeze": 0,
    "Unsqueeze": 0, "Flatten": 0, "Identity": 0, "Shape": 0, "Size": 0, "Constant": 0,
}  # fmt: skip
NORM = "SkipSimplifiedLayerNormalization"
NORMS = {
    NORM,
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "LayerNormalization",
    "RMSNormalization",
}
WEIGHT_FORMATS = {"MXFP4": "mxfp4", "MXINT8": "mxint8", "MXFP8": "mxfp8_e4m3", "MXFP6": "mxfp6_e2m3"}


def product_launches(operator: str, rows: int, k: int, n: int) -> int:
    """Of a product with quantised weights: what the provider's selection answers for 256 compute units. An activation
    is one more where the product is not a single kernel that has it in it."""
    prefix, weights = operator.split("MatMulMX")
    gated = prefix == "Gated"
    columns = 2 * 32 * -(-n // 32) if gated else n
    count = int(_native.gpu_launches(rows, k, columns, WEIGHT_FORMATS["MX" + weights]))
    return count + (bool(prefix) and count > 1)


@dataclass(frozen=True)
class Work:
    """One operator of a step: its launches, the bytes of weights and cache it must read, its multiplications."""

    operator: str
    bytes: float = 0
    flop: float = 0  # in units of the FP4 rate: a product in bfloat16 counts four times
    count: int = 1
    rows: int = 1
    kernels: int | None = None  # None: LAUNCHES

    @property
    def launches(self) -> int:
        if self.operator == "MoEMXFP4":
            return EXPERTS_LAUNCHES[self.rows > EXPERTS_FEW_ROWS]
        return LAUNCHES.get(self.operator, 1) if self.kernels is None else self.kernels


@dataclass(frozen=True)
class Shape:
    """A decoder; ``experts`` of each layer, ``active`` of them a token (0: a dense one)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    experts: int = 0
    active: int = 0


SHAPES = {
    "Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "phi-4 14B": Shape(40, 5120, 40, 10, 128, 17920, 100352),
    "gpt-oss-20b": Shape(24, 2880, 64, 8, 64, 2880, 201088, 32, 4),
    "Qwen3-235B-A22B": Shape(94, 4096, 64, 4, 128, 1536, 151936, 128, 8),
}
"""From the models' own config.json."""

PUBLISHED = {
    "phi-4 14B": "54-106 tokens/s (ROCm/hip-ep, INT4, MI350X)",
    "gpt-oss-20b": "107-239 tokens/s (ROCm/hip-ep, INT4, MI350X)",
}


def product(operator: str, rows: int, k: int, n: int, weights: str) -> Work:
    """Activations of a quantised product are two FP6 terms (docs/mi355x.md), those of the others bfloat16. ``n``: of
    one operand of a gate."""
    slower = 2 if weights == "MXFP4" else BFLOAT16_SLOWER
    columns = 2 * n if operator.startswith("Gated") else n
    kernels = product_launches(operator, rows, k, n) if "MatMulMX" in operator else None
    return Work(operator, k * columns * BITS[weights] / 8, 2 * rows * k * columns * slower, kernels=kernels)


def attention(tokens: int, context: int, s: Shape, cache: str) -> Work:
    read = 2 * s.kv_heads * s.head_size * context * CACHE_BITS[cache] / 8
    flop = 4 * s.heads * s.head_size * tokens * (context - (tokens - 1) / 2) * BFLOAT16_SLOWER
    return Work("GroupQueryAttention", read, flop)


def works_of(s: Shape, tokens: int, context: int, cache: str) -> Iterator[Work]:
    """A step of ``tokens`` with ``context`` tokens in the cache when it ends."""

    def normalised(work: Work) -> Iterator[Work]:
        yield Work(
            NORM, kernels=0 if work.kernels == 1 else 1
        )  # a product that is one kernel normalises its rows
        yield work

    for _ in range(s.layers):
        qkv = (s.heads + 2 * s.kv_heads) * s.head_size
        yield from normalised(product("MatMulMXFP4", tokens, s.hidden, qkv, "MXFP4"))
        yield attention(tokens, context, s, cache)
        yield product("MatMulMXFP4", tokens, s.heads * s.head_size, s.hidden, "MXFP4")
        if s.experts:
            yield from normalised(product("MatMul", tokens, s.hidden, s.experts, "float16"))
            reached = s.experts * (1 - (1 - s.active / s.experts) ** tokens)  # expected, of an even router
            weights = 3 * s.hidden * s.intermediate * reached * BITS["MXFP4"] / 8
            flop = 2 * tokens * s.active * 3 * s.hidden * s.intermediate * 2
            yield Work("MoEMXFP4", weights, flop, rows=tokens)
        else:
            yield from normalised(product("GatedMatMulMXFP4", tokens, s.hidden, s.intermediate, "MXFP4"))
            yield product("MatMulMXFP4", tokens, s.intermediate, s.hidden, "MXFP4")
    yield Work("GatherMXINT8")
    yield from normalised(product("MatMulMXINT8", 1, s.hidden, s.vocabulary, "MXINT8"))


def works_of_file(path: Path, tokens: int, context: int) -> Iterator[Work]:
    """Of each node: its constants' bytes, a cache's for the context; products count by the shape of their weight."""
    model = onnx.load(path, load_external_data=False)
    constants = {t.name: t for t in model.graph.initializer}
    inputs = {v.name: v.type.tensor_type for v in model.graph.input}
    readers = collections.defaultdict(list)  # products of a value, each as its launches
    for node in model.graph.node:
        if node.domain == "mxort" and "MatMulMX" in node.op_type:
            readers[node.input[0]].append(_product_of_node(node, tokens))
    for node in model.graph.node:
        tensors = [constants[name] for name in node.input if name in constants]
        held = sum(_bytes(t.data_type, t.dims) for t in tensors)
        attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        flop, kernels = 0.0, None
        if node.domain == "mxort" and {"K", "N"} <= set(attributes) and "MatMulMX" in node.op_type:
            kernels = _product_of_node(node, tokens)
            slower = 2 if node.op_type.endswith("MXFP4") else BFLOAT16_SLOWER
            operands = 2 if node.op_type.startswith("Gated") else 1
            flop = 2.0 * tokens * attributes["K"] * attributes["N"] * operands * slower
        elif node.op_type in ("MatMul", "Gemm"):
            flop = sum(
                2.0 * tokens * t.dims[0] * t.dims[1] * BFLOAT16_SLOWER for t in tensors if len(t.dims) == 2
            )
        if "Gather" in node.op_type:
            held = 0  # some rows of a table
        cache = sum(
            _cache_bytes(inputs[name], context) for name in node.input if name in inputs and "past" in name
        )
        if node.op_type in NORMS and set(readers[node.output[0]]) == {1}:
            kernels = 0  # its products normalise the rows themselves
        yield Work(node.op_type, held + cache, flop, rows=tokens, kernels=kernels)


def _product_of_node(node: onnx.NodeProto, tokens: int) -> int:
    sizes = {a.name: a.i for a in node.attribute if a.name in ("K", "N")}
    return product_launches(node.op_type, tokens, sizes["K"], sizes["N"])


def _bytes(data_type: int, dims: Iterable[int]) -> float:
    count = 1.0
    for size in dims:
        count *= size
    return count * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _cache_bytes(value: onnx.TypeProto.Tensor, context: int) -> float:
    """Axes without a number are the batch (1) and the positions; a head's size that has none counts as 64."""
    sizes = [d.dim_value for d in value.shape.dim]
    return _bytes(value.elem_type, [s or other for s, other in zip(sizes, (1, 1, context, 64), strict=False)])


def bound(works: Iterable[Work]) -> dict[str, Any]:
    rows = list(works)
    launches = sum(work.launches for work in rows)
    read = sum(work.bytes for work in rows)
    clocks = sum(work.flop for work in rows) / FLOP_PER_CLOCK / COMPUTE_UNITS
    seconds = max(read / BYTES_PER_SECOND, clocks / CLOCKS_PER_SECOND)
    return {
        "launches": launches,
        "bytes": read,
        "matrix_clocks": clocks,
        "bound_ms": seconds * 1e3,
        "bound_by": "bytes"
        if read / BYTES_PER_SECOND >= clocks / CLOCKS_PER_SECOND
        else "matrix instructions",
        "with_launches_ms": [1e3 * (seconds + launches * each) for each in LAUNCH_SECONDS],
        "operators": dict(collections.Counter(work.operator for work in rows)),
    }


CAPTION = "bounds from published peaks; no hardware was measured"


def table(results: dict[str, dict[str, Any]], title: str) -> Table:
    made = Table(title=title, caption=CAPTION)
    for column in (
        "model",
        "launches",
        "MB read",
        "bound ms",
        "by",
        "+ 2 us a launch",
        "+ 5 us",
        "published by others",
    ):
        made.add_column(
            column, justify="left" if column in ("model", "by", "published by others") else "right"
        )
    for name, r in results.items():
        slow = (f"{ms:.2f}" for ms in r["with_launches_ms"])
        made.add_row(
            name, str(r["launches"]), f"{r['bytes'] / 1e6:.0f}", f"{r['bound_ms']:.3f}", r["bound_by"], *slow,
            PUBLISHED.get(name, ""),
        )  # fmt: skip
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.step_bound", description=__doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, help="an ONNX file (default: shapes of well-known models)"
    )
    parser.add_argument(
        "--tokens", type=int, default=1, help="rows of the step: 1 decodes, more are a prompt"
    )
    parser.add_argument("--context", type=int, default=4096, help="tokens in the cache when the step ends")
    parser.add_argument("--cache", choices=list(CACHE_BITS), default="float16", help="of the shapes' caches")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    options = parser.parse_args(arguments)
    if not 0 < options.tokens <= options.context:
        parser.error(f"--tokens: got {options.tokens}, expected 1 to --context, {options.context}")
    if options.model:
        try:
            works = list(works_of_file(options.model, options.tokens, options.context))
        except Exception as error:  # of protobuf, the file system
            print(
                f"tools.step_bound: error: {options.model}: {' '.join(str(error).split())}", file=sys.stderr
            )
            return 2
        results = {options.model.name: bound(works)}
    else:
        steps = {n: works_of(s, options.tokens, options.context, options.cache) for n, s in SHAPES.items()}
        results = {name: bound(step) for name, step in steps.items()}
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        print()
        return 0
    Console().print(
        table(results, f"a step of {options.tokens} at {options.context}: what an MI355X needs at least")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
