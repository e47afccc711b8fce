"""The bounds that the CPU kernels are held to, one row each, and what a run says to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np

from mxort.runtime.machine import Machine
from tools.bench.cases import Measured, Row

RATIO, ERROR, VALUE = "x", "error", "value"

_ROUNDED = ("mxort-int8", "mxort-mxfp6", "mxort-mxfp4")
_NAMES = {
    "mxort": "level 3",
    "mxort-fp32": "level 1",
    "mxort-int8": "level 4",
    "mxort-mxfp6": "mxfp6_e2m3",
    "mxort-mxfp4": "mxfp4",
    "mxort-mxfp8": "mxfp8_e4m3",
    "ort-fp32": "ORT fp32",
    "ort-int4": "MatMulNBits acc0",
    "ort-int4-a8": "MatMulNBits acc4",
    "ort-int8": "ORT dynamic int8",
    "torch-bf16": "torch bf16",
    "openvino-mxfp4": "OpenVINO f4e2m1",
    "ggml-mxfp4": "llama.cpp MXFP4",
    "ort-qmoe": "QMoE int4",
    "matmul-mxfp4": "dense products",
    "read-mxfp4": "plain read",
    "read-fp32": "plain read of fp32",
    "peak-amx": "AMX peak",
    "peak-fma": "FMA peak",
    "peak-vnni": "VNNI peak",
    "peak-bf16": "bf16 peak",
}


def label(peer: str) -> str:
    """How tables call a candidate."""
    name, at, threads = peer.partition("@")
    return _NAMES.get(name, name) + (f", {threads} thread{'s' * (threads != '1')}" if at else "")


@dataclass(frozen=True)
class Bound:
    """``ours`` against ``against`` in a case: a ratio of their times of at least ``limit``, the worst of all of ours
    and of all shapes that begin with ``shape``; or an error, or one of the case's values, of at most ``limit``.

    ``needs`` is the processor feature for which a bound was set: on others the ratio is shown, and judged by nobody.
    """

    case: str
    ours: tuple[str, ...]
    against: str
    limit: float
    kind: str = RATIO
    shape: str = ""
    what: str = ""
    needs: str = ""
    stretch: bool = False


def _large(m: int, case: str, ours: Iterable[str], **limits: float) -> list[Bound]:
    """Ratios at one M of the large shape; the peers' dashes are underscores."""
    return [
        Bound(case, tuple(ours), peer.replace("_", "-"), limit, shape=f"{m}x", what=f"M = {m}")
        for peer, limit in limits.items()
    ]


def _cold(ours: Iterable[str], **limits: float) -> list[Bound]:
    return [
        Bound("cold", tuple(ours), peer.replace("_", "-"), limit, shape="1x", what="M = 1, cold")
        for peer, limit in limits.items()
    ]


def _many_rows(m: int, case: str) -> list[Bound]:
    """From 64 rows on: set on a processor with AMX."""
    limits = {"ort-fp32": 8, "ort-int4-a8": 8, "torch-bf16": 1.3, "openvino-mxfp4": 1.8}
    stretch = {"ort-int8": 1, "peak-amx": 0.45}
    return [
        Bound(case, (ours,), peer, limit, RATIO, f"{m}x", f"M = {m}", "amx_bf16", peer in stretch)
        for ours in ("mxort", "mxort-int8")
        for peer, limit in (limits | stretch).items()
    ]


