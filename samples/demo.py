"""What mxort does to two real transformers, beside what people use today: size, accuracy and latency, on this machine.

Usage: python samples/demo.py [--cache build/models] [--json numbers.json]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

import numpy as np
import onnxruntime as ort
from decoder import Decoder, perplexity, text_tokens
from embed import embed
from models import CACHE, ModelError, minilm, smollm2
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import mxort
from mxort.evaluation.evaluate import rank_agreement
from mxort.evaluation.peers import quantize_int8
from mxort.evaluation.turns import interleave, session_options
from mxort.runtime.machine import describe_machine

SENTENCES = 96
PERPLEXITY_TOKENS = 4096  # 8 windows of 512
PREFILL_TOKENS = 256


@dataclass(frozen=True)
class Row:
    """One measured quantity of the fp32 model, of what onnxruntime's own tools make of it, and of its conversion."""

    key: str
    label: str
    form: str
    fp32: float | None
    peer: float | None
    mxfp4: float


def converted(source: Path, peer: Path) -> tuple[Path, list[Row], Counter[str]]:
    """Convert with the default preset: the file, its rows, and how many layers were skipped and why."""
    target = source.with_suffix(".mxfp4.onnx")
    report = mxort.convert(source, target, recipe="weight-only")
    skipped = Counter(site.reason for site in report.skipped)
    rows = [
        Row(
            "bytes", "size, MB", "megabytes", report.original_bytes, file_bytes(peer), report.converted_bytes
        ),
        Row("layers_converted", "layers converted", "d", None, None, len(report.converted)),
        Row("layers_skipped", "layers skipped", "d", None, None, len(report.skipped)),
        Row("convert_seconds", "conversion, s", ".1f", None, None, report.seconds),
    ]
    return target, rows, skipped


def file_bytes(model: Path) -> int:
    """Of a model with its data file."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))


def sessions(source: Path, peer: Path, target: Path) -> list[ort.InferenceSession]:
    """The fp32 model and the peer in plain onnxruntime, and the converted one with our library."""
    plain = [ort.InferenceSession(path, session_options(threads=0)) for path in (source, peer)]
    return [*plain, mxort.InferenceSession(target, session_options(threads=0))]


def milliseconds(runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median of each run. They take turns, so that a busy moment of the machine meets them all."""

    def timed(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    seconds = interleave([partial(timed, run) for run in runs], runs=rounds, warmup=2)
    return [median(kept) * 1e3 for kept in seconds]


def sentences() -> list[str]:
    """Sentences of 8 to 24 words, spread over the Python language reference."""
    text = " ".join(topics[name] for name in sorted(topics))
    found = re.findall(r"(?<=[.])\s+([A-Z][^.:*|`~\"]{20,}[.])(?=\s)", text)
    tidy = list(dict.fromkeys(" ".join(sentence.split()) for sentence in found))
    tidy = [sentence for sentence in tidy if 8 <= len(sentence.split()) <= 24]
    return tidy[:: max(1, len(tidy) // SENTENCES)][:SENTENCES]


def demo_minilm(folder: Path) -> tuple[list[Row], Counter[str]]:
    """Sentence embeddings: agreement with fp32 and the time of one text of 128 tokens."""
    source, peer = folder / "model.onnx", folder / "int8.onnx"
    if not peer.exists():
        quantize_int8(source, peer)
    target, rows, skipped = converted(source, peer)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    three = sessions(source, peer, target)
    fp32, *others = (embed(session, tokenizer, sentences()) for session in three)
    cosines = [float((fp32 * other).sum(axis=1).mean()) for other in others]
    ranks = [rank_agreement(fp32, other) for other in others]
    tokens = text_tokens(tokenizer, 128)[None]
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    times = milliseconds([partial(session.run, None, feeds) for session in three], rounds=40)
    rows += [
        Row("cosine", "embeddings, mean cosine to fp32", ".4f", 1.0, *cosines),
        Row("rank_agreement", "similarities, rank correlation to fp32", ".4f", 1.0, *ranks),
        Row("encode_ms", "encode 1 x 128 tokens, ms", ".2f", *times),
    ]
    return rows, skipped


def demo_smollm2(folder: Path) -> tuple[list[Row], Counter[str]]:
    """A language model: perplexity, the time of a prompt and the time of a generated token."""
    source, peer = folder / "model.onnx", folder / "int4" / "model.onnx"
    target, rows, skipped = converted(source, peer)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = text_tokens(tokenizer, PERPLEXITY_TOKENS)
    decoders = [Decoder(session, folder) for session in sessions(source, peer, target)]
    perplexities = [perplexity(decoder, tokens) for decoder in decoders]

    def prefill(decoder: Decoder) -> None:
        decoder.reset()
        decoder.step(tokens[:PREFILL_TOKENS])

    prompt = milliseconds([partial(prefill, decoder) for decoder in decoders], rounds=7)
    one = tokens[PREFILL_TOKENS : PREFILL_TOKENS + 1]  # which token follows does not change the time
    token = milliseconds([partial(decoder.step, one) for decoder in decoders], rounds=40)
    rows += [
        Row("perplexity", "perplexity", ".2f", *perplexities),
        Row("prefill_ms", f"prefill {PREFILL_TOKENS} tokens, ms", ".1f", *prompt),
        Row("decode_ms", "decode, ms per token", ".2f", *token),
    ]
    return rows, skipped


@dataclass(frozen=True)
class Demo:
    """A model: what it is called, and how it is got and shown."""

    title: str
    peer: str
    obtain: Callable[[Path], Path]
    run: Callable[[Path], tuple[list[Row], Counter[str]]]


DEMOS = {
    "minilm": Demo("paraphrase-MiniLM-L3-v2, sentence encoder", "onnxruntime int8", minilm, demo_minilm),
    "smollm2": Demo("SmolLM2-135M-Instruct, language model", "genai int4", smollm2, demo_smollm2),
}


def show(console: Console, demo: Demo, rows: Sequence[Row], skipped: Counter[str]) -> None:
    """Print one model's table and why layers were skipped."""

    def cell(row: Row, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value / 1e6:.1f}" if row.form == "megabytes" else format(value, row.form)

    table = Table(title=demo.title, title_justify="left")
    table.add_column("")
    for heading in ("fp32", demo.peer, "mxort"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.label, cell(row, row.fp32), cell(row, row.peer), cell(row, row.mxfp4))
    console.print(table)
    for reason, count in skipped.items():
        console.print(f"skipped {count}: {reason}", markup=False)


def main() -> None:
    """Obtain, convert, measure and print the models."""
    parser = argparse.ArgumentParser(description="Size, accuracy and latency beside fp32 and a peer.")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept (build/models)")
    parser.add_argument("--models", nargs="+", choices=DEMOS, default=list(DEMOS), help="only these")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()

    folders = {name: DEMOS[name].obtain(arguments.cache) for name in arguments.models}
    machine = describe_machine()
    console = Console()
    console.print(machine.line(), f"onnxruntime {ort.__version__}", sep=", ", highlight=False)
    models = {}
    for name, folder in folders.items():
        rows, skipped = DEMOS[name].run(folder)
        show(console, DEMOS[name], rows, skipped)
        models[name] = {row.key: {"fp32": row.fp32, "peer": row.peer, "mxfp4": row.mxfp4} for row in rows}
    if arguments.json:
        numbers = {"machine": asdict(machine), "onnxruntime": ort.__version__, "models": models}
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ModelError, mxort.MxortError) as error:
        sys.exit(f"error: {error}")
