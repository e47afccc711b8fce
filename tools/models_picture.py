"""Two models as they come and as they are converted: size, speed and accuracy, measured here -> docs/models.{json,svg}.

python -m tools.models_picture            # draws what was measured
python -m tools.models_picture --measure  # a quarter of an hour on two quiet cores
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mxort
from mxort.evaluation import peers
from mxort.evaluation.evaluate import evaluate
from mxort.evaluation.model_bench import bench_models
from mxort.runtime.machine import describe_machine
from samples.models import CACHE
from tools.accuracy.subjects import MiniLM, SmolLM2, Subject

DOCS = Path(__file__).resolve().parents[1] / "docs"
FACTS, PICTURE = DOCS / "models.json", DOCS / "models.svg"
PROMPT, GENERATE, ROUNDS = 128, 32, 12

Make = Callable[[Path, Path], object]


def _tables(source: Path, target: Path) -> None:
    mxort.convert(source, target, convert_embedding=True, table_format="mxfp4")


VARIANTS: dict[str, Make | None] = {
    "fp32": None,
    "onnxruntime int8 (dynamic)": peers.quantize_int8,
    "onnxruntime int4 (MatMulNBits)": peers.quantize_int4,
    "MXFP4, default": lambda source, target: mxort.convert(source, target),
    "MXFP4, tables too": _tables,
}
SUBJECTS: dict[str, tuple[type[Subject], str, str]] = {
    "paraphrase-MiniLM-L3-v2": (MiniLM, "cosine", "embeddings, cosine to fp32"),
    "SmolLM2-135M-Instruct": (SmolLM2, "perplexity", "perplexity"),
}
"""Model -> what measures it, the metric, and what a reader calls it."""


def measure(cache: Path) -> dict[str, Any]:
    """Every variant of both models: bytes, median milliseconds in turns on one thread, and the metric."""
    facts: dict[str, Any] = {"machine": asdict(describe_machine()), "models": {}}
    for name, (kind, metric, label) in SUBJECTS.items():
        subject = kind(cache, 1)
        with tempfile.TemporaryDirectory() as folder:
            rows = _variants(subject, metric, Path(folder))
        facts["models"][name] = {"metric": metric, "label": label, "rows": rows}
    return facts


def _variants(subject: Subject, metric: str, folder: Path) -> dict[str, dict[str, float | None]]:
    paths: dict[str, Path] = {}
    for number, (variant, make) in enumerate(VARIANTS.items()):
        paths[variant] = subject.model
        if make is not None:
            paths[variant] = folder / str(number) / "model.onnx"
            paths[variant].parent.mkdir()
            make(subject.model, paths[variant])
    timed = bench_models(
        list(paths.values()),
        runs=ROUNDS,
        warmup=1,
        threads=1,
        prompt=PROMPT,
        generate=GENERATE,
        max_seconds=600,
    )
    rows: dict[str, dict[str, float | None]] = {}
    for (variant, path), result in zip(paths.items(), timed.models, strict=True):
        metrics = evaluate(subject.model, path, subject.test).metrics
        rows[variant] = {
            "bytes": result.file_bytes,
            "run_ms": result.timing.p50_ms,
            "run_ratio": result.timing.ratio,
            "token_ms": result.decode.p50_ms if result.decode else None,
            "token_ratio": result.decode.ratio if result.decode else None,
            metric: metrics[metric],
        }
        print(variant, rows[variant], flush=True)
    return rows


def draw(facts: dict[str, Any], picture: Path = PICTURE) -> None:
    """A row of three bar charts for each model: what the file takes, how many times fp32's speed, how accurate."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same bytes for the same numbers, and text as text.
    mpl.rcParams.update({"svg.hashsalt": "mxort", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(len(facts["models"]), 3, squeeze=False)
    for row, (name, model) in zip(axes, facts["models"].items(), strict=True):
        variants = list(model["rows"])
        values = list(model["rows"].values())
        decoder = values[0]["token_ms"] is not None
        speed = "token_ratio" if decoder else "run_ratio"
        embeds = model["metric"] == "cosine"
        titles = (
            "file, MB",
            "tokens a second, times fp32" if decoder else "texts a second, times fp32",
            model["label"],
        )
        columns = (
            ([v["bytes"] / 1e6 for v in values], "{:.0f}"),
            ([v[speed] for v in values], "{:.2f}"),
            ([v[model["metric"]] for v in values], "{:.3f}" if embeds else "{:.2f}"),
        )
        for axis, title, (numbers, form) in zip(row, titles, columns, strict=True):
            colors = ["#8a8f98" if not variant.startswith("MXFP4") else "#c2410c" for variant in variants]
            bars = axis.barh(variants, numbers, color=colors)
            axis.bar_label(bars, [form.format(number) for number in numbers], padding=3, fontsize=8)
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=8, labelleft=axis is row[0])
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(name, fontsize=9)
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure first; overwrites docs/models.json")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept (build/models)")
    arguments = parser.parse_args()
    if arguments.measure:
        FACTS.write_text(json.dumps(measure(arguments.cache), indent=2) + "\n")
    draw(json.loads(FACTS.read_text()))


if __name__ == "__main__":
    main()