BOUNDS: tuple[Bound, ...] = (
    *_large(1, "m1-m16", _ROUNDED, read_mxfp4=0.95, ort_int4_a8=1.5, ggml_mxfp4=2, ort_fp32=10),
    *_cold(_ROUNDED, read_mxfp4=0.88, ort_int4_a8=1.5, ggml_mxfp4=2, ort_fp32=6),
    *_large(1, "m1-m16", ("mxort",), ort_int4_a8=1.3),
    *_cold(("mxort",), ort_int4_a8=1.5),
    Bound("m1-m16", ("mxort",), "", 3e-5, ERROR, "1x", "M = 1"),
    *_large(4, "m1-m16", ("mxort-int8", "mxort-mxfp6"), ort_int4_a8=2.6),
    *_large(4, "m1-m16", ("mxort",), ort_int4_a8=1.5),
    *_large(16, "m1-m16", ("mxort",), ort_int4_a8=3.2, ort_fp32=5),
    *_large(16, "m1-m16", ("mxort-int8",), ort_int4_a8=3.2, ort_fp32=5),
    *_many_rows(64, "m64"),
    *_many_rows(256, "m256-m512"),
    *_many_rows(512, "m256-m512"),
    Bound("m256-m512", ("mxort-fp32",), "ort-fp32", 2, RATIO, "256x", "M = 256", "amx_bf16"),
    Bound("m256-m512", ("mxort-fp32",), "", 1e-6, ERROR, "256x", "M = 256"),
    *(
        Bound("threads", (f"{ours}@2",), f"{ours}@1", 1.85, RATIO, f"{m}x", f"M = {m}")
        for m in (1, 256)
        for ours in ("mxort", "mxort-int8", "mxort-mxfp6")
    ),
    *(
        Bound("small", (ours,), "ort-fp32", 1, what="384x1536, 576x576, 768x3072, every M")
        for ours in ("mxort", "mxort-int8", "mxort-mxfp6")
    ),
    Bound("experts", ("mxort-int8",), "read-mxfp4", 0.85, what="experts, M = 1, cold"),
    Bound("experts", ("mxort-int8",), "ort-qmoe", 1.5, what="experts, M = 1, cold"),
    Bound("experts", ("mxort-int8",), "ggml-mxfp4", 1.5, what="experts, M = 1, cold"),
    Bound("experts-256", ("mxort-int8",), "matmul-mxfp4", 0.9, what="experts, M = 256"),
    Bound("overhead", ("microseconds above Identity",), "", 3, VALUE),
    Bound("memory", ("anonymous / packed",), "", 1.15, VALUE),
    Bound("memory", ("second session / packed",), "", 0.05, VALUE),
    Bound("minilm", ("mxort",), "ort-fp32", 2.5, shape="run", what="MiniLM, 1 x 128 tokens"),
    Bound("smollm2", ("mxort",), "ort-fp32", 4, shape="decode", what="SmolLM2 decode"),
    Bound("smollm2", ("mxort",), "ort-int4-a8", 1.3, shape="decode", what="SmolLM2 decode"),
    Bound("smollm2", ("mxort",), "ort-fp32", 3, shape="run", what="SmolLM2 prefill, 512 tokens"),
    Bound("minilm", ("mxort-int8",), "ort-fp32", 2.5, shape="run", what="MiniLM, 1 x 128 tokens"),
    Bound("smollm2", ("mxort-int8",), "ort-fp32", 4, shape="decode", what="SmolLM2 decode"),
    Bound("smollm2", ("mxort-int8",), "ort-int4-a8", 1.3, shape="decode", what="SmolLM2 decode"),
    Bound("smollm2", ("mxort-int8",), "ort-fp32", 3, shape="run", what="SmolLM2 prefill, 512 tokens"),
)

MET, SHORT, NOT_MEASURED = "met", "short", "not measured"
OTHER_CPU = "other CPU"
"""Short of a bound that was set for a unit this processor lacks."""
BEYOND = "beyond limit"
"""Short of a bound that the machine's own limits, in the same run, do not allow."""


@dataclass(frozen=True)
class Verdict:
    """A bound and what was measured: ``found`` is the median of the rounds, ``fastest`` the ratio of the fastest turns,
    which tells a row that is slow from a machine that was busy. ``bound_by`` says how near the row is to the machine's
    limits, from the run."""

    what: str
    ours: str
    against: str
    kind: str
    limit: float
    stretch: bool
    found: float | None
    fastest: float | None
    verdict: str
    bound_by: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)


