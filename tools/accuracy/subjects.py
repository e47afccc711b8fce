"""What is measured: models with their test and calibration text, and the conversions that make up a table's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mxort.evaluation.evaluate import evaluate
from samples.models import PLAYS, minilm, minilm_l6, plays, smollm2
from tools.accuracy.layers import layer_sqnr
from tools.accuracy.texts import reference

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
    times: float = 1
    written: int = 0  # windows that the model writes itself, in the place of data or beside them
    texts: tuple[str, ...] = ()  # kinds of text, where a subject has several
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
TABLES = {"table_format": "mxfp4"}


def spread(windows: npt.NDArray[Any], count: int) -> list[Tokens]:
    """``count`` windows at equal distances."""
    return [windows[i] for i in np.linspace(0, len(windows) - 1, count).round().astype(int)]


class SmolLM2:
    """Perplexity, KL and top-1 agreement on the first windows; calibration on later ones."""

    name = "smollm2"
    heading: tuple[str, ...] = ("weights", "perplexity", "KL to fp32", "top-1", *COST)
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
        tokens = tokenised(folder, reference())
        held_out = TEST_WINDOWS * WINDOW
        self.test = list(tokens[:held_out].reshape(-1, WINDOW))
        rest = self.unseen(cache, tokens[held_out:])
        self._windows = rest[: len(rest) // WINDOW * WINDOW].reshape(-1, WINDOW)
        self._count = windows

    def calibration(self, row: Row) -> list[Tokens]:
        """What the row is given, [] for one without data."""
        if not row.calibrated or row.written:
            return []
        return spread(self._windows, round(self._count * row.times))

    def unseen(self, cache: Path, rest: Tokens) -> Tokens:
        """What calibration windows are taken from; ``rest`` is the text after the test windows."""
        return rest

    def measure(self, converted: Path, threads: int) -> dict[str, float]:
        return dict(evaluate(self.model, converted, self.test, threads=threads).metrics)

    def cells(self, result: Mapping[str, float]) -> tuple[str, ...]:
        return f"{result['perplexity']:.2f}", f"{result['kl']:.3f}", f"{result['top1']:.1%}"


class SmolLM2Written(SmolLM2):
    """No data: rounded, and calibrated on what the model writes."""

    name = "smollm2-self"
    rows = (
        RTN,
        Row(
            "self-32",
            "mr-gptq, 32 windows that the model writes **(`--calibration self`)**",
            True,
            written=32,
        ),
        Row("self-128", "mr-gptq, 128 windows that the model writes", True, written=128),
    )


class SmolLM2OnPlays(SmolLM2):
    """The same test after calibration on text of another kind."""

    name = "smollm2-plays"
    rows = (MR_GPTQ, W4A4)

    def unseen(self, cache: Path, rest: Tokens) -> Tokens:
        files = [plays(cache) / name for name in PLAYS.members.values()]
        return tokenised(smollm2(cache), "\n\n".join(file.read_text("latin-1") for file in files))


class SmolLM2Tables(SmolLM2):
    """What the format of the table that output projection and embedding share costs."""

    name = "smollm2-tables"
    heading = (*SmolLM2.heading[:4], "file, MB", *COST)
    rows = (
        Row("rtn-table-float", "rtn, the table in float", False, {"table_format": "float"}),
        Row("rtn-table-mxint8", "rtn, the table in MXINT8 (default)", False, {}),
        *(
            Row(f"rtn-table-{name}", f"rtn, the table in {name}", False, {"table_format": name})
            for name in ("mxfp8_e4m3", "mxfp6_e2m3", "mxfp4")
        ),
        Row(
            "mr-gptq-tables",
            "mr-gptq, a quarter of the text, the table in mxfp4",
            True,
            TABLES,
            times=0.25,
        ),
    )


class SmolLM2Cache(SmolLM2):
    """What it costs to round keys and values when they enter the cache."""

    name = "smollm2-cache"
    heading = (*SmolLM2.heading[:4], "file, MB", *COST)
    rows = (
        RTN,
        *(
            Row(f"rtn-cache-{cache}", f"rtn, the cache in {cache}", False, {"kv_cache": cache})
            for cache in ("mxfp8", "mxfp4")
        ),
    )


class MiniLM:
    """Mean over the layers of their outputs' SQNR on float operands, and the embeddings, on unseen text."""

    name, folder = "minilm", staticmethod(minilm)
    heading: tuple[str, ...] = (
        "weights",
        "layer output SQNR, dB",
        "embedding cosine",
        "rank agreement",
        *COST,
    )
    rows: tuple[Row, ...] = (
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
        tokens = tokenised(folder, reference())
        sentences = tokens[: len(tokens) // SENTENCE * SENTENCE].reshape(-1, SENTENCE)
        chosen = np.linspace(0, len(sentences) - 1, 2 * SENTENCES).round().astype(int)
        self.test = list(sentences[chosen[0::2]])
        self._few, self._many = list(sentences[chosen[1::2]]), np.delete(sentences, chosen[0::2], axis=0)

    def calibration(self, row: Row) -> list[Tokens]:
        return self._few if row.times == 1 else spread(self._many, round(row.times * SENTENCES))

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
SUBJECTS: tuple[type[Subject], ...] = (
    MiniLM,
    MiniLMTables,
    MiniLML6,
    SmolLM2,
    SmolLM2Written,
    SmolLM2Tables,
    SmolLM2Cache,
    SmolLM2OnPlays,
)


def tokenised(folder: Path, content: str) -> Tokens:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array(tokenizer.encode(content, add_special_tokens=False).ids, np.int64)
