"""Results as tables for people. Consoles come from :func:`console`, which prints text as it is."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from mxort.bench_gpu import GpuBench
from mxort.bench_models import ModelBench
from mxort.bench_ops import OpBench
from mxort.bench_report import HEADINGS, Run, cells, measured_on, verdict_counts
from mxort.comparison import Comparison, TensorComparison
from mxort.doctor import FAILED, INFO, OK, WARNING, Diagnosis
from mxort.evaluate import Evaluation
from mxort.inspection import CONVERTIBLE, Inspection
from mxort.placement import Placement
from mxort.report import CONVERTED, SKIPPED, format_bytes
from mxort.session import EP_NAME

_PIPE_WIDTH = 160  # where the output is no terminal, nobody knows the width of the reader

_STYLES = {OK: "green", INFO: "blue", WARNING: "yellow", FAILED: "red"}


def console(file: TextIO | None = None, *, markup: bool = False) -> Console:
    """A console for ``file`` (default: standard output). Node names may hold what ``markup`` would eat."""
    file = file or sys.stdout
    width = None if file.isatty() else _PIPE_WIDTH
    return Console(file=file, width=width, markup=markup, highlight=False, emoji=False)


def print_inspection(inspection: Inspection, out: Console) -> None:
    """Facts, the converted or convertible nodes, and the skipped ones grouped by reason."""
    for name, value in _facts(inspection):
        out.print(f"{name:<16}{value}")
    status = CONVERTED if inspection.converted else CONVERTIBLE
    columns = ("K", "N", "before", "after") if status == CONVERTIBLE else ("K", "N", "bytes", "activations")
    table = _table(status, ("node", "op"), columns, ("note",))
    for site in (s for s in inspection.sites if s.status == status):
        after = format_bytes(site.converted_bytes)
        sizes = (after, site.activation_format)
        if status == CONVERTIBLE:
            sizes = (format_bytes(site.original_bytes), after)
        table.add_row(site.node, site.op_type, str(site.K), str(site.N), *sizes, site.note)
    skipped = [s for s in inspection.sites if s.status == SKIPPED]
    reasons = _table("skipped", ("reason", "op"), ("nodes",), ("first node",))
    for (reason, op_type), count in Counter((s.reason, s.op_type) for s in skipped).most_common():
        first = next(s.node for s in skipped if (s.reason, s.op_type) == (reason, op_type))
        reasons.add_row(reason, op_type, str(count), first)
    _print_filled(out, (table, reasons))


def _facts(i: Inspection) -> Iterable[tuple[str, str]]:
    yield "model", f"{i.model}, {format_bytes(i.file_bytes)}, {i.nodes} nodes"
    yield (
        "format",
        f"IR version {i.ir_version}, opset {i.opset}" + (f", by {i.producer}" if i.producer else ""),
    )
    if i.converted:
        yield "converted", f"by mxort {i.mxort_version or 'of unknown version'}: {i.count(CONVERTED)} nodes"
        yield "source SHA-256", i.source_sha256 or "unknown"
    else:
        ratio = i.file_bytes / i.estimated_bytes if i.estimated_bytes else 1.0
        size = f"about {format_bytes(i.estimated_bytes)} ({ratio:.2f}x smaller)"
        yield "converted", f"no; {i.count(CONVERTIBLE)} nodes can be, which leaves {size}"
    yield "lm_head", i.lm_head or "none found"
    yield "recipe", ", ".join(f"{name} {value}" for name, value, _ in i.recipe.describe())


def print_placement(placement: Placement, out: Console) -> None:
    """Operators by provider, and by name those of ours that the GPU does not run although it is there."""
    out.print(f"{placement.model} in onnxruntime {placement.onnxruntime}")
    table = _table("placement", ("provider", "operator"), ("nodes",))
    for provider, op_type, count in placement.counts():
        table.add_row(provider, op_type, str(count))
    left = _table("left to the CPU", ("node", "operator"), ())
    if EP_NAME in placement.providers:
        for node in placement.nodes:
            if node.ours and node.provider != EP_NAME:
                left.add_row(node.name, node.op_type)
    _print_filled(out, (table, left))


def print_evaluations(evaluations: Sequence[Evaluation], out: Console) -> None:
    """What was run and, for each model, its size and one line for each metric."""
    for evaluation in evaluations:
        what = f"{evaluation.kind}, {evaluation.samples} samples, {evaluation.predictions} predictions"
        out.print(f"{evaluation.converted}: {what}" if len(evaluations) > 1 else what)
        out.print(f"{'size':<22}{format_bytes(evaluation.converted_bytes)}")
        for name, value in evaluation.metrics.items():
            out.print(f"{name:<22}{value:.4f}")


def print_comparison(comparison: Comparison, out: Console) -> None:
    """Inputs, one row per output, one row per layer, and what could not be compared."""
    inputs = ", ".join(f"{name} {what}" for name, what in comparison.inputs.items())
    out.print(f"inputs: {inputs if len(inputs) < _PIPE_WIDTH else f'{len(comparison.inputs)} arrays'}")
    for title, rows in (("outputs", comparison.outputs), ("converted layers", comparison.layers)):
        table = _table(title, ("name",), ("shape", "SQNR dB", "cosine", "max |error|", "same argmax"))
        for row in rows:
            table.add_row(row.node or row.name, *_comparison_cells(row))
        _print_filled(out, (table,))
    for name, reason in comparison.unmatched.items():
        out.print(f"not compared: {name}: {reason}")
    out.print(f"lowest SQNR of an output: {comparison.worst_sqnr_db:.2f} dB")


def _comparison_cells(row: TensorComparison) -> tuple[str, ...]:
    agreement = "-" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}"
    shape = "x".join(map(str, row.shape)) or "scalar"
    return shape, f"{row.sqnr_db:.2f}", f"{row.cosine:.6f}", f"{row.max_abs_error:.3g}", agreement


def print_model_bench(bench: ModelBench, out: Console) -> None:
    """One row per model; ratios are to the first."""
    out.print(
        f"{bench.machine.line()}, onnxruntime {bench.onnxruntime}, threads {bench.threads or 'default'}"
    )
    decoders = any(row.decode for row in bench.models)
    columns = ["file", "load s", "runs", "p50 ms", "p90 ms", "p99 ms", "speed-up"]
    columns += ["prefill tok/s", "decode tok/s", "speed-up"] if decoders else []
    columns += ["peak memory", "without Python", "anonymous"]
    table = _table("models in turns, each in its own process", ("model",), columns)
    for row in bench.models:
        t = row.timing
        cells = [format_bytes(row.file_bytes), f"{row.load_seconds:.2f}", str(t.runs)]
        cells += [f"{t.p50_ms:.3f}", f"{t.p90_ms:.3f}", f"{t.p99_ms:.3f}", f"{t.ratio:.2f}x"]
        if row.decode and row.prefill_tokens_per_s and row.decode_tokens_per_s:
            cells += [f"{row.prefill_tokens_per_s:.1f}", f"{row.decode_tokens_per_s:.1f}"]
            cells += [f"{row.decode.ratio:.2f}x"]
        cells += [format_bytes(row.peak_rss_bytes), format_bytes(row.peak_rss_bytes - row.base_rss_bytes)]
        table.add_row(row.model, *cells, format_bytes(row.anonymous_bytes))
    out.print(table)
    for row in bench.models:
        for kind, shares in row.node_shares.items():
            parts = ", ".join(f"{op} {share:.0%}" for op, share in list(shares.items())[:6])
            out.print(f"{row.model}: {kind}: {parts}")


def print_bounds(run: Run, out: Console) -> None:
    """The machine and one row per bound."""
    if not run.measured:
        return
    out.print(measured_on(run))
    table = _table("bounds", HEADINGS[:3], HEADINGS[3:7], HEADINGS[7:])
    for verdict in run.verdicts():
        table.add_row(*cells(verdict))
    out.print(table)
    out.print(", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(run.verdicts()).items()))


def print_op_bench(bench: OpBench, out: Console) -> None:
    """One row per candidate and shape; speed-ups are over the first candidate of each shape."""
    out.print(f"{bench.machine.line()}, onnxruntime {bench.onnxruntime}, {bench.threads} threads")
    columns = ("p50 ms", "p90 ms", "speed-up", "GB/s", "of read", "GFLOP/s", "of peak", "error", "runs")
    title = f"operators in turns, {'cold' if any(row.cold for row in bench.rows) else 'hot'}"
    table = _table(title, ("M x K x N", "candidate"), columns)
    shape = None
    for row in bench.rows:
        t = row.timing
        first = shape != (shape := (row.M, row.K, row.N))
        if first and table.row_count:
            table.add_section()
        table.add_row(
            f"{row.M} x {row.K} x {row.N}" if first else "",
            row.peer,
            f"{t.p50_ms:.3f}",
            f"{t.p90_ms:.3f}",
            f"{t.ratio:.2f}x",
            f"{row.gb_per_s:.1f}",
            "-" if row.of_read is None else f"{row.of_read:.0%}",
            f"{row.gflop_per_s:.0f}" if row.gflop_per_s else "-",
            "-" if row.of_peak is None else f"{row.of_peak:.0%} {row.unit}",
            "-" if row.error is None else f"{row.error:.0e}",
            str(t.runs),
        )
    out.print(table)
    for skip in bench.skipped:
        out.print(
            f"{'WRONG' if skip.wrong else 'left out'}: {skip.peer} at K {skip.K}, N {skip.N}: {skip.reason}"
        )


def print_gpu_bench(bench: GpuBench, out: Console) -> None:
    """One row per shape and activation format; a warning where the times are of a simulator."""
    out.print(f"{bench.device} ({bench.arch}), {bench.hip}; float16 A and Y on the device, its own clock")
    if bench.simulated:
        out.print(
            "SIMULATED DEVICE: these times are of the simulating CPU and say nothing about a GPU",
            style=_STYLES["warning"],
        )
    columns = ("p50 ms", "p90 ms", "TFLOP/s", "GB/s", "error", "runs")
    table = _table("operators", ("M x K x N", "activations", "kernel"), columns)
    for row in bench.rows:
        t = row.timing
        table.add_row(
            *(
                f"{row.M} x {row.K} x {row.N}",
                row.activation_format,
                row.kernel,
                f"{t.p50_ms:.4f}",
                f"{t.p90_ms:.4f}",
            ),
            *(f"{row.tflop_per_s:.3g}", f"{row.gb_per_s:.3g}", f"{row.error:.0e}", str(t.runs)),
        )
    _print_filled(out, (table,))
    for what in bench.wrong:
        out.print(f"WRONG: {what}")


def print_diagnosis(diagnosis: Diagnosis, out: Console) -> None:
    """The machine, one line per check, the kernel table and a verdict."""
    out.print(diagnosis.machine.line())
    for check in diagnosis.checks:
        out.print(f"{check.status:<8}", style=_STYLES[check.status], end="")
        out.print(f"{check.name}: {check.detail}")
    table = _table("kernels", ("kernel", "layout", "runs here"), ("worst error",), ("chosen for", "wrong"))
    for kernel in diagnosis.kernels:
        worst = f"{max(kernel.errors.values()):.1e}" if kernel.errors else "-"
        chosen, wrong = ", ".join(kernel.chosen_for), ", ".join(kernel.failed)
        table.add_row(kernel.name, kernel.layout, "yes" if kernel.available else "no", worst, chosen, wrong)
    gpu = _table("GPU kernels", ("GPU", "kernel", "A by", "type"), ("error", "bound"), ("result",))
    for row in diagnosis.gpu_kernels:
        terms = f" x {row.terms}" if row.terms > 1 else ""
        cells = (f"gpu:{row.device}", row.kernel, row.preparation + terms, row.dtype)
        result = "right" if row.passed else "WRONG, not used"
        gpu.add_row(*cells, f"{row.error:.1e}", f"{row.bound:.1e}", result)
    _print_filled(out, (table, gpu))
    out.print("all well" if diagnosis.healthy else "something is broken: see the failed checks")


def _table(title: str, names: Sequence[str], numbers: Sequence[str], rest: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in names:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in rest:
        table.add_column(heading, overflow="fold")
    return table


def _print_filled(out: Console, tables: Iterable[Table]) -> None:
    for table in tables:
        if table.row_count:
            out.print(table)