def judge(bound: Bound, measured: Mapping[str, Measured], why_not: Mapping[str, str]) -> Verdict:
    """What a run says to a bound; ``why_not`` are reasons for cases that are not in ``measured``."""
    result = measured.get(bound.case)
    if result is None:
        return _verdict(bound, bound.ours[0], None, NOT_MEASURED, why_not.get(bound.case, "no such run"))
    if bound.kind == VALUE:
        value = result.values[bound.ours[0]]
        return _verdict(bound, bound.ours[0], value, MET if value <= bound.limit else SHORT, "")
    rows = [row for row in result.rows if row.shape.startswith(bound.shape)]
    ours = [row for row in rows if row.peer in bound.ours]
    if bound.kind == ERROR:
        worst = max(ours, key=lambda row: row.error or 0.0)
        error = worst.error or 0.0
        return _verdict(bound, worst.peer, error, MET if error <= bound.limit else SHORT, "")
    others = {row.shape: row for row in rows if row.peer == bound.against}
    found = [(ratio(others[row.shape], row), row) for row in ours if row.shape in others]
    if not found:
        reason = result.missing.get(bound.against) or result.missing.get(bound.ours[0]) or "no such row"
        return _verdict(bound, bound.ours[0], None, NOT_MEASURED, reason)
    value, worst = min(found, key=lambda pair: pair[0])
    if "@" in worst.peer:
        text, allowed = _scaling([row for row in rows if row.shape == worst.shape])
    else:
        text, allowed = _bound_by(worst, others[worst.shape])
        text = text if bound.shape or not text else f"at {worst.shape}: {text}"
    verdict = MET if value >= bound.limit else SHORT
    if verdict == SHORT and bound.needs and bound.needs not in result.machine.isa:
        verdict = OTHER_CPU
    elif verdict == SHORT and allowed < bound.limit:
        verdict = BEYOND
    fastest = min(others[worst.shape].turns_ms) / min(worst.turns_ms)
    return _verdict(bound, worst.peer, value, verdict, text, fastest)


def _verdict(
    bound: Bound, ours: str, found: float | None, verdict: str, text: str, fastest: float | None = None
) -> Verdict:
    return Verdict(
        what=bound.what or bound.case,
        ours=label(ours),
        against=label(bound.against),
        kind=bound.kind,
        limit=bound.limit,
        stretch=bound.stretch,
        found=found,
        fastest=fastest,
        verdict=verdict,
        bound_by=text,
    )


def ratio(other: Row, ours: Row) -> float:
    """Median over the rounds of (time of the other / time of ours): how many times as fast ours is."""
    return float(np.median(np.divide(other.turns_ms, ours.turns_ms)))


def median_ms(row: Row) -> float:
    """The row's time."""
    return float(np.median(row.turns_ms))


def _bound_by(row: Row, other: Row) -> tuple[str, float]:
    """Shares of the machine's limits that a row reaches, and the ratio that the nearer limit would allow."""
    if row.shares:
        parts = [f"{op} {share:.0%}" for op, share in list(row.shares.items())[:3]]
        return "time in " + ", ".join(parts), inf
    limits = [("of plain read", row.of_read), (f"of {label(f'peak-{row.unit}')}", row.of_peak)]
    known = [(share, name) for name, share in limits if share is not None]
    if not known:
        return "", inf
    nearest = max(share for share, _ in known)
    allowed = median_ms(other) / (median_ms(row) * nearest)
    text = ", ".join(f"{share:.0%} {name}" for share, name in known if share > nearest / 10)
    return f"{text}; the limit allows {allowed:.2g}x", allowed


def _scaling(rows: Iterable[Row]) -> tuple[str, float]:
    """How much faster the machine's limits are on two threads than on one, and the larger of these figures."""
    by_peer = {row.peer: row for row in rows}
    scales = {
        label(limit): ratio(by_peer[f"{limit}@1"], by_peer[f"{limit}@2"])
        for limit in ("read-mxfp4", "peak-vnni", "peak-amx")
        if f"{limit}@1" in by_peer
    }
    text = "two threads over one: " + ", ".join(f"{name} {scale:.2f}x" for name, scale in scales.items())
    return text, max(scales.values(), default=inf)


def judge_all(measured: Mapping[str, Measured], why_not: Mapping[str, str]) -> list[Verdict]:
    """All bounds in the order of the table."""
    return [judge(bound, measured, why_not) for bound in BOUNDS]


def machine_of(measured: Mapping[str, Measured]) -> Machine | None:
    """The machine of a run's first case."""
    return next((result.machine for result in measured.values()), None)
