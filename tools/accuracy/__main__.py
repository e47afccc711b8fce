"""Measure what each way of converting costs in accuracy, and write the tables of docs/accuracy.md.

Usage: python -m tools.accuracy [--windows 128] [--rows NAME ...] [--threads 0]

Finished rows are kept in build/accuracy, a file each, and not measured again; --fresh measures them again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import mxort
from samples.models import CACHE, ModelError
from tools.accuracy import subjects
from tools.accuracy.grid import SmolLM2Grid
from tools.accuracy.subjects import Row, Subject

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "accuracy.md"

SUBJECTS: tuple[type[Subject], ...] = (*subjects.SUBJECTS, SmolLM2Grid)

FIGURES = {  # what a column holds, and its decimals
    "file, MB": ("file_mb", 1),
    "convert, s": ("seconds", 0),
    "CPU, s": ("cpu_seconds", 0),
    "peak memory, MB": ("peak_mb", 0),
}


def measure(subject: Subject, row: Row, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Convert, in a process of its own whose memory is its own, and measure one row."""
    target = folder / f"{subject.name}-{row.key}.onnx"
    windows = subject.calibration(row)
    data = folder / f"{subject.name}-{'-'.join(row.texts) or len(windows)}"
    data.mkdir(exist_ok=True)
    for number, tokens in enumerate(windows):
        np.save(data / f"{number:04}.npy", tokens)
    if row.quark:
        script = Path(__file__).with_name("quark_weights.py")
        command = [arguments.quark, script, row.quark, subject.model, data, target]
    else:
        command = [sys.executable, "-m", "mxort", "convert", subject.model, "-o", target, "--json"]
        command += flags(row)
        if row.written:
            command += ["--calibration", "self", "--self-windows", str(row.written)]
        if row.calibrated and windows:
            command += ["--calibration", data]
        if row.calibrated:
            command += ["--threads", str(arguments.threads)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    files = list(folder.glob(f"{target.name}*"))  # a data file is named after its content
    result = subject.measure(target, arguments.threads) | {
        "file_mb": sum(f.stat().st_size for f in files) / 1e6
    }
    for file in files:
        file.unlink()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if row.quark:
        return result | {"seconds": seconds, "cpu_seconds": cpu}
    report = mxort.Report.from_json(done.stdout)
    return result | {
        "seconds": report.seconds,
        "cpu_seconds": cpu,
        "peak_mb": report.peak_rss_bytes / 1e6,
        "weight_sqnr_db": report.mean_sqnr_db or math.inf,
    }


def flags(row: Row) -> list[str]:
    """The options of a row as those of the command line."""
    named = {name.replace("_", "-"): value for name, value in row.options.items()}
    switches = {True: "--{}", False: "--no-{}"}
    return [
        switches[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
        for name, value in named.items()
    ]


def table(subject: Subject, results: Mapping[str, Mapping[str, float]]) -> str:
    """The finished rows as Markdown."""
    lines = ["| " + " | ".join(subject.heading) + " |", "|---" + "|---:" * (len(subject.heading) - 1) + "|"]
    if reference := next((r["perplexity_reference"] for r in results.values() if "perplexity" in r), None):
        lines.append(f"| fp32 | {reference:.2f} | 0 | 100% |" + " |" * (len(subject.heading) - 4))
    for row in subject.rows:
        if row.key in results:
            r = results[row.key]
            columns = [FIGURES[title] for title in subject.heading if title in FIGURES]
            cost = [f"{r[name]:.{digits}f}" if name in r else "" for name, digits in columns]
            cells = (row.label, *subject.cells(r), *cost)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(document: Path, name: str, text: str) -> None:
    """Replaces what stands between the markers of ``name``."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    old = document.read_text()
    if begin not in old or end not in old:
        raise SystemExit(f"error: {document}: no markers {begin} and {end}")
    document.write_text(re.sub(f"{begin}.*{end}", f"{begin}\n{text}\n{end}", old, flags=re.DOTALL))


def main() -> None:
    """Measure the rows that are not measured yet and write the document."""
    parser = argparse.ArgumentParser(description="Measure the accuracy of conversions.")
    names = [kind.name for kind in SUBJECTS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    keys = sorted({row.key for kind in SUBJECTS for row in kind.rows})
    parser.add_argument("--rows", nargs="+", choices=keys, metavar="ROW", help="only these")
    parser.add_argument(
        "--windows", type=int, default=128, help="SmolLM2's calibration windows of 512 tokens"
    )
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    parser.add_argument(
        "--quark", metavar="PYTHON", help="interpreter that has amd-quark: its rows are measured too"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept (build/models)")
    arguments = parser.parse_args()
    folder = arguments.cache.parent / "accuracy"
    folder.mkdir(exist_ok=True)
    for kind in SUBJECTS:
        if kind.name not in arguments.models:
            continue
        subject = kind(arguments.cache, arguments.windows)
        results = {}
        for row in subject.rows:
            kept = folder / f"{kind.name}-{len(subject.calibration(row))}-{row.key}.json"
            wanted = row.key in arguments.rows if arguments.rows else arguments.quark or not row.quark
            if wanted and (arguments.fresh or not kept.exists()):
                print(f"{kind.name}: {row.label}", file=sys.stderr, flush=True)
                kept.write_text(json.dumps(measure(subject, row, folder, arguments)) + "\n")
                print(kept.read_text(), file=sys.stderr, end="", flush=True)
            if kept.exists():
                results[row.key] = json.loads(kept.read_text())
        if results:
            write(DOCUMENT, kind.name, table(subject, results))


if __name__ == "__main__":
    try:
        main()
    except (ModelError, mxort.MxortError) as error:
        sys.exit(f"error: {error}")
