"""Calibrated rounding: by hand where that can be done, by exhaustion where the values are few."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch

from mxort.errors import MxortError
from mxort.formats import (
    ACTIVATION_FORMATS,
    BLOCK_SIZE,
    E2M1,
    WEIGHT_FORMATS,
    dequantize,
    hadamard_rotate,
    to_blocks,
)
from mxort.quantize import ALGORITHMS, Settings, Statistics, base, gptq, rtn, solver
from mxort.quantize.moments import Moments, round_activations, round_elements
from mxort.scales import quantize_blocks


def statistics(x, wanted=None):
    """Those of the rows x, in float64."""
    x = x.astype(np.float64)
    n = len(x)
    drift = None if wanted is None else (wanted - x).T @ x / n
    return Statistics(x.T @ x / n, n, drift)


def correlated(n=500, k=96, seed=0):
    """Operand rows whose columns say much about each other, at different scales."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((k, k)) * rng.lognormal(0, 1, (k, 1))
    return (rng.standard_normal((n, k // 4)) @ mix[: k // 4] + 0.1 * rng.standard_normal((n, k))).astype(
        np.float32
    )


def weight(n=40, k=96, seed=1):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def dequantized(q, k):
    return dequantize(q.codes, q.scales, k, q.element).astype(np.float64) * q.column_scale[:, None]


def losses(w, q, hessian):
    error = w - dequantized(q, w.shape[1])
    return np.einsum("nj,jk,nk->n", error, hessian, error)


def problem_of(hessian):
    """A problem with the statistics of ``hessian`` [2, 2] in a block of otherwise dead inputs, not damped."""
    full = np.zeros((BLOCK_SIZE, BLOCK_SIZE))
    full[:2, :2] = hessian
    return solver.prepare(Statistics(full, 1), 0.0)


@pytest.mark.parametrize(
    ("hessian", "row", "expected"),
    [
        # First 1.2 -> 1, 0.2 too little. The second, whose best is now 2.4 + 0.2 * 1/1 = 2.6, becomes 3.
        ([[2, 1], [1, 1]], (1.2, 2.4), (1, 3)),
        # The same columns the other way round: the larger second moment is rounded first all the same.
        ([[1, 1], [1, 2]], (2.4, 1.2), (3, 1)),
        # Nothing in common: to nearest.
        ([[2, 0], [0, 1]], (1.2, 2.4), (1, 2)),
        # Opposed inputs: 2.4 - 0.2 = 2.2.
        ([[2, -1], [-1, 1]], (1.2, 2.4), (1, 2)),
        # 0.5 of the error 0.2 arrives: 2.45 + 0.1 = 2.55.
        ([[2, 0.5], [0.5, 1]], (1.2, 2.45), (1, 3)),
    ],
)
def test_two_columns_by_hand(hessian, row, expected):
    wanted = torch.zeros(BLOCK_SIZE, 1)
    wanted[:2, 0] = torch.tensor(row)
    values = solver.gptq(problem_of(hessian), wanted, torch.ones_like(wanted))
    assert tuple(values[:2, 0].tolist()) == expected
    assert not values[2:].any()


def test_order_keeps_every_value_in_its_place():
    """Without correlation GPTQ is rounding to nearest, whatever the order; panels of 128 included."""
    k = 320
    rng = np.random.default_rng(2)
    hessian = np.diag(rng.lognormal(0, 2, k))
    problem = solver.prepare(Statistics(hessian, 1), 0.01)
    assert not torch.equal(problem.order, torch.arange(k))
    wanted = torch.from_numpy(rng.standard_normal((k, 7), np.float32))
    scales = torch.from_numpy(rng.lognormal(0, 1, (k, 7)).astype(np.float32))
    values = solver.gptq(problem, wanted, scales)
    np.testing.assert_array_equal(values, round_elements(wanted / scales, E2M1))


def test_gptq_is_the_textbook_recursion():
    """Against the definition: fix one value, move the free ones to their least-squares best, go on."""
    x = correlated(k=160)
    problem = solver.prepare(statistics(x), 0.01)
    h = statistics(x).hessian
    h = h + 0.01 * np.diag(h).mean() * np.eye(len(h))
    w = weight(3, 160).astype(np.float64)
    scale = 0.4
    rest, expected = w.copy(), np.zeros_like(w)
    free = list(np.argsort(-np.diag(h), kind="stable"))
    while free:
        k = free.pop(0)
        expected[:, k] = E2M1.decode(E2M1.encode(rest[:, k] / scale)) * scale
        if free:
            error = rest[:, k] - expected[:, k]
            rest[:, free] += error[:, None] * np.linalg.solve(h[np.ix_(free, free)], h[free, k])
    wanted = torch.from_numpy(w.T.astype(np.float32)).contiguous()
    values = solver.gptq(problem, wanted, torch.full_like(wanted, scale)).numpy().T * scale
    assert (np.abs(values - expected) < 1e-6).mean() > 0.99  # a tie or two may fall the other way in float32


@pytest.mark.parametrize("algorithm", ["gptq", "mr-gptq"])
@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("rows", [20, 500])
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_rounding_to_nearest(algorithm, multiplier, rows, seed):
    """Row by row, on the data it is calibrated on; fewer rows than columns included."""
    x, w = correlated(rows, seed=seed), weight(seed=seed + 10)
    found = statistics(x)
    settings = Settings(column_multiplier=multiplier, statistics=found)
    nearest = losses(w, rtn.quantize(w, settings), found.hessian)
    got = losses(w, ALGORITHMS[algorithm].quantize(w, settings), found.hessian)
    assert (got <= nearest * (1 + 1e-4)).all()
    assert got.sum() < 0.5 * nearest.sum(), "correlated columns leave much to gain"


def test_a_row_that_gptq_makes_worse_keeps_its_nearest():
    """GPTQ is greedy: with the exact loss and no descent some rows end worse than they began."""
    x, w = correlated(k=32, n=40, seed=5), weight(300, 32)
    settings = Settings(statistics=statistics(x))
    problem = solver.prepare(settings.statistics, 0.0)
    start = rtn.quantize(w, settings)
    greedy = solver.gptq(problem, torch.from_numpy(w.T.copy()), solver.Solution.of(start).scales)
    error = w - (greedy * solver.Solution.of(start).scales).numpy().T
    hessian = settings.statistics.hessian
    nearest = losses(w, start, hessian)
    assert (np.einsum("nj,jk,nk->n", error, hessian, error) > nearest).any(), "the case does not occur"
    assert (losses(w, solver.solve(problem, w, start, 0), hessian) <= nearest * (1 + 1e-5)).all()


def test_effort_finds_the_multiplier_of_each_row():
    """Rows of E2M1 numbers times 2^(i/8): one multiplier of eight makes each exact, a different one in each row."""
    rng = np.random.default_rng(4)
    values = rng.choice([-6, -4, -3, -1.5, 0.5, 1, 2, 6], (8, 64))
    values[:, ::32] = 6  # every block has the largest number, so that its scale is one
    w = (values * 2.0 ** (np.arange(8)[:, None] / 8)).astype(np.float32)
    settings = Settings(column_multiplier=True, statistics=statistics(correlated(k=64)), effort=2)
    problem = solver.prepare(settings.statistics, settings.damping)
    start = rtn.with_multiplier(w, 1.0, settings)
    alone, best = (
        losses(w, solver.solve(problem, w, start, 0, others), settings.statistics.hessian)
        for others in ((), rtn.with_multipliers(w, 8, settings))
    )
    assert (best <= 1e-9 * alone.max()).all()
    assert (alone[1:] > 1e-4 * alone.max()).all()


@pytest.mark.parametrize("seed", range(2))
def test_effort_pays(seed):
    x, w = correlated(seed=seed), weight(seed=seed + 10)
    found = statistics(x)
    got = [
        losses(
            w,
            gptq.quantize(w, Settings(column_multiplier=True, statistics=found, effort=effort)),
            found.hessian,
        )
        for effort in (1, 2, 3)
    ]
    nearest = losses(w, rtn.quantize(w, Settings(column_multiplier=True)), found.hessian)
    assert all((loss <= nearest * (1 + 1e-4)).all() for loss in got)
    assert got[0].sum() > got[1].sum() > got[2].sum()


def test_descent_ends_where_no_single_value_can_improve():
    x, w = correlated(k=64), weight(3, 64)
    found = statistics(x)
    problem = solver.prepare(found, 0.01)
    solution = solver.Solution.of(rtn.quantize(w, Settings()))
    wanted = torch.from_numpy(w.T.copy())
    history = []
    for _ in range(15):
        history.append(float(solver.loss(problem, wanted - solution.weights()).sum()))
        solver.descend(problem, wanted, solution, 1)
    assert history[-1] < 0.8 * history[0]
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(history))
    base, scales = solution.weights().numpy().T.astype(np.float64), solution.scales.numpy().T
    error = w - base
    best = np.einsum("nj,jk,nk->n", error, found.hessian, error)
    for k in range(64):
        for value in E2M1.values:
            other = error.copy()
            other[:, k] = w[:, k] - value * scales[:, k]
            assert (np.einsum("nj,jk,nk->n", other, found.hessian, other) >= best * (1 - 1e-4)).all()


def test_refit_finds_the_best_multiplier():
    x, w = correlated(), weight()
    problem, wanted = solver.prepare(statistics(x), 0.01), torch.from_numpy(w.T.copy())
    solution = solver.Solution.of(rtn.quantize(w, Settings("floor")))
    products = problem.hessian @ wanted, problem.hessian @ (wanted - solution.weights())
    gradient = solver.refit(wanted, solution, *products)
    exact = problem.hessian.double() @ (wanted - solution.weights()).double()
    # Both products are of numbers that float32 rounds, and of which 96 are added.
    atol = 96 * 2.0**-24 * float(products[0].abs().max())
    np.testing.assert_allclose(gradient, exact, rtol=0, atol=atol)
    best, at = solver.loss(problem, wanted - solution.weights()), solution.multiplier
    assert not torch.equal(at, torch.ones_like(at))
    for factor in (0.99, 1.01):
        solution.multiplier = at * factor
        assert (solver.loss(problem, wanted - solution.weights()) > best).all()


@pytest.mark.parametrize("rotation", [32, 64, 128])
def test_rotation_changes_no_loss(rotation):
    """Rows and statistics turn together: what is lost is the same to the rounding of float32."""
    x, error = correlated(k=128), weight(k=128)
    turned = statistics(x).rotated(rotation)
    direct = statistics(hadamard_rotate(x, rotation))
    np.testing.assert_allclose(turned.hessian, direct.hessian, atol=1e-5 * np.abs(direct.hessian).max())
    h = statistics(x).hessian
    before = np.einsum("nj,jk,nk->n", error, h, error)
    rotated = hadamard_rotate(error, rotation)
    np.testing.assert_allclose(np.einsum("nj,jk,nk->n", rotated, turned.hessian, rotated), before, rtol=1e-5)


def test_inputs_that_were_always_zero():
    """Their weights are kept, as nearly as they can be: other data may not have zeros there."""
    x, w = correlated(), weight()
    dead = np.arange(96) % 5 == 0
    x[:, dead] = 0
    q = gptq.quantize(w, Settings(statistics=statistics(x)))
    error = np.abs(w - dequantized(q, 96))[:, dead]
    assert error.max() <= np.abs(w).max() / 6 + 0.1, "no error of a live input ends in a dead one"
    x[:] = 0
    settings = Settings(statistics=statistics(x))
    nothing, nearest = (dequantized(f(w, settings), 96) for f in (gptq.quantize, rtn.quantize))
    assert (((nothing - w) ** 2).sum(axis=1) <= ((nearest - w) ** 2).sum(axis=1) * (1 + 1e-5)).all()


def test_padding_stays_zero():
    """Code 0 behind K, as docs/format.md has it, and no negative zero."""
    x, w = correlated(), weight()
    x[:, 70:] = w[:, 70:] = 0
    q = gptq.quantize(w, Settings(statistics=statistics(x)))
    assert not q.codes[:, 35:48].any()


def test_singular_hessian_falls_back_with_a_note():
    """Second moments that no data have: the largest relation there is, and more."""
    w = weight()
    settings = Settings(statistics=Statistics(np.full((96, 96), 2.0) - np.eye(96), 10**9), damping=0.0)
    q = gptq.quantize(w, settings)
    assert "singular" in q.note
    np.testing.assert_array_equal(q.codes, rtn.quantize(w, settings).codes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [8, 24, 96, 400])
def test_few_rows_are_not_believed(n, seed):
    """On other rows the solved weight is nearer than the rounded one.

    The data: a quarter as many directions as inputs, and some of everything.
    """
    x, w = correlated(4000, seed=seed), weight()
    few, rest = x[:n], x[1000:].astype(np.float64)
    settings = Settings(statistics=statistics(few), column_multiplier=True)
    unseen = rest.T @ rest / len(rest)
    rounded, solved = (losses(w, method.quantize(w, settings), unseen).sum() for method in (rtn, gptq))
    assert solved < rounded


def test_chance_by_hand():
    """2 x 2, half of it chance: the relation is halved."""
    problem = solver.prepare(Statistics(np.array([[1.0, 0.5], [0.5, 0.5]]), 1), 0.0, 0.5)
    unit = 0.75 / float(np.trace(problem.hessian) / 2)  # it is times a power of two
    np.testing.assert_allclose(problem.hessian.numpy() * unit, [[1, 0.25], [0.25, 0.5]])
    assert np.log2(unit) == round(np.log2(unit))
    error = torch.tensor([[1.0], [2.0]])
    on_data = problem.on_data(solver.loss(problem, error), error)
    assert float(on_data) * unit == pytest.approx(1 + 2 * 0.5 * 2 + 4 * 0.5)
    assert Statistics(np.eye(64), 64).chance == 0.2
    assert Statistics(np.eye(64), 6400).chance == pytest.approx(0.02)
    assert Statistics(np.eye(64), 1).chance == Statistics(np.eye(64), 0).chance == 0.5


def test_not_finite():
    w = weight()
    w[3, 4] = np.nan
    assert not gptq.quantize(w, Settings(statistics=statistics(correlated()))).finite


def test_drift_is_made_good():
    """The corrected row minimises |w x' - v x|^2 + ridge |v - w|^2, checked against numpy's least squares."""
    x = correlated()
    wanted = (x + 0.3 * correlated(seed=3)).astype(np.float32)
    found = statistics(x, wanted)
    problem, w = solver.prepare(found, 0.01), weight()
    ridge = solver.DRIFT_DAMPING * np.diag(found.hessian).mean()
    a = np.concatenate([x / np.sqrt(len(x)), np.sqrt(ridge) * np.eye(96)])
    b = np.concatenate([wanted @ w.T / np.sqrt(len(x)), np.sqrt(ridge) * w.T])
    best = np.linalg.lstsq(a, b, rcond=None)[0].T
    np.testing.assert_allclose(solver.wanted_rows(problem, w), best, atol=2e-3)


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_round_elements(name):
    """Every number of the format, what lies half and a little more or less than half between two, and far beyond."""
    fmt = WEIGHT_FORMATS[name]
    middles = (fmt.magnitudes[1:] + fmt.magnitudes[:-1]) / 2
    x = np.concatenate([fmt.magnitudes, middles, middles * (1 + 2.0**-20), middles * (1 - 2.0**-20), [1e30]])
    x = np.concatenate([x, -x]).astype(np.float32)
    np.testing.assert_array_equal(round_elements(torch.from_numpy(x), fmt), fmt.decode(fmt.encode(x)))


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("algorithm", ["gptq", "mr-gptq"])
def test_calibrated_rounding_in_every_format(name, algorithm):
    """Never worse than to nearest on what was calibrated on, in codes of the format."""
    x, w = correlated(), weight()
    settings = Settings(column_multiplier=True, weight_format=name, statistics=statistics(x))
    nearest, best = rtn.quantize(w, settings), ALGORITHMS[algorithm].quantize(w, settings)
    assert best.weight_format == nearest.weight_format == name
    assert best.codes.shape == nearest.codes.shape == (40, 3 * WEIGHT_FORMATS[name].block_bytes)
    hessian = settings.statistics.hessian
    loss, bound = losses(w, best, hessian), losses(w, nearest, hessian)
    assert (loss <= bound * (1 + 1e-5)).all()
    assert loss.sum() < 0.8 * bound.sum()


@pytest.mark.parametrize("name", [name for name, fmt in ACTIVATION_FORMATS.items() if fmt])
def test_activations_are_rounded_as_the_operator_does(name):
    fmt = ACTIVATION_FORMATS[name]
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((200, 96)) * rng.lognormal(0, 6, (200, 1))).astype(np.float32)
    x[0], x[1, :32], x[2] = 0, 2.0**-126, np.arange(96) * np.float32(2**90)
    codes, scales = quantize_blocks(to_blocks(x), fmt, "even")
    exact = (fmt.decode(codes).astype(np.float64) * 2.0 ** (scales.astype(int)[..., None] - 127)).reshape(
        x.shape
    )
    np.testing.assert_array_equal(round_activations(torch.from_numpy(x), fmt), exact.astype(np.float32))


