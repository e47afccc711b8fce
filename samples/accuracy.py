"""Measure what each way of converting costs in accuracy, and write the tables of docs/accuracy.md.

Usage: python samples/accuracy.py [--windows 128] [--rows NAME ...] [--threads 0]

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
from mxort.calibration import calibrate
from mxort.conversion import weights as packing
from mxort.converters import functions, model_io, sites, stages
from mxort.evaluation.evaluate import evaluate
from mxort.formats import WEIGHT_FORMATS, hadamard_rotate
from mxort.quantize import dequantize

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "accuracy.md"

TEST_WINDOWS, WINDOW = 8, 512  # SmolLM2: the first 4096 tokens, as in `make demo`
SENTENCES, SENTENCE = 64, 128  # MiniLM: windows of text, alternately for calibration and test

COST = ("convert, s", "CPU, s", "peak memory, MB")
FIGURES = {  # what a column holds, and its decimals
    "file, MB": ("file_mb", 1),
    "convert, s": ("seconds", 0),
    "CPU, s": ("cpu_seconds", 0),
    "peak memory, MB": ("peak_mb", 0),
}

Tokens = npt.NDArray[np.int64]
SELECTION = sites.Selection(min_elements=mxort.Recipe().min_elements)


@dataclass(frozen=True)
class Row:
    """One conversion: what the table calls it, its options, and how many times the usual data it is given."""

    key: str
    label: str
    calibrated: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    times: float = 1
    quark: str = ""  # a preset of AMD Quark, which then makes the weights


RTN_EVEN = Row("rtn-even", "rtn, scale rule even", False, {"scale_rule": "even", "column_multiplier": False})
RTN_MSE = Row("rtn-mse", "rtn, scale rule mse", False, {"column_multiplier": False})
RTN = Row("rtn", "rtn, mse, column multiplier **(default without data)**", False)
GPTQ = Row("gptq", "gptq", True, {"algorithm": "gptq"})
GPTQ_QUARTER = Row("gptq-quarter", "gptq, a quarter of the calibration text", True, GPTQ.options, 0.25)
MR_GPTQ = Row("mr-gptq", "mr-gptq **(default with data)**", True)
MR_GPTQ_QUARTER = Row("mr-gptq-quarter", "mr-gptq, a quarter of the calibration text", True, times=0.25)
W4A8 = Row("w4a8", "W4A8 mr-gptq", True, {"activation_format": "mxfp8_e4m3"})
W4A6 = Row("w4a6", "W4A6 mr-gptq", True, {"activation_format": "mxfp6_e2m3"})
W4A4 = Row("w4a4", "W4A4 mr-gptq", True, {"activation_format": "mxfp4"})
MIXED = Row("mixed-4.75", "mr-gptq, formats by layer within 4.75 bits", True, {"budget_bits": 4.75})
SMOOTH = Row(
    "smooth-gptq",
    "smooth-gptq, a quarter of the calibration text",
    True,
    {"algorithm": "smooth-gptq"},
    0.25,
)
LM_HEAD = {"convert_lm_head": True}
TABLES = {"convert_embedding": True, **LM_HEAD}


def text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def spread(windows: npt.NDArray[Any], count: int) -> list[Tokens]:
    """``count`` windows at equal distances."""
    return [windows[i] for i in np.linspace(0, len(windows) - 1, count).round().astype(int)]


class SmolLM2:
    """Perplexity, KL and top-1 agreement on the first windows; calibration on later ones."""

    name = "smollm2"
    heading = ("weights", "perplexity", "KL to fp32", "top-1", *COST)
    rows: tuple[Row, ...] = (
        RTN_EVEN,
        RTN_MSE,
        RTN,
        GPTQ_QUARTER,
        MR_GPTQ_QUARTER,
        SMOOTH,
        MR_GPTQ,
        MIXED,
        W4A8,
        W4A6,
        W4A4,
    )

    def __init__(self, cache: Path, windows: int) -> None:
        folder = smollm2(cache)
        self.model = folder / "model.onnx"
        tokens = _tokens(folder, text())
        held_out = TEST_WINDOWS * WINDOW
        self.test = list(tokens[:held_out].reshape(-1, WINDOW))
        rest = self.unseen(cache, tokens[held_out:])
        self._windows = rest[: len(rest) // WINDOW * WINDOW].reshape(-1, WINDOW)
        self._count = windows

    def calibration(self, times: float) -> list[Tokens]:
        return spread(self._windows, round(self._count * times))

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


class SmolLM2Tables(SmolLM2):
    """What it costs to convert the output projection, and the embedding that shares its table."""

    name = "smollm2-tables"
    heading = (*SmolLM2.heading[:4], "file, MB", *COST)
    rows = (
        RTN,
        Row("rtn-lm-head", "rtn, and lm_head alone: the float table stays", False, LM_HEAD),
        Row("rtn-tables", "rtn, and lm_head with the embedding", False, TABLES),
        Row(
            "mr-gptq-tables",
            "mr-gptq, a quarter of the text, and lm_head with the embedding",
            True,
            TABLES,
            times=0.25,
        ),
    )


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
        Row("mr-gptq-8", "mr-gptq, eight times the calibration text", True, times=8),
        Row(
            "mr-gptq-8-float",
            "mr-gptq, every layer calibrated on the float model, eight times the text",
            True,
            {"sequential": False},
            times=8,
        ),
        Row(
            "mr-gptq-8-float-3",
            "mr-gptq, calibrated on the float model, eight times the text, effort 3",
            True,
            {"sequential": False, "effort": 3},
            times=8,
        ),
        Row("mr-gptq-128", "mr-gptq, rotation 128", True, {"rotation": 128}),
        Row("w4a8-rtn", "W4A8 rtn", False, {"activation_format": "mxfp8_e4m3"}),
        W4A8,
        Row("w4a6-rtn", "W4A6 rtn", False, {"activation_format": "mxfp6_e2m3"}),
        W4A6,
        Row("w4a4-rtn", "W4A4 rtn", False, {"activation_format": "mxfp4"}),
        Row("w4a4-gptq", "W4A4 gptq", True, {"activation_format": "mxfp4", "algorithm": "gptq"}),
        W4A4,
        Row("quark", "AMD Quark 0.13, MXFP4E2M1", False, quark="MXFP4E2M1"),
    )

    def __init__(self, cache: Path, windows: int) -> None:
        folder = self.folder(cache)
        self.model = folder / "model.onnx"
        tokens = _tokens(folder, text())
        windows = tokens[: len(tokens) // SENTENCE * SENTENCE].reshape(-1, SENTENCE)
        chosen = np.linspace(0, len(windows) - 1, 2 * SENTENCES).round().astype(int)
        self.test = list(windows[chosen[0::2]])
        self._few, self._many = list(windows[chosen[1::2]]), np.delete(windows, chosen[0::2], axis=0)

    def calibration(self, times: float) -> list[Tokens]:
        return self._few if times == 1 else spread(self._many, round(times * SENTENCES))

    def measure(self, converted: Path, threads: int) -> dict[str, float]:
        metrics = dict(evaluate(self.model, converted, self.test, threads=threads).metrics)
        return metrics | {"sqnr_db": layer_sqnr(self.model, converted, self.test, threads)}

    def cells(self, result: Mapping[str, float]) -> tuple[str, ...]:
        return f"{result['sqnr_db']:.2f}", f"{result['cosine']:.4f}", f"{result['rank_agreement']:.4f}"


class MiniLML6(MiniLM):
    """The same of twice the layers."""

    name, folder = "minilm-l6", staticmethod(minilm_l6)


class MiniLMTables(MiniLM):
    """What it costs to convert the embedding tables."""

    name = "minilm-tables"
    heading = (*MiniLM.heading[:4], "file, MB", *COST)
    rows = (RTN, Row("rtn-tables", "rtn, and the embedding tables", False, {"convert_embedding": True}))


Subject = SmolLM2 | MiniLM
SUBJECTS: tuple[type[Subject], ...] = (MiniLM, MiniLMTables, MiniLML6, SmolLM2, SmolLM2Tables, SmolLM2OnPlays)


def _tokens(folder: Path, content: str) -> Tokens:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array(tokenizer.encode(content, add_special_tokens=False).ids, np.int64)


def stored_weights(converted: Path) -> dict[str, npt.NDArray[np.float32]]:
    """W^T [N, K] of every layer, by the name of the layer's output: float32 as the file's numbers mean it."""
    model = model_io.load(converted).model
    weights = {output(s): stages.float_weight(s) for s in sites.find(model, SELECTION) if not s.skip}
    for node in model.graph:
        if node.domain == "mxort" and node.op_type in functions.OPERATORS.values():
            codes, scales, multiplier = (node.inputs[i].const_value.numpy() for i in (1, 2, 3))
            bits = node.attributes.get_int(functions.EXPONENT_BITS, 0)
            element = WEIGHT_FORMATS[functions.weight_format_of(node.op_type, bits)]
            rows = dequantize(codes, scales, element) * multiplier[:, None]
            weights[node.outputs[0].name] = hadamard_rotate(rows, node.attributes.get_int("rotation", 1))
    return weights


def output(site: sites.Site) -> str:
    """The layer's output, which keeps its name: a bias that is added next belongs to the layer."""
    return (site.bias_node or site.node).outputs[0].name


