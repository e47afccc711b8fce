"""Choosing weight formats: against all there are where these are few, and within its budget always."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxort.calibration.losses import KL
from mxort.calibration.site_losses import Sensitivity, SiteSensitivity
from mxort.conversion import mixed_precision
from mxort.conversion.mixed_precision import FORMATS, Goal, choices, choose, within_bits, within_loss
from mxort.conversion.recipe import Recipe
from mxort.errors import MxortError

SIZES = {"mxfp4": 4.25, "mxfp6_e2m3": 6.25, "mxfp8_e4m3": 8.25}  # of a weight whose K is a multiple of 32


def site(node: str, n: int, losses: tuple[float, float, float], weight: str = "") -> SiteSensitivity:
    loss = dict(zip(FORMATS, losses, strict=True)) | {"mxfp6_e3m2": losses[1]}
    return SiteSensitivity(node, weight or node, 32, n, loss)


def measured(*sites: SiteSensitivity, loss: str = KL) -> Sensitivity:
    return Sensitivity("model.onnx", "", loss, 1, tuple(sites), {})


def everything(sensitivity: Sensitivity) -> list[tuple[float, float]]:
    """(bits, loss) of every assignment of formats, by hand."""
    result = []
    for formats in itertools.product(FORMATS, repeat=len(sensitivity.sites)):
        pairs = list(zip(sensitivity.sites, formats, strict=True))
        bits = sum(SIZES[f] * s.K * s.N for s, f in pairs) / sum(s.K * s.N for s, _ in pairs)
        result.append((bits, sum(s.loss[f] for s, f in pairs)))
    return result


losses = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(lambda x: tuple(sorted(x, reverse=True)))
some_sites = st.lists(st.tuples(st.integers(1, 40), losses), min_size=1, max_size=5).map(
    lambda rows: measured(*(site(f"n{i}", n, loss) for i, (n, loss) in enumerate(rows)))
)


@settings(max_examples=200, deadline=None)
@given(sensitivity=some_sites, bits=st.floats(4.25, 8.5))
def test_a_budget_is_kept_and_never_makes_it_worse(sensitivity: Sensitivity, bits: float) -> None:
    choice = within_bits(sensitivity, bits)
    assert choice.bits <= bits
    plain = sum(s.loss["mxfp4"] for s in sensitivity.sites)
    assert choice.loss <= plain
    found = sum(s.loss[choice.formats[s.node]] for s in sensitivity.sites)
    assert choice.loss == pytest.approx(found)
    assert (choice.bits, choice.loss) in [
        (pytest.approx(b), pytest.approx(total)) for b, total in everything(sensitivity)
    ]


@settings(max_examples=200, deadline=None)
@given(sensitivity=some_sites)
def test_no_assignment_is_better_than_a_step_of_the_way(sensitivity: Sensitivity) -> None:
    """At the bits of every choice on the way the loss is the least of all 3^n assignments with no more bits."""
    way = choices(sensitivity)
    assert [c.bits for c in way] == sorted(c.bits for c in way)
    for choice in way:
        best = min(total for bits, total in everything(sensitivity) if bits <= choice.bits + 1e-9)
        assert choice.loss <= best + 1e-9
        assert within_loss(sensitivity, choice.loss).bits <= choice.bits + 1e-9


def test_by_hand() -> None:
    """b gains 0.8 for its 64 bits, a 1.0 for twice as many; 5.25 bits have room for either, 4.9 for b only."""
    a, b = site("a", 2, (1.5, 0.5, 0.4)), site("b", 1, (1.0, 0.2, 0.1))
    sensitivity = measured(a, b)
    assert within_bits(sensitivity, 4.25).formats == {"a": "mxfp4", "b": "mxfp4"}
    assert within_bits(sensitivity, 4.92).formats == {"a": "mxfp4", "b": "mxfp6_e2m3"}
    assert within_bits(sensitivity, 5.6).formats == {"a": "mxfp4", "b": "mxfp8_e4m3"}
    assert within_bits(sensitivity, 6.25).formats == {"a": "mxfp6_e2m3", "b": "mxfp6_e2m3"}
    assert within_bits(sensitivity, 8.25).formats == {"a": "mxfp8_e4m3", "b": "mxfp8_e4m3"}


def test_a_format_off_the_hull_is_passed_over() -> None:
    """FP6 gains next to nothing here: the way goes from FP4 to FP8 at once."""
    sensitivity = measured(site("a", 1, (1.0, 0.99, 0.0)))
    assert [c.formats["a"] for c in choices(sensitivity)] == ["mxfp4", "mxfp8_e4m3"]


def test_a_shared_weight_is_stored_once_and_counts_for_all_its_nodes() -> None:
    first, second = site("a", 1, (0.5, 0.0, 0.0), "w"), site("b", 1, (0.5, 0.0, 0.0), "w")
    other = site("c", 1, (0.9, 0.0, 0.0))
    choice = within_bits(measured(first, second, other), 5.25)
    assert choice.formats == {"a": "mxfp6_e2m3", "b": "mxfp6_e2m3", "c": "mxfp4"}
    assert choice.bits == 5.25


def test_recipe() -> None:
    sensitivity = measured(site("/a[0]/MatMul", 64, (1.0, 0.1, 0.1)), site("b", 64, (0.1, 0.01, 0.01)))
    recipe = choose(Recipe(), Goal(budget_bits=5.25), sensitivity, None)
    format_of = recipe.selection().format_of
    assert format_of("/a[0]/MatMul") == "mxfp6_e2m3"
    assert format_of("/a0/MatMul") == format_of("b") == "mxfp4"


def test_what_the_recipe_leaves_alone_is_no_part_of_the_budget() -> None:
    sensitivity = measured(
        site("a", 64, (1.0, 0.1, 0.1)), site("b", 64, (0.9, 0.1, 0.1)), site("small", 1, (9, 0, 0))
    )
    recipe = choose(Recipe(exclude=("a",)), Goal(budget_bits=6.25), sensitivity, None)
    assert recipe.layer_formats == ("b=mxfp6_e2m3",)


class Probe:
    """Measures twice what the layers lose each."""

    def __init__(self, sensitivity: Sensitivity) -> None:
        self.found, self.calls = sensitivity, 0

    def sensitivity(self) -> Sensitivity:
        return self.found

    def loss(self, formats: dict[str, str]) -> float:
        self.calls += 1
        return 2 * sum(s.loss[formats[s.node]] for s in self.found.sites)


def test_a_target_is_measured() -> None:
    sensitivity = measured(*(site(f"n{i}", 64, (0.1, 0.01, 0.0)) for i in range(64)))
    probe = Probe(sensitivity)
    recipe = choose(Recipe(), Goal(target_kl=2 * 5.5), None, probe)  # type: ignore[arg-type]
    assert len(recipe.layer_formats) == 10  # 6.4 - 10 * 0.09
    assert probe.calls <= 9


@pytest.mark.parametrize(
    ("goal", "recipe", "loss", "message"),
    [
        (Goal(budget_bits=4.0), Recipe(), KL, "budget of 4 bits: mxfp4 alone takes 4.25 bits per weight"),
        (Goal(budget_bits=5.0), Recipe(weight_format="mxfp8_e4m3"), KL, "the recipe must not"),
        (Goal(budget_bits=5.0), Recipe(layer_formats=("a=mxfp8_e4m3",)), KL, "the recipe must not"),
        (Goal(target_kl=0.001), Recipe(), KL, "all weights in mxfp8_e4m3 lose 0.02"),
        (Goal(target_kl=1.0), Recipe(), "noise", "no output 'logits'"),
    ],
)
def test_out_of_reach(goal: Goal, recipe: Recipe, loss: str, message: str) -> None:
    probe = Probe(measured(site("a", 64, (1.0, 0.1, 0.01)), loss=loss))
    with pytest.raises(MxortError, match=message):
        choose(recipe, goal, None, probe)  # type: ignore[arg-type]


def test_nothing_to_choose_for() -> None:
    with pytest.raises(MxortError, match="has no weight to choose a format for"):
        mixed_precision.within_bits(measured(), 5.0)
