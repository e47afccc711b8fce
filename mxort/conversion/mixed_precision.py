"""Choosing a weight format for every layer: the least loss for a number of bits, or the fewest bits for a loss.

What is minimised is the sum of the losses that the layers have each alone (``sensitivity``). That neglects that one
layer's error may meet another's, which errors of weights that know nothing of each other do not on average.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from mxort.calibration.losses import KL
from mxort.calibration.sensitivity import Probe
from mxort.calibration.site_losses import BASE, Sensitivity, SiteSensitivity
from mxort.conversion.recipe import Recipe
from mxort.errors import MxortError
from mxort.formats import packed_bytes

FORMATS = (BASE, "mxfp6_e2m3", "mxfp8_e4m3")
"""What layers are chosen from. (E3M2 costs what E2M3 does and loses more: a block's scale has the range.)"""


@dataclass(frozen=True)
class Choice:
    """A weight format by node. ``loss`` is the sum of the layers' own, ``bits`` those of a weight, on average."""

    formats: Mapping[str, str]
    loss: float
    bits: float

    def layer_formats(self) -> tuple[str, ...]:
        """The recipe's option: one entry for each node that is not left in mxfp4."""
        return tuple(
            f"{glob.escape(node)}={weight_format}"
            for node, weight_format in self.formats.items()
            if weight_format != BASE
        )


@dataclass(frozen=True)
class Goal:
    """Most bits of a weight, on average, or (then 0) the most KL; exactly one of them is set."""

    budget_bits: float = 0.0
    target_kl: float = 0.0


def choose(
    recipe: Recipe,
    goal: Goal,
    sensitivity: Sensitivity | None,
    probe: Probe | None,
    fixed: Collection[str] = (),
) -> Recipe:
    """``recipe`` with the formats that reach the goal. Without a sensitivity the probe measures it.

    ``fixed`` are nodes whose format is not to be chosen.

    A KL is that of weights rounded to nearest, which algorithms that calibrate fall below. Raises MxortError where the
    goal is out of reach, and for a recipe that has formats of its own.
    """
    check(recipe)
    if sensitivity is None:
        assert probe is not None, "something must know what the layers lose"
        sensitivity = probe.sensitivity()
    sensitivity = _converted_by(recipe, sensitivity, fixed)
    if goal.budget_bits:
        choice = within_bits(sensitivity, goal.budget_bits)
    else:
        if probe is None:
            raise MxortError("a target is measured: it needs calibration data")
        if sensitivity.loss != KL:
            raise MxortError(f"{sensitivity.model}: has no output 'logits', so there is no KL to reach")
        choice = within_loss(sensitivity, goal.target_kl, lambda choice: probe.loss(choice.formats))
    return recipe.with_overrides(layer_formats=choice.layer_formats())


def check(recipe: Recipe) -> None:
    """Raises MxortError for a recipe that has weight formats of its own, where they are to be chosen."""
    own = [*recipe.layer_formats, *([recipe.weight_format] if recipe.weight_format != BASE else [])]
    if own:
        raise MxortError(
            f"a budget or a target chooses the weight formats: the recipe must not, got {own[0]}"
        )


def _converted_by(recipe: Recipe, sensitivity: Sensitivity, fixed: Collection[str]) -> Sensitivity:
    """Without the sites that the recipe leaves alone: what was measured once may be asked for less."""
    kept = (
        s
        for s in sensitivity.sites
        if s.node not in fixed and recipe.skip_reason(s.node) is None and recipe.min_elements <= s.K * s.N
    )
    return replace(sensitivity, sites=tuple(kept))


@dataclass(frozen=True)
class _Step:
    """Taking a weight from one of its formats to a larger one."""

    weight: str
    weight_format: str
    bits: int
    gain: float

    @property
    def worth(self) -> float:
        return self.gain / self.bits


def choices(sensitivity: Sensitivity, formats: Sequence[str] = FORMATS) -> list[Choice]:
    """From everything in ``formats[0]`` to everything in the last, each step the one that gains most for its bits.

    Of a weight's formats those off its lower convex hull of loss over bits are passed over, so that its steps come in
    their order. Each choice has the least sum of losses of all with as many bits.
    """
    shared = _by_weight(sensitivity)
    steps = sorted(
        (step for weight, rows in shared.items() for step in _steps(weight, rows, formats)),
        key=lambda step: step.worth,
        reverse=True,
    )
    chosen = dict.fromkeys(shared, formats[0])
    result = [_choice(shared, chosen)]
    for step in steps:
        chosen[step.weight] = step.weight_format
        result.append(_choice(shared, chosen))
    return result


def within_bits(sensitivity: Sensitivity, bits: float, formats: Sequence[str] = FORMATS) -> Choice:
    """The choice of little loss that has at most ``bits`` a weight: every step that still fits, the best first.

    Raises MxortError where not even the smallest format fits.
    """
    shared = _by_weight(sensitivity)
    chosen = dict.fromkeys(shared, formats[0])
    best = _choice(shared, chosen)
    if best.bits > bits:
        raise MxortError(f"budget of {bits:g} bits: {formats[0]} alone takes {best.bits:.4g} bits per weight")
    steps = [step for weight, rows in shared.items() for step in _steps(weight, rows, formats)]
    blocked: set[str] = set()
    for step in sorted(steps, key=lambda step: step.worth, reverse=True):
        if step.weight in blocked:  # what came before did not fit
            continue
        larger = _choice(shared, chosen | {step.weight: step.weight_format})
        if larger.bits <= bits:
            chosen, best = dict(chosen | {step.weight: step.weight_format}), larger
        else:
            blocked.add(step.weight)
    return best


def within_loss(
    sensitivity: Sensitivity,
    loss: float,
    measure: Callable[[Choice], float] | None = None,
    formats: Sequence[str] = FORMATS,
) -> Choice:
    """The smallest of :func:`choices` whose loss is at most ``loss``, measured (default: the sum of the layers').

    ``measure`` is called for a few choices only, as the loss falls from one to the next. Raises MxortError where the
    largest loses more.
    """
    measure = measure or (lambda choice: choice.loss)
    path = choices(sensitivity, formats)
    if (least := measure(path[-1])) > loss:
        raise MxortError(f"target of {loss:g}: all weights in {formats[-1]} lose {least:.3g}")
    low, high = 0, len(path) - 1
    while low < high:
        middle = (low + high) // 2
        if measure(path[middle]) <= loss:
            high = middle
        else:
            low = middle + 1
    return path[low]


def _by_weight(sensitivity: Sensitivity) -> dict[str, list[SiteSensitivity]]:
    shared: dict[str, list[SiteSensitivity]] = {}
    for site in sensitivity.sites:
        shared.setdefault(site.weight, []).append(site)
    if not shared:
        raise MxortError(f"{sensitivity.model}: has no weight to choose a format for")
    return shared


def _bits(row: SiteSensitivity, weight_format: str) -> int:
    return 8 * packed_bytes(row.N, row.K, weight_format)


def _loss(rows: Sequence[SiteSensitivity], weight_format: str) -> float:
    return sum(row.loss[weight_format] for row in rows)


def _steps(weight: str, rows: Sequence[SiteSensitivity], formats: Sequence[str]) -> list[_Step]:
    """The steps along the lower convex hull of (bits, loss), each worth less than the one before."""
    hull: list[tuple[int, float, str]] = []
    for weight_format in sorted(formats, key=lambda name: _bits(rows[0], name)):
        point = (_bits(rows[0], weight_format), _loss(rows, weight_format), weight_format)
        while len(hull) >= 2 and _worth(hull[-2], point) >= _worth(hull[-2], hull[-1]):
            hull.pop()
        if not hull or point[1] < hull[-1][1]:
            hull.append(point)
    return [_Step(weight, b[2], b[0] - a[0], a[1] - b[1]) for a, b in pairwise(hull)]


def _worth(a: tuple[int, float, str], b: tuple[int, float, str]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0])


def _choice(shared: Mapping[str, Sequence[SiteSensitivity]], chosen: Mapping[str, str]) -> Choice:
    bits = sum(_bits(rows[0], chosen[weight]) for weight, rows in shared.items())
    weights = sum(rows[0].K * rows[0].N for rows in shared.values())
    return Choice(
        {row.node: chosen[weight] for weight, rows in shared.items() for row in rows},
        sum(_loss(rows, chosen[weight]) for weight, rows in shared.items()),
        bits / weights,
    )
