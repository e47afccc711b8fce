"""MoEMXFP4 in double precision, with bounds for what a float kernel may differ by: loops over experts and rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf
from typing import Any

import numpy as np

import oracle
from mxort.formats import ACTIVATION_FORMATS, BLOCK_SIZE, scale_value, to_blocks
from mxort.scales import quantize_blocks
from oracle import FLOAT_EPSILON, Case

NONE, RELU, GELU, GELU_TANH, SILU = range(5)
"""The attribute activation."""

STEEPEST = 1.13
"""No activation has a larger slope: both GELU reach 1.129, SiLU 1.1 whatever its alpha."""

EVALUATION = 1e-6
"""What a float evaluation of one may err by in units of its argument (test_epilogue.py)."""

SOFTMAX = 1e-6
"""The relative error of exp, of the division by the sum, and of that by the sum of the chosen, in float."""


@dataclass
class Experts:
    """The operator's weights, a Case for each expert and product, and its attributes."""

    gate_up: list[Case]
    down: list[Case]
    k: int
    activation: int = SILU
    normalize_routing_weights: int = 1
    swiglu_fusion: int = 2
    activation_alpha: float = 1.0
    activation_beta: float = 0.0
    swiglu_limit: float = 0.0

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The eight inputs that are constants, by name."""
        made = {}
        for product, cases in (("gate_up", self.gate_up), ("down", self.down)):
            made[f"{product}_B"] = np.stack([case.codes for case in cases])
            made[f"{product}_B_scale"] = np.stack([case.scales for case in cases])
            made[f"{product}_column_scale"] = np.stack([case.column_scale for case in cases])
            made[f"{product}_bias"] = np.stack([case.bias for case in cases])
        return made

    @property
    def attributes(self) -> dict[str, Any]:
        first = self.gate_up[0]
        own = {name: value for name, value in vars(self).items() if name not in ("gate_up", "down")}
        of_products = ("rotation", "activation_format", "accuracy_level")
        return own | {name: getattr(first, name) for name in of_products}


def random_experts(
    rng: np.random.Generator,
    experts: int = 5,
    d: int = 64,
    hidden: int = 32,
    k: int = 2,
    *,
    rotation: int = 1,
    activation_format: str = "none",
    accuracy_level: int = 0,
    **attributes: Any,
) -> Experts:
    """Weights whose products are about 1 where their rows are."""
    gated = attributes.get("swiglu_fusion", 2) != 0
    of_product = {"activation_format": activation_format, "accuracy_level": accuracy_level}

    def stack(n: int, width: int) -> list[Case]:
        multipliers = (rng.random((experts, n), np.float32) + 0.5) / np.float32(np.sqrt(width))
        return [
            oracle.random_case(rng, n, width, rotation, column_scale=m, **of_product) for m in multipliers
        ]

    return Experts(stack(hidden * (1 + gated), d), stack(d, hidden), k, **attributes)


def chosen(experts: Experts, logits: np.ndarray) -> list[tuple[int, float]]:
    """(expert, weight) of a row of logits, by index; the weights are NaN where a logit is."""
    wide = logits.astype(np.float64)
    by_size = sorted(range(len(wide)), key=lambda e: (-wide[e], e))[: experts.k]
    with np.errstate(invalid="ignore"):
        p = np.exp(wide - wide.max())
        p /= p.sum()
    total = sum(p[e] for e in by_size) if experts.normalize_routing_weights else 1.0
    return [(e, float(p[e] / total)) for e in sorted(by_size)]


def activated(experts: Experts, x: np.ndarray) -> np.ndarray:
    """float64 of float64."""
    match experts.activation:
        case 1:
            return np.where(x < 0, 0, x)
        case 2:
            return x * (1 + np.vectorize(erf, otypes=[float])(x / np.sqrt(2))) / 2
        case 3:
            return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
        case 4:
            with np.errstate(over="ignore"):
                return x / (1 + np.exp(-experts.activation_alpha * x))
    return x


def hidden_of(experts: Experts, product: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h [rows, I], how far a kernel's may be from it) of the first product [rows, N] and its bound."""
    if experts.swiglu_fusion == 0:
        return activated(experts, product), STEEPEST * error + EVALUATION * np.abs(product)
    half = product.shape[1] // 2
    parts = [slice(0, None, 2), slice(1, None, 2)]
    if experts.swiglu_fusion == 2:
        parts = [slice(0, half), slice(half, None)]
    g, u = product[:, parts[0]], product[:, parts[1]]
    g_error, u_error = error[:, parts[0]], error[:, parts[1]]
    if experts.swiglu_limit > 0:
        g = np.where(g > experts.swiglu_limit, experts.swiglu_limit, g)
        u = np.where(u > experts.swiglu_limit, experts.swiglu_limit, u)
        u = np.where(u < -experts.swiglu_limit, -experts.swiglu_limit, u)
    u_plus = u + experts.activation_beta
    u_error = u_error + FLOAT_EPSILON * np.abs(u_plus)
    f = activated(experts, g)
    f_error = STEEPEST * g_error + EVALUATION * np.abs(g)
    h_error = f_error * (np.abs(u_plus) + u_error) + np.abs(f) * u_error
    return f * u_plus, h_error + 2 * FLOAT_EPSILON * np.abs(
        f * u_plus
    )  # a kernel's rounding, and the oracle's