@pytest.mark.parametrize("activation_format", ["none", "mxfp4"])
def test_moments_are_those_of_the_operand(activation_format):
    x, wanted = correlated(k=64), correlated(k=64, seed=9)
    gathered = Moments(64, 32, activation_format)
    for part in np.array_split(np.arange(len(x)), 3):
        gathered.add(x[part], wanted[part])
    got = gathered.statistics()
    operand, target = hadamard_rotate(x, 32), hadamard_rotate(wanted, 32)
    if fmt := ACTIVATION_FORMATS[activation_format]:
        operand = round_activations(torch.from_numpy(operand), fmt).numpy()
    want = statistics(operand, target)
    for name in ("hessian", "drift"):
        expected = getattr(want, name)
        np.testing.assert_allclose(getattr(got, name), expected, atol=1e-4 * np.abs(expected).max())
    assert got.rows == len(x)


def sums(x, wanted):
    found = Moments(x.shape[1], 1, "none")
    for part in np.split(np.arange(len(x)), [1, 700, 5000, 5001, 8999]):
        found.add(x[part], wanted[part])
    got = found.statistics()
    np.testing.assert_array_equal(got.hessian, got.hessian.T)
    return got


@pytest.mark.parametrize("k", [32, 96, 160])
def test_sums_of_many_rows(k):
    """More rows than are summed in float32 at once, in uneven pieces; 160 columns do not part evenly."""
    x, wanted = correlated(9000, k), correlated(9000, k, seed=9)
    got, want = sums(x, wanted), statistics(x, wanted)
    # One product in float32 errs by less than 2**-24 sqrt(4096) of |x||x|, and the sums average that.
    for name in ("hessian", "drift"):
        expected = getattr(want, name)
        np.testing.assert_allclose(getattr(got, name), expected, rtol=0, atol=4e-6 * np.abs(expected).max())


