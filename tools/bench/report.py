"""``mxort bench bounds``: runs the cases, keeps what they measured, and writes tables for a terminal or a document."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.errors import MxortError
from mxort.runtime.session import one_line
from tools.bench.bounds import ERROR, VALUE, Verdict, judge_all, label, machine_of, median_ms
from tools.bench.cases import CASES, Measured, Place, Row, Size, measure

if TYPE_CHECKING:
    from mxort.progress import Progress

RESULTS = "bounds.json"
_FAILED = "failed"


class Run:
    """What was measured, by case; kept in a file of the work folder after every case, so that a run may go on later."""

    def __init__(self, work: Path) -> None:
        self._file = work / RESULTS
        self.measured: dict[str, Measured] = {}
        self.why_not: dict[str, str] = {}
        work.mkdir(parents=True, exist_ok=True)
        if self._file.is_file():
            self._read()

    def _read(self) -> None:
        try:
            kept = json.loads(self._file.read_text())
            self.measured = {name: Measured.from_dict(fields) for name, fields in kept["cases"].items()}
            self.why_not = dict(kept[_FAILED])
        except (ValueError, KeyError, TypeError) as error:
            raise MxortError(f"{self._file}: not results of this version; remove it ({error})") from error

    def measure(
        self, names: Sequence[str], size: Size, place: Place, progress: Progress | None = None
    ) -> None:
        """Measures the cases ``names``; one that fails does not keep the others from being measured."""
        for done, name in enumerate(names):
            if progress:
                progress(f"{name}: {CASES[name].what}", done / len(names))
            self.measured.pop(name, None)
            self.why_not.pop(name, None)
            try:
                self.measured[name] = measure(name, size, place)
            except Exception as error:  # a library's own, or a process that died
                self.why_not[name] = one_line(error)
            self._file.write_text(json.dumps(self.to_dict(), allow_nan=False) + "\n")

    def missing(self) -> list[str]:
        """Cases that were not measured yet."""
        return [name for name in CASES if name not in self.measured]

    def verdicts(self) -> list[Verdict]:
        """All bounds, judged by what there is."""
        return judge_all(self.measured, self.why_not)

    def to_dict(self) -> dict[str, Any]:
        """All results and verdicts as JSON types."""
        cases = {name: self.measured[name].to_dict() for name in CASES if name in self.measured}
        verdicts = [verdict.to_dict() for verdict in self.verdicts()]
        return {"verdicts": verdicts, "cases": cases, _FAILED: self.why_not}


def choose_cases(names: Sequence[str]) -> list[str]:
    """``names`` as they are. Raises MxortError for one that is unknown."""
    if unknown := next((name for name in names if name not in CASES), None):
        raise MxortError(f"unknown case: got {unknown!r}, expected one of {', '.join(CASES)}")
    return list(names)


# tables

HEADINGS = ("case", "ours", "against", "bound", "measured", "fastest", "", "bound by")


def cells(verdict: Verdict) -> tuple[str, ...]:
    """A row of the table of bounds."""
    limit, found = _figure(verdict, verdict.limit), "-"
    if verdict.found is not None:
        found = _figure(verdict, verdict.found)
    sign = "at most" if verdict.kind in (ERROR, VALUE) else "at least"
    stretch = " (stretch)" if verdict.stretch else ""
    against = "error" if verdict.kind == ERROR else verdict.against
    return (
        verdict.what,
        verdict.ours,
        against,
        f"{sign} {limit}{stretch}",
        found,
        "" if verdict.fastest is None else _figure(verdict, verdict.fastest),
        verdict.verdict,
        verdict.bound_by,
    )


def _figure(verdict: Verdict, value: float) -> str:
    if verdict.kind == ERROR:
        return f"{value:.1e}"
    return f"{value:.3g}" if verdict.kind == VALUE else f"{value:.2f}x"


def markdown(run: Run) -> str:
    """The tables of docs/performance.md."""
    machine = machine_of(run.measured)
    if machine is None:
        raise MxortError("nothing was measured")
    parts = [measured_on(run), "## Bounds", _table(HEADINGS, map(cells, run.verdicts()), right=(4, 5))]
    parts += ["## The machine", _limits_table(run.measured)]
    parts += ["## Operators", *_operator_tables(run.measured), "## Models", *_model_tables(run.measured)]
    left_out = sorted(
        {f"{label(peer)}: {why}" for result in run.measured.values() for peer, why in result.missing.items()}
    )
    left_out += [f"{name}: {why}" for name, why in run.why_not.items()]
    if left_out:
        parts += ["Left out: " + "; ".join(left_out) + "."]
    return "\n\n".join(parts)


def measured_on(run: Run) -> str:
    """The machine, the load and the time of a run."""
    first = next(iter(run.measured.values()))
    loads = [result.machine.load for result in run.measured.values()]
    dates = sorted(result.date for result in run.measured.values())
    return (
        f"Measured by `make bench` on {first.machine.cpu} ({' '.join(first.machine.isa)}), "
        f"last-level cache {first.machine.cache_bytes >> 20} MB, {first.machine.memory_bytes / 1e9:.0f} GB, "
        f"{first.machine.system}, onnxruntime {first.onnxruntime}, {dates[0]} to {dates[-1]} UTC, "
        f"load average {min(loads):.1f} to {max(loads):.1f}."
    )


def _limits_table(measured: Mapping[str, Measured]) -> str:
    """What the machine can do, one column for each number of threads."""
    if "limits" not in measured:
        return "Not measured."
    rows: dict[str, list[str]] = {}
    for name, value in measured["limits"].values.items():
        what, _, threads = name.rpartition(", ")
        rows.setdefault(what, []).append(f"{value:.3g} ({threads})")
    width = max(map(len, rows.values()))
    table = []
    for what, figures in rows.items():
        peer, _, unit = what.partition(" ")
        table.append((f"{label(peer)} {unit}", *figures, *[""] * (width - len(figures))))
    return _table(("limit", *["measured"] * width), table, right=range(1, width + 1))


def _operator_tables(measured: Mapping[str, Measured]) -> list[str]:
    """Milliseconds and errors at the large shape, one column for each M."""
    columns: dict[str, dict[str, Row]] = {}
    for case in ("cold", "m1-m16", "m64", "m256-m512"):
        for row in measured[case].rows if case in measured else ():
            heading = "M = " + row.shape.split("x")[0] + (", cold" if case == "cold" else "")
            columns.setdefault(heading, {})[row.peer] = row
    if not columns:
        return ["Not measured."]
    peers = dict.fromkeys(peer for rows in columns.values() for peer in rows)
    table = []
    for peer in peers:
        here = [rows.get(peer) for rows in columns.values()]
        errors = [row.error for row in here if row and row.error is not None]
        error = f"{max(errors):.1e}" if errors else ""
        table.append((label(peer), *(f"{median_ms(row):.3f}" if row else "" for row in here), error))
    headings = ("K = N = 4096, median ms", *columns, "error")
    return [_table(headings, table, right=range(1, len(headings)))]


def _model_tables(measured: Mapping[str, Measured]) -> list[str]:
    tables = []
    for case in ("minilm", "smollm2"):
        if case not in measured:
            continue
        result = measured[case]
        peers = dict.fromkeys(row.peer for row in result.rows)
        kinds = dict.fromkeys(row.shape for row in result.rows)
        names = dict.fromkeys(
            key.removeprefix(f"{peer} ")
            for peer in peers
            for key in result.values
            if key.startswith(f"{peer} ")
        )
        rows = []
        for peer in peers:
            times = [row for row in result.rows if row.peer == peer]
            figures = (result.values.get(f"{peer} {name}") for name in names)
            shares = next(iter(times)).shares
            spent = ", ".join(f"{op} {share:.0%}" for op, share in list(shares.items())[:3])
            rows.append(
                (
                    label(peer),
                    *(f"{median_ms(row):.2f}" for row in times),
                    *("" if figure is None else f"{figure:.4g}" for figure in figures),
                    spent,
                )
            )
        headings = ("", *(f"{kind} ms" for kind in kinds), *names, "time of a run")
        tables += [CASES[case].what + ":", _table(headings, rows, right=range(1, len(headings) - 1))]
    return tables or ["Not measured."]


def _table(headings: Sequence[str], rows: Any, right: Sequence[int] = ()) -> str:
    rule = "|".join("---:" if i in right else "---" for i in range(len(headings)))
    lines = ["| " + " | ".join(headings) + " |", f"|{rule}|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def write_document(document: Path, text: str) -> None:
    """Replaces what stands between the document's markers. Raises MxortError where it has none."""
    begin, end = "<!-- measured -->", "<!-- end measured -->"
    try:
        old = document.read_text()
    except OSError as error:
        raise MxortError(f"{document}: cannot be read ({error})") from error
    if begin not in old or end not in old:
        raise MxortError(f"{document}: no markers {begin} and {end}")
    replace: Callable[[re.Match[str]], str] = lambda match: f"{begin}\n{text}\n{end}"  # noqa: E731
    document.write_text(re.sub(f"{begin}.*{end}", replace, old, flags=re.DOTALL))


def verdict_counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How often each verdict fell."""
    return dict(Counter(verdict.verdict for verdict in verdicts).most_common())
