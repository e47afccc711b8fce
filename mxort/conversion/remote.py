"""Weights quantised by tasks of a Ray cluster: one a layer, which reads the model's file where it runs.

Codes and scales come back to be written here, in the order of the graph, so that the file has the bytes of a conversion
in one process. No machine holds more than the layers that are on their way.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mxort.conversion import selection
from mxort.conversion.cache import Made
from mxort.conversion.one_weight import quantize_site
from mxort.conversion.recipe import Recipe
from mxort.conversion.weights import Elsewhere
from mxort.converters import lazy_weights, model_io
from mxort.converters.sites import Site
from mxort.errors import MxortError, first_line
from mxort.runtime import cluster
from mxort.version import mxort_version

_AHEAD = 2
"""Layers on their way, for each core of the cluster."""


@contextlib.contextmanager
def quantising(
    source: model_io.Source, found: Sequence[Site], recipe: Recipe, address: str
) -> Iterator[Elsewhere]:
    """What quantises a site of ``found``. Sites must come in their order; those with a weight that has come may not.

    Raises MxortError as :func:`mxort.runtime.cluster.connected`, for a model in memory, and where a task fails: it
    finds another model at the path, or another version of mxort.
    """
    if source.path is None:
        raise MxortError(f"{source.name}: a cluster needs a model file, which its machines read")
    path = str(source.path.resolve())
    with cluster.connected(address) as ray:
        run = ray.remote(_quantise).options(scheduling_strategy="SPREAD")
        text = recipe.to_json()
        waiting = deque(_each_once(found))
        ahead = _AHEAD * max(1, round(sum(cluster.cpus_of(ray))))
        under_way: dict[int, Any] = {}

        def get(site: Site, algorithm: str) -> Made:
            wanted = next(index for index, other in enumerate(found) if other is site)
            while wanted not in under_way or (waiting and len(under_way) < ahead):
                index = waiting.popleft()
                what = _identity(found[index])
                under_way[index] = run.remote(path, text, index, what, algorithm, mxort_version())
            try:
                weight, sqnr = ray.get(under_way.pop(wanted))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (
                    cause if isinstance(cause, MxortError) else MxortError(f"Ray: {first_line(cause)}")
                ) from None
            except ray.exceptions.RayError as error:  # a machine is gone, and Ray's own second tries are over
                raise MxortError(f"{site.name}: Ray: {first_line(error)}") from None
            # Copies: what Ray gives stays in its store while it is used, and work waits for a store that is full.
            return replace(weight, codes=weight.codes.copy(), scales=weight.scales.copy()), sqnr

        yield get


def _each_once(found: Sequence[Site]) -> Iterator[int]:
    """The places of sites whose weight is the first of its kind."""
    known = set()
    for index, site in enumerate(found):
        if site.skip or site.weight is None:
            continue
        key = site.weight.identity, site.weight_format
        if key not in known:
            known.add(key)
            yield index


def _identity(site: Site) -> tuple[str, int, int, str]:
    return site.id, site.K, site.N, site.weight_format


def _quantise(
    path: str, recipe: str, index: int, what: tuple[str, int, int, str], algorithm: str, version: str
) -> Made:
    """In a process of the cluster."""
    if version != mxort_version():
        raise MxortError(f"mxort {mxort_version()} on a machine of the cluster, expected {version}")
    chosen, found = _opened(path, recipe)
    if index >= len(found) or _identity(found[index]) != what:
        raise MxortError(f"{path}: another model on a machine of the cluster: it has no {what[0]} there")
    return quantize_site(found[index], chosen, algorithm, None, None)


@functools.lru_cache(maxsize=1)
def _opened(path: str, recipe: str) -> tuple[Recipe, list[Site]]:
    """The same sites that the conversion has. The weights are mapped, not read."""
    chosen = Recipe.from_json(recipe)
    found, _ = selection.find(model_io.load(path).model, chosen)
    return chosen, lazy_weights.settle(found)
