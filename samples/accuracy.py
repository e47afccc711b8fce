"""Measure what each way of converting costs in accuracy, and write the tables of docs/accuracy.md.

Usage: python samples/accuracy.py [--windows 32] [--rows NAME ...] [--threads 0]

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
from models import CACHE, PLAYS, ModelError, minilm, minilm_l6, plays, smollm2
from tokenizers import Tokenizer

import mxort
from mxort import calibrate, packing
from mxort.converters import model_io, sites, stages
from mxort.evaluate import evaluate
from mxort.formats import hadamard_rotate
from mxort.quantize import dequantize

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "accuracy.md"

TEST_WINDOWS, WINDOW = 8, 512  # SmolLM2: the first 4096 tokens, as in `make demo`
SENTENCES, SENTENCE = 64, 128  # MiniLM: windows of text, alternately for calibration and test

COST = ("convert, s", "CPU, s", "peak memory, MB")

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One conversion: what the table calls it, its options, and how many times the usual data it is given."""

    key: str
    label: str
    calibrated: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1


RTN_EVEN = Row("rtn-even", "rtn, scale rule even", False, {"scale_rule": "even", "column_multiplier": False})
RTN_MSE = Row("rtn-mse", "rtn, scale rule mse", False, {"column_multiplier": False})
RTN = Row("rtn", "rtn, mse, column multiplier **(default without data)**", False)
GPTQ = Row("gptq", "gptq", True, {"algorithm": "gptq"})
MR_GPTQ = Row("mr-gptq", "mr-gptq **(default with data)**", True)
MR_GPTQ_4 = Row("mr-gptq-4", "mr-gptq, four times the calibration text", True, times=4)
W4A8 = Row("w4a8", "W4A8 mr-gptq", True, {"activation_format": "mxfp8_e4m3"})
W4A6 = Row("w4a6", "W4A6 mr-gptq", True, {"activation_format": "mxfp6_e2m3"})
W4A4 = Row("w4a4", "W4A4 mr-gptq", True, {"activation_format": "mxfp4"})


def text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def spread(windows: npt.NDArray[Any], count: int) -> list[Tokens]:
    """``count`` windows at equal distances."""
    return [windows[i] for i in np.linspace(0, len(windows) - 1, count).round().astype(int)]