def moved(case: Case, h: np.ndarray, error: np.ndarray, kernel: str = "") -> np.ndarray:
    """How far the second product's operand, float64 [rows, I], may be from the oracle's, its error being `error`.

    With an activation format a small error may round to the next element, and where it carries a block's magnitude to
    the next scale, by both roundings in full: each at most half a step at the magnitude.
    """
    size = case.rotation
    spread = error.reshape(len(h), -1, size).sum(axis=-1, keepdims=True) / np.sqrt(size)
    error = np.broadcast_to(spread, (len(h), spread.shape[1], size)).reshape(h.shape)
    if (
        size > 1
    ):  # the butterflies' own, here and there: a rounding for each of at most 7 strides and the multiplier
        magnitude = np.abs(h).reshape(len(h), -1, size).sum(axis=-1, keepdims=True) / np.sqrt(size)
        error = error + 16 * FLOAT_EPSILON * np.broadcast_to(magnitude, (*magnitude.shape[:2], size)).reshape(
            h.shape
        )
    fmt = ACTIVATION_FORMATS[case.activation_format]
    rounding = oracle.rounding_of(case, kernel)
    if fmt is None:  # the steps of levels 3 and 4 grow with the error of a block's magnitude
        of_block = np.repeat(to_blocks(error).max(axis=-1), BLOCK_SIZE, axis=-1).reshape(h.shape)
        return error + rounding * of_block
    x = oracle.hadamard_rotate(h.astype(np.float32), size).astype(np.float64)
    values, scales = [], []
    magnitude = np.abs(to_blocks(x)).max(axis=-1)
    block_error = to_blocks(error).max(axis=-1)
    for shift in (0.0, -1.0, 1.0):
        codes, scale = quantize_blocks(to_blocks((x + shift * error).astype(np.float32)), fmt, "even")
        scales.append(scale)
        values.append(fmt.decode(codes).astype(np.float64) * scale_value(scale).astype(np.float64)[..., None])
        ends = np.zeros((*magnitude.shape, BLOCK_SIZE), np.float32)
        ends[..., 0] = magnitude + shift * block_error
        scales.append(quantize_blocks(ends, fmt, "even")[1])
    same = np.all([s == scales[0] for s in scales], axis=0)[..., None]
    stepped = np.maximum(np.abs(values[1] - values[0]), np.abs(values[2] - values[0]))
    full = to_blocks(error) + 2 * 2.0 ** -(fmt.mantissa_bits + 1) * (magnitude + block_error)[..., None]
    return np.where(same, stepped, full).reshape(h.shape)


def evaluate(
    experts: Experts, x: np.ndarray, logits: np.ndarray, kernel: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """(Y, bound), both float64 [rows, D], of X [rows, D] and logits [rows, E] of one float dtype."""
    exact, bound, magnitude = np.zeros((3, *x.shape))
    routes = [chosen(experts, row) for row in logits]
    largest = logits.astype(np.float64).max(axis=-1) if len(logits) else np.zeros(0)
    for e, (first, second) in enumerate(zip(experts.gate_up, experts.down, strict=True)):
        of_rows = [(row, w) for row, route in enumerate(routes) for i, w in route if i == e]
        if not of_rows:
            continue
        rows = [row for row, _ in of_rows]
        weights = np.array([w for _, w in of_rows])[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            h, error = hidden_of(experts, *oracle.evaluate(first, x[rows].astype(np.float32), kernel))
            y, y_bound = oracle.evaluate(second, h.astype(np.float32), kernel)
            y_bound += (
                moved(second, h, error, kernel) @ np.abs(second.weights).T * np.abs(second.column_scale)
            )
            far = np.abs(logits[rows, e].astype(np.float64) - largest[rows])[:, None]
            relative = SOFTMAX + (len(experts.down) + far) * FLOAT_EPSILON
            exact[rows] += weights * y
            magnitude[rows] += weights * np.abs(y)
            bound[rows] += weights * (y_bound * (1 + relative) + relative * np.abs(y))
    name = np.dtype(x.dtype).name
    bound += (experts.k + 1) * FLOAT_EPSILON * magnitude
    bound += oracle.OUTPUT_EPSILON[name] * (np.abs(exact) + bound) * 1.0001 + oracle.SMALLEST_SUBNORMAL[name]
    return exact, bound


def assert_close(
    experts: Experts, x: np.ndarray, logits: np.ndarray, y: np.ndarray, what: str = "", kernel: str = ""
) -> None:
    """Every element within its bound, NaN where the oracle has NaN."""
    assert_within(*evaluate(experts, x, logits, kernel), y, what)


def assert_within(exact: np.ndarray, bound: np.ndarray, y: np.ndarray, what: str = "") -> None:
    """The same of what :func:`evaluate` gave."""
    got = y.astype(np.float64).reshape(exact.shape)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact), what)
    excess = np.where(np.isnan(exact), 0, np.abs(got - exact) - bound)
    if excess.size:
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        assert excess[worst] <= 0, (
            f"{what}: at {worst} got {got[worst]}, exact {exact[worst]}, bound {bound[worst]}"
        )