def test_without_torch(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(base, "import_module", missing)
    with pytest.raises(MxortError, match=r"needs torch .*mxort\[calibrate\]"):
        gptq.quantize(weight(), Settings(statistics=statistics(correlated())))


@pytest.mark.parametrize("effort", [1, 2])
@pytest.mark.parametrize("exponent", [-80, -60, 60, 80])
def test_weights_and_operands_far_from_one(exponent, effort):
    """Powers of two move the scales alone: no square of the weights, of the operand or of their product is lost."""
    x, w = correlated(), weight()
    results = []
    for shift in (0, exponent):
        moments = Moments(96, 32, "none")
        moments.add(np.ldexp(x, -shift), np.ldexp(x + np.float32(0.25), -shift))
        settings = Settings(column_multiplier=True, statistics=moments.statistics(), effort=effort)
        results.append(gptq.quantize(np.ldexp(w, shift), settings))
    near, far = results
    np.testing.assert_array_equal(far.codes, near.codes)
    np.testing.assert_array_equal(far.scales, near.scales + np.int64(exponent))
    np.testing.assert_array_equal(far.column_scale, near.column_scale)


def test_operands_that_change_their_magnitude():
    """A sample that is almost silent, then a loud one, then a usual one: the means are those of float64."""
    parts = [np.ldexp(correlated(50, 32, seed), exponent) for seed, exponent in enumerate((-70, 65, 0))]
    moments = Moments(32, 1, "none")
    for part in parts:
        moments.add(part)
    want = statistics(np.concatenate(parts)).hessian
    np.testing.assert_allclose(moments.statistics().hessian, want, rtol=0, atol=50 * 2.0**-24 * want.max())


@pytest.mark.parametrize("activation_format", ["none", "mxfp4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_left_out(activation_format, bad):
    """Bad here or in the float model; what is learnt is what the other rows say, to the bit."""
    x, wanted = correlated(60, 64), correlated(60, 64, seed=9)
    spoilt, also = x.copy(), wanted.copy()
    spoilt[[3, 17], [0, 63]] = bad
    also[[17, 40], 5] = bad
    kept = np.setdiff1d(np.arange(60), [3, 17, 40])
    got, want = Moments(64, 32, activation_format), Moments(64, 32, activation_format)
    got.add(spoilt, also)
    want.add(x[kept], wanted[kept])
    got, want = got.statistics(), want.statistics()
    assert (got.rows, got.left_out, want.left_out) == (57, 3, 0)
    np.testing.assert_array_equal(got.hessian, want.hessian)
    np.testing.assert_array_equal(got.drift, want.drift)
    assert not gptq.quantize(weight(8, 64), Settings(statistics=got)).note


def test_no_finite_row():
    """Nothing is known, so every input counts the same: as near to the weight as rounding to nearest, at least."""
    moments = Moments(32, 1, "none")
    moments.add(np.full((3, 32), np.nan, np.float32))
    found, w = moments.statistics(), weight(8, 32)
    assert (found.rows, found.left_out) == (0, 3)
    q = gptq.quantize(w, Settings(statistics=found))
    nearest = rtn.quantize(w, Settings())
    np.testing.assert_array_equal(q.scales, nearest.scales)
    # Rows are compared in float32: 32 terms, each rounded twice.
    assert (losses(w, q, np.eye(32)) <= losses(w, nearest, np.eye(32)) * (1 + 64 * 2.0**-24)).all()


def test_a_problem_is_made_once_and_ends_with_its_statistics():
    """It is large, and may be in the memory of a GPU."""
    found, w = statistics(correlated()), weight()
    for _ in range(2):
        gptq.quantize(w, Settings(statistics=found))
    (problem,) = map(weakref.ref, found.prepared.values())
    assert (
        solver.prepare(found, 0.01, found.chance)
        is problem()
        is not solver.prepare(found, 0.02, found.chance)
    )
    assert solver.prepare(found, 0.01) is not problem()
    del found
    gc.collect()
    assert problem() is None