class SmolLM2:
    """Perplexity, KL and top-1 agreement on the first windows; calibration on later ones."""

    name = "smollm2"
    heading = ("weights", "perplexity", "KL to fp32", "top-1", *COST)
    rows: tuple[Row, ...] = (RTN_EVEN, RTN_MSE, RTN, GPTQ, MR_GPTQ, MR_GPTQ_4, W4A8, W4A6, W4A4)

    def __init__(self, cache: Path, windows: int) -> None:
        folder = smollm2(cache)
        self.model = folder / "model.onnx"
        tokens = _tokens(folder, text())
        held_out = TEST_WINDOWS * WINDOW
        self.test = list(tokens[:held_out].reshape(-1, WINDOW))
        rest = self.unseen(cache, tokens[held_out:])
        self._windows = rest[: len(rest) // WINDOW * WINDOW].reshape(-1, WINDOW)
        self._count = windows

    def calibration(self, times: int) -> list[Tokens]:
        return spread(self._windows, self._count * times)

    def unseen(self, cache: Path, rest: Tokens) -> Tokens:
        """What calibration windows are taken from; ``rest`` is the text after the test windows."""
        return rest

    def measure(self, converted: Path, threads: int) -> dict[str, float]:
        return dict(evaluate(self.model, converted, self.test, threads=threads).metrics)

    def cells(self, result: Mapping[str, float]) -> tuple[str, ...]:
        return f"{result['perplexity']:.2f}", f"{result['kl']:.3f}", f"{result['top1']:.1%}"


class SmolLM2OnPlays(SmolLM2):
    """The same test after calibration on text of another kind."""

    name = "smollm2-plays"
    rows = (MR_GPTQ, W4A4)

    def unseen(self, cache: Path, rest: Tokens) -> Tokens:
        files = [plays(cache) / name for name in PLAYS.members.values()]
        return _tokens(smollm2(cache), "\n\n".join(file.read_text("latin-1") for file in files))


class MiniLM:
    """Mean over the layers of their outputs' SQNR on float operands, and the embeddings, on unseen text."""

    name, folder = "minilm", staticmethod(minilm)
    heading = ("weights", "layer output SQNR, dB", "embedding cosine", "rank agreement", *COST)
    rows = (
        RTN_EVEN,
        RTN_MSE,
        RTN,
        GPTQ,
        MR_GPTQ,
        Row(
            "mr-gptq-float", "mr-gptq, every layer calibrated on the float model", True, {"sequential": False}
        ),
        Row("mr-gptq-128", "mr-gptq, rotation 128", True, {"rotation": 128}),
        Row("w4a8-rtn", "W4A8 rtn", False, {"activation_format": "mxfp8_e4m3"}),
        W4A8,
        Row("w4a6-rtn", "W4A6 rtn", False, {"activation_format": "mxfp6_e2m3"}),
        W4A6,
        Row("w4a4-rtn", "W4A4 rtn", False, {"activation_format": "mxfp4"}),
        Row("w4a4-gptq", "W4A4 gptq", True, {"activation_format": "mxfp4", "algorithm": "gptq"}),
        W4A4,
    )

    def __init__(self, cache: Path, windows: int) -> None:
        folder = self.folder(cache)
        self.model = folder / "model.onnx"
        tokens = _tokens(folder, text())
        chosen = spread(tokens[: len(tokens) // SENTENCE * SENTENCE].reshape(-1, SENTENCE), 2 * SENTENCES)
        self.test, self._calibration = chosen[0::2], chosen[1::2]

    def calibration(self, times: int) -> list[Tokens]:
        return self._calibration

    def measure(self, converted: Path, threads: int) -> dict[str, float]:
        metrics = dict(evaluate(self.model, converted, self.test, threads=threads).metrics)
        return metrics | {"sqnr_db": layer_sqnr(self.model, converted, self.test, threads)}

    def cells(self, result: Mapping[str, float]) -> tuple[str, ...]:
        return f"{result['sqnr_db']:.2f}", f"{result['cosine']:.4f}", f"{result['rank_agreement']:.4f}"


class MiniLML6(MiniLM):
    """The same of twice the layers."""

    name, folder = "minilm-l6", staticmethod(minilm_l6)


Subject = SmolLM2 | MiniLM
SUBJECTS: tuple[type[Subject], ...] = (MiniLM, MiniLML6, SmolLM2, SmolLM2OnPlays)


def _tokens(folder: Path, content: str) -> Tokens:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array(tokenizer.encode(content, add_special_tokens=False).ids, np.int64)


def layer_sqnr(model: Path, converted: Path, data: Sequence[Tokens], threads: int) -> float:
    """Mean over converted layers of 10*log10(|xW|^2 / |x(W - Q)|^2), x the layer's operand in the float model.

    Activations are not rounded here: the figure is of the weights.
    """
    nodes = {n.outputs[0].name: n for n in model_io.load(converted).model.graph if n.domain == "mxort"}
    source = model_io.load(model)
    values = []

    def compare(site: sites.Site, statistics: Any) -> None:
        # A folded bias gives the operator the name of the Add's output.
        output = (site.bias_node or site.node).outputs[0].name
        node = nodes[output]
        codes, scales, multiplier = (node.inputs[i].const_value.numpy() for i in (1, 2, 3))
        stored = dequantize(codes, scales) * multiplier[:, None]
        weight = stages.float_weight(site) * np.float32(site.alpha)
        error = hadamard_rotate(stored, node.attributes.get_int("rotation", 1)) - weight
        signal, noise = (
            np.einsum("nj,jk,nk->", w, statistics.hessian, w, optimize=True) for w in (weight, error)
        )
        values.append(10 * np.log10(signal / noise))

    found = [s for s in sites.find(source.model, sites.Selection(min_elements=1024)) if not s.skip]
    plain = calibrate.Operator(1, "none", 1)
    feeds = packing.calibration_data.samples(data, source.model, str(model))
    settings = calibrate.Settings(lambda site: plain, sequential=False, threads=threads)
    calibrate.run(source.model, found, feeds, compare, settings)
    return float(np.mean(values))


def measure(subject: Subject, row: Row, folder: Path, threads: int) -> dict[str, float]:
    """Convert, in a process of its own whose memory is its own, and measure one row."""
    target = folder / f"{subject.name}-{row.key}.onnx"
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in row.options.items() if value is not False
    ]
    flags += [f"--no-{name.replace('_', '-')}" for name, value in row.options.items() if value is False]
    if row.calibrated:
        windows = subject.calibration(row.times)
        data = folder / f"{subject.name}-{len(windows)}"
        data.mkdir(exist_ok=True)
        for number, tokens in enumerate(windows):
            np.save(data / f"{number:04}.npy", tokens)
        flags += ["--calibration", str(data), "--threads", str(threads)]
    command = [sys.executable, "-m", "mxort.cli", "convert", str(subject.model), "-o", str(target), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = mxort.Report.from_json(done.stdout)
    result = subject.measure(target, threads)
    target.unlink()
    target.with_name(target.name + ".data").unlink(missing_ok=True)
    return result | {
        "seconds": report.seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": report.peak_rss_bytes / 1e6,
        "weight_sqnr_db": report.mean_sqnr_db or math.inf,
    }


def table(subject: Subject, results: Mapping[str, Mapping[str, float]]) -> str:
    """The finished rows as Markdown."""
    lines = ["| " + " | ".join(subject.heading) + " |", "|---" + "|---:" * (len(subject.heading) - 1) + "|"]
    if reference := next((r["perplexity_reference"] for r in results.values() if "perplexity" in r), None):
        lines.append(f"| fp32 | {reference:.2f} | 0 | 100% | | |")
    for row in subject.rows:
        if row.key in results:
            r = results[row.key]
            cost = [f"{r[name]:.0f}" if name in r else "" for name in ("seconds", "cpu_seconds", "peak_mb")]
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
    parser.add_argument("--windows", type=int, default=32, help="SmolLM2's calibration windows of 512 tokens")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
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
            kept = folder / f"{kind.name}-{len(subject.calibration(row.times))}-{row.key}.json"
            wanted = not arguments.rows or row.key in arguments.rows
            if wanted and (arguments.fresh or not kept.exists()):
                print(f"{kind.name}: {row.label}", file=sys.stderr, flush=True)
                kept.write_text(json.dumps(measure(subject, row, folder, arguments.threads)) + "\n")
                print(kept.read_text(), file=sys.stderr, end="", flush=True)
            if kept.exists():
                results[row.key] = json.loads(kept.read_text())
        write(DOCUMENT, kind.name, table(subject, results))


if __name__ == "__main__":
    try:
        main()
    except (ModelError, mxort.MxortError) as error:
        sys.exit(f"error: {error}")