def layer_sqnr(model: Path, converted: Path, data: Sequence[Tokens], threads: int) -> float:
    """Mean over converted layers of 10*log10(|xW|^2 / |x(W - Q)|^2), x the layer's operand in the float model.

    Activations are not rounded here: the figure is of the weights.
    """
    stored, source = stored_weights(converted), model_io.load(model)
    values = []

    def compare(site: sites.Site, statistics: Any) -> None:
        weight = stages.float_weight(site) * np.float32(site.alpha)
        error = stored[output(site)] - weight
        signal, noise = (np.vdot(w @ statistics.hessian, w) for w in (weight, error))
        values.append(10 * np.log10(signal / noise))

    found = [s for s in sites.find(source.model, SELECTION) if not s.skip]
    plain = calibrate.Operator(1, "none", 1)
    feeds = packing.calibration_data.samples(data, source.model, str(model))
    settings = calibrate.Settings(lambda site: plain, sequential=False, threads=threads)
    calibrate.run(source.model, found, feeds, compare, settings)
    return float(np.mean(values))


def measure(subject: Subject, row: Row, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Convert, in a process of its own whose memory is its own, and measure one row."""
    target = folder / f"{subject.name}-{row.key}.onnx"
    data = folder / f"{subject.name}-{len(subject.calibration(row.times))}"
    data.mkdir(exist_ok=True)
    for number, tokens in enumerate(subject.calibration(row.times)):
        np.save(data / f"{number:04}.npy", tokens)
    if row.quark:
        script = Path(__file__).with_name("quark_weights.py")
        command = [arguments.quark, script, row.quark, subject.model, data, target]
    else:
        command = [sys.executable, "-m", "mxort", "convert", subject.model, "-o", target, "--json"]
        command += flags(row)
        if row.calibrated:
            command += ["--calibration", data, "--threads", str(arguments.threads)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    files = [file for file in (target, target.with_name(target.name + ".data")) if file.exists()]
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
            kept = folder / f"{kind.name}-{len(subject.calibration(row.times))}-{row.key}.json"
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
