"""Attention of few rows (attention.hip) and of many (attention_prefill.hip) against a double oracle.

The error of y, in units of sum(weight * |v|), is bounded by what the kernels do, in float but where a type is named:

* a score is a sum of `size` products: (size + 2) * 2^-24 of sum |q k| scale, in softmax that many times the weight;
* a weight is 2^x of a rounded x = score / ln 2: another |score| * 2^-23; weights and their sum: (keys + 4) * 2^-24;
* the product with v: (keys + 4) * 2^-24; rescaling between blocks: 2^-23 a block;
* a half type rounds weights before that product, and y: 2^-11 or 2^-8 each (float16: below 2^-14 by 2^-25).
"""

from __future__ import annotations

from typing import Any

import attention_device
import numpy as np
import pytest
from attention_device import Problem
from numpy.typing import NDArray

import device

ROUNDING = {"float": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def numbers(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def problem(
    seed: int,
    batch: int,
    length: int,
    heads: int,
    kv_heads: int,
    keys: int,
    size: int,
    value_size: int = 0,
    **other: Any,
) -> Problem:
    rng = np.random.default_rng(seed)
    q, k = numbers(rng, batch, length, heads, size), numbers(rng, batch, kv_heads, keys, size)
    return Problem(q, k, numbers(rng, batch, kv_heads, keys, value_size or size), **other)


def check(p: Problem, y: NDArray[np.float32]) -> None:
    want, magnitude = attention_device.expected(p)
    keys, size = p.k.shape[2], p.q.shape[-1]
    scores = np.abs(p.q).max() * np.abs(p.k).max() * size * abs(p.scale)  # of sum |q k| scale
    scores = min(
        scores, np.linalg.norm(p.q, axis=-1).max() * np.linalg.norm(p.k, axis=-1).max() * abs(p.scale)
    )
    if p.mask is not None and p.mask.dtype != np.bool_:
        finite = p.mask[np.isfinite(p.mask)]
        scores += np.abs(finite).max(initial=0)
    float_error = 2.0**-24 * (scores * (size + 4) + 2 * keys + 2 * keys / 16 + 16)
    bound = (
        (float_error + 2 * ROUNDING[p.dtype]) * magnitude
        + (2.0**-25 * keys if p.dtype == "float16" else 0)
        + 1e-30
    )
    # Not numbers where, and only where, the oracle has none.
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    error = np.where(np.isnan(want), 0, np.abs(y - want))
    worst = np.nanmax(error / np.where(np.isnan(bound), 1, bound))
    assert worst <= 1, (worst, p.dtype)


TYPES = list(device.TYPES)
ARCHITECTURES = device.ARCHITECTURES


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [8, 32, 64, 88, 128, 200, 256])
def test_heads_of_every_size(machines, arch, dtype, size):
    p = problem(size, 1, 3, 2, 1, 37, size, dtype=dtype, scale=size**-0.5)
    for prefill in (False, True):
        check(p, attention_device.run(machines(arch), p, prefill=prefill))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("keys", [1, 2, 31, 32, 33, 127, 129, 300, 1025])
def test_lengths_and_splits(machines, dtype, keys):
    """One query of grouped heads over a cache of which the batches have filled different parts."""
    lengths = [keys, max(1, keys // 3)]
    p = problem(keys, 2, 1, 6, 2, keys, 64, dtype=dtype, causal=True, offset=None, lengths=lengths)
    machine = machines("gfx950")
    results = [attention_device.run(machine, p, splits) for splits in (1, 2, 5)]
    for y in results:
        check(p, y)
    again = attention_device.run(machine, p, 5)
    np.testing.assert_array_equal(again, results[-1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("length", [17, 63, 64, 65, 150])
def test_prompts(machines, dtype, length):
    p = problem(length, 1, length, 2, 1, length, 64, dtype=dtype, causal=True)
    check(p, attention_device.run(machines("gfx950"), p, prefill=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_blocks_that_every_row_sees(machines, arch, dtype, size):
    """Their loop, for even and odd numbers of blocks, over scores that grow past what is summed without scaling."""
    for keys, other in [(421, {}), (357, {"causal": True, "offset": 350, "window": 333}), (64, {})]:
        p = problem(size + keys, 1, 4, 2, 1, keys, size, dtype=dtype, scale=size**-0.5, **other)
        p.k *= np.linspace(0.1, 6, keys, dtype=np.float32)[:, None]
        check(p, attention_device.run(machines(arch), p, prefill=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_several_workgroups_of_rows(machines, dtype):
    """A prompt behind another: blocks before, in and behind the plain ones differ from workgroup to workgroup."""
    p = problem(2, 1, 150, 4, 2, 400, 64, dtype=dtype, causal=True, offset=None, window=290)
    check(p, attention_device.run(machines("gfx950"), p, prefill=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_prompt_behind_another_of_ragged_batches(machines, dtype):
    p = problem(1, 2, 40, 4, 2, 200, 64, dtype=dtype, causal=True, offset=None, lengths=[200, 77])
    for prefill in (False, True):
        check(p, attention_device.run(machines("gfx950"), p, prefill=prefill))


def forms(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """For queries [2, 9, 4 heads] over 70 keys."""
    dead = np.zeros((2, 4, 9, 70), np.float32)
    dead[0, 1, 3] = -np.inf
    dead[1, :, :, 5] = np.nan
    dead[0, 2, 4, 8] = np.inf
    dead[0, 3, 5] = np.finfo(np.float16).min  # all the same
    some = rng.random((2, 1, 9, 70)) > 0.5
    some[0, 0, 2] = False
    return {
        "window": {"causal": True, "window": 6, "offset": 50},
        "a cache that holds a window": {
            "causal": True,
            "window": 40,
            "offset": None,
            "lengths": [200, 30],
            "holds": (61, 40, 9),
        },
        "nothing seen": {"causal": True, "offset": -3},
        "softcap": {"softcap": 2.5},
        "sink": {"sink": np.array([0.5, -2, -np.inf, 80], np.float32)},
        "sink and nothing seen": {"sink": np.array([0.5, -2, 3, -np.inf], np.float32), "lengths": [0, 30]},
        "mask": {"mask": numbers(rng, 9, 70)},
        "mask of heads and fewer keys": {"mask": numbers(rng, 1, 4, 1, 33)},
        "mask that is one number a query": {"mask": numbers(rng, 2, 1, 9, 1)},
        "bool mask": {"mask": some},
        "infinities and NaN": {"mask": dead},
        "padding": {"padding": (rng.random((2, 70)) > 0.5).astype(np.int32)},
        "padding and mask": {
            "padding": np.ones((2, 70), np.int32),
            "mask": some,
            "causal": True,
            "offset": 61,
        },
    }


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("form", list(forms(np.random.default_rng(0))))
def test_forms(machines, form, prefill):
    other = forms(np.random.default_rng(7))[form]
    for dtype in TYPES:
        p = problem(3, 2, 9, 4, 2, 70, 32, 64, dtype=dtype, **other)
        check(p, attention_device.run(machines("gfx950"), p, prefill=prefill))
        if not prefill:
            check(p, attention_device.run(machines("gfx950"), p, splits=2))


def kernels(dtypes: list[str], sizes: list[int], arch: str) -> list[Any]:
    """Those of a type and size; by default the ones that differ most."""
    few = {("gfx950", "bfloat16", 128), ("gfx950", "float", 64), ("gfx942", "float16", 256)}
    return [
        pytest.param(arch, d, s, marks=[] if (arch, d, s) in few else [pytest.mark.slow])
        for d in dtypes
        for s in sizes
    ]


ALL = [k for arch in ARCHITECTURES for k in kernels(TYPES, list(attention_device.SIZES), arch)]


@pytest.mark.parametrize("arch, dtype, size", ALL)
def test_every_instruction_of_few_rows_runs(counting_machines, arch, dtype, size):
    """What no shape executes has been tested by nobody."""
    machine = counting_machines(arch)
    options: dict[str, Any] = {"dtype": dtype, "scale": size**-0.5}
    for form in forms(np.random.default_rng(7)).values():
        check(p := problem(3, 2, 9, 4, 2, 70, size, **options, **form), attention_device.run(machine, p))
    ragged: dict[str, Any] = {"lengths": [600, 141], "causal": True, "offset": None}
    for keys, splits, other in [(300, 2, {}), (600, 3, ragged), (129, 1, {})]:
        p = problem(size, 2, 1, 6, 2, keys, size, **options, **other)
        check(p, attention_device.run(machine, p, splits))
    assert machine.unexecuted("attention", f"attention_{dtype}_{size}") == []


@pytest.mark.parametrize("arch, dtype, size", ALL)
def test_every_instruction_of_many_rows_runs(counting_machines, arch, dtype, size):
    """But for a few that choose a block, which clang has put behind a branch that never leads to them."""
    machine = counting_machines(arch)
    options: dict[str, Any] = {"dtype": dtype, "scale": size**-0.5}
    for form in forms(np.random.default_rng(7)).values():
        p = problem(3, 2, 9, 4, 2, 70, size, **options, **form)
        check(p, attention_device.run(machine, p, prefill=True))
    behind: dict[str, Any] = {"causal": True, "offset": None}
    cases: list[tuple[int, int, dict[str, Any]]] = [
        (4, 421, {}),
        (4, 357, {"causal": True, "offset": 350, "window": 333}),
        (4, 64, {}),
        (100, 300, {"causal": True, "offset": 200}),
        (150, 400, behind | {"window": 290}),
        (1, 1, {}),
        (300, 300, {"causal": True}),
    ]
    for length, keys, other in cases:
        for growth in (1, 40):  # of scores: what is summed is scaled where they grow
            p = problem(size + keys, 1, length, 2, 1, keys, size, **options, **other)
            p.k *= np.linspace(0.1, growth, keys, dtype=np.float32)[:, None]
            if growth == 1 or length == 4:
                check(p, attention_device.run(machine, p, prefill=True))
    assert len(machine.unexecuted("attention_prefill", f"prefill_{dtype}_{size}")) <= 6


def test_values_that_are_not_numbers_reach_the_rows_that_see_them(machines):
    p = problem(5, 1, 3, 1, 1, 40, 64, causal=True, offset=20)
    p.v[0, 0, 22, 7] = np.nan  # seen by the last query alone
    y = attention_device.run(machines("gfx950"), p)
    assert np.isnan(y[0, 2, 0, 7]) and np.isnan(y).sum() <= 3
    assert not np.isnan(np.delete(y, 7, axis=-1)).any()


def test_what_lies_behind_a_filled_cache_is_not_read(machines):
    """It may be anything: NaN here."""
    p = problem(6, 2, 2, 2, 1, 64, 64, causal=True, offset=None, lengths=[40, 3])
    p.k[0, :, 40:], p.v[0, :, 40:], p.k[1, :, 3:], p.v[1, :, 3:] = [np.nan] * 4
    want = attention_device.expected(
        Problem(**{**p.__dict__, "k": np.nan_to_num(p.k), "v": np.nan_to_num(p.v)})
    )[0]
    for options in ({}, {"splits": 2}, {"prefill": True}):
        np.testing.assert_allclose(attention_device.run(machines("gfx950"), p, **options), want, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("cache", ["mxfp8", "mxfp4"])
@pytest.mark.parametrize("sizes", [(32, 64), (96, 128), (256,)])
def test_quantised_caches_and_every_instruction_runs(counting_machines, arch, cache, sizes):
    """Queries and weights are floats, as three bf16; what the cache holds is exact."""
    machine = counting_machines(arch)
    for size in sizes:
        options: dict[str, Any] = {"cache": cache, "scale": size**-0.5}
        ragged: dict[str, Any] = {"causal": True, "offset": None, "lengths": [150, 31]}
        p = problem(size, 2, 2, 4, 2, 150, size, **options, **ragged)
        p.v[0, 0, 7] *= 2.0**-100
        p.k[1, 1, 3] *= 2.0**-140
        for splits in (1, 2):
            check(p, attention_device.run(machine, p, splits))
    for form in forms(np.random.default_rng(7)).values():
        p = problem(3, 2, 9, 4, 2, 70, sizes[0], **options, **form)
        check(p, attention_device.run(machine, p))
    for keys, splits, other in [
        (300, 2, {}),
        (600, 3, {"lengths": [600, 141], "causal": True, "offset": None}),
    ]:
        p = problem(size, 2, 1, 6, 2, keys, size, **options, **other)
        check(p, attention_device.run(machine, p, splits))
    assert machine.unexecuted("attention_mx", f"attention_{cache}_{sizes[-1]}") == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_instruction_of_the_merge_runs(counting_machines, arch):
    """Splits of which some have seen nothing, all types, sinks, rows of heads that are no multiple of 64."""
    machine = counting_machines(arch)
    for dtype in TYPES:
        for form in forms(np.random.default_rng(7)).values():
            p = problem(3, 2, 9, 4, 2, 70, 32, 72, dtype=dtype, **form)
            check(p, attention_device.run(machine, p, splits=2))
        for splits in (3, 10):
            p = problem(
                4, 2, 1, 6, 2, 1300, 64, 200, dtype=dtype, lengths=[1300, 141], causal=True, offset=None
            )
            check(p, attention_device.run(machine, p, splits=splits))
    assert machine.unexecuted("attention", "attention_merge") == []


def test_a_block_that_is_not_a_number(machines):
    p = problem(9, 1, 3, 1, 1, 40, 64, causal=True, offset=20, cache="mxfp4")
    p.v[0, 0, 22, 40] = np.inf  # of the second block, seen by the last query; nothing times NaN is NaN, too
    y = attention_device.run(machines("gfx950"), p)
    assert np.isnan(y[0, 2, 0, 32:]).all() and not np.isnan(y[..., :32]).any()
