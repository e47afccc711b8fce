"""How near a converted model is to its original on data: perplexity, KL and agreement, or embeddings' cosine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.calibration.data import Data, samples
from mxort.calibration.example_inputs import Inputs
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.evaluation import caches
from mxort.evaluation.comparison import read_graph
from mxort.progress import Progress, silent
from mxort.runtime.session import one_line, open_session, require_onnxruntime

_LOGITS = "logits"
_TOKENS = "input_ids"
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_LOGITS_AT_ONCE = 1 << 21
"""Logits worked on in float64 at a time: a vocabulary may have a quarter of a million."""


@dataclass(frozen=True)
class Evaluation:
    """``kind`` is decoder, classifier or embedding; ``metrics`` by name, those of the reference end in _reference.

    decoder: ``perplexity`` of the data, in nats to the power of e, over ``predictions``; ``kl`` the mean
    divergence of the converted model's distributions from the reference's; ``top1`` how often both prefer
    the same token. Positions where the reference's logits are NaN or all -inf are left out, and ``left_out`` counts
    them; where only the converted model's are, ``kl`` and ``perplexity`` are infinite. classifier: ``kl`` and ``top1``.
    embedding: mean ``cosine`` of the vectors of one sample, and ``rank_agreement``, Spearman's correlation of the
    similarities of all pairs of samples. Bytes are of whole files, with external data.
    """

    reference: str
    converted: str
    kind: str
    samples: int
    predictions: int
    metrics: Mapping[str, float]
    reference_bytes: int = 0
    converted_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON types."""
        return asdict(self)


def evaluate(
    reference: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    data: Data,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs both models on every sample of ``data`` (see :mod:`mxort.calibration.data`) and compares.

    A model with an output ``logits`` of rank 3 is a decoder, of rank 2 a classifier; any other is an embedding
    model, whose first float output is averaged over the tokens that attention_mask has. Raises MxortError for models
    that cannot be run, and data that does not fit.
    """
    report = progress or silent
    reference, converted = Path(reference), Path(converted)
    models = [_Model(path, threads) for path in (reference, converted)]
    gathered: _Distributions | _Embeddings | None = None
    count = 0
    for inputs in samples(data, read_graph(reference), str(reference)):
        output = models[0].output
        pair = [model.run(inputs, output) for model in models]
        if pair[0].shape != pair[1].shape:
            raise MxortError(f"{converted}: output {output} is {pair[1].shape}, expected {pair[0].shape}")
        if gathered is None:
            gathered = _Distributions(pair[0].ndim) if output == _LOGITS else _Embeddings()
        gathered.add(pair[0], pair[1], inputs)
        del pair  # before the next one is there: logits are large
        count += 1
        so_far = ", ".join(f"{name} {value:.4f}" for name, value in gathered.running().items())
        report(f"{count} samples: {so_far}", 0.0)
    assert gathered is not None, "samples() raises where there are none"
    return Evaluation(
        str(reference),
        str(converted),
        gathered.kind,
        count,
        gathered.predictions,
        gathered.metrics(),
        model_io.load(reference).nbytes,
        model_io.load(converted).nbytes,
    )


class _Model:
    """A session that is asked for one output."""

    def __init__(self, path: Path, threads: int) -> None:
        options = require_onnxruntime().SessionOptions()
        options.intra_op_num_threads = threads
        self._path, self._session = path, open_session(path, options)
        self._caches = caches.rows_of_session(self._session)
        names = [o.name for o in self._session.get_outputs() if o.type in _FLOATS]
        if not names:
            raise MxortError(f"{path}: has no float output to compare")
        self.output = _LOGITS if _LOGITS in names else names[0]

    def run(self, inputs: Inputs, output: str) -> NDArray[Any]:
        try:
            fitted = caches.fitted(inputs, self._caches)
            result: NDArray[Any] = self._session.run([output], fitted)[0]
        except Exception as error:  # onnxruntime's exception types have no common base but this
            raise MxortError(f"{self._path}: fails to run: {one_line(error)}") from error
        return result


class _Distributions:
    """Decoders [batch, tokens, vocabulary] and classifiers [batch, classes]."""

    def __init__(self, rank: int) -> None:
        self.kind = "decoder" if rank == 3 else "classifier"
        self.predictions = 0
        self._rows = self._same = self._left_out = 0
        self._kl = 0.0
        self._loss = np.zeros(2)

    def add(self, reference: NDArray[Any], converted: NDArray[Any], inputs: Inputs) -> None:
        classes = reference.shape[-1]
        real: NDArray[np.bool_] = np.ones(reference.shape[:-1], np.bool_)
        following = np.full(reference.shape[:-1], -1, np.int64)
        if self.kind == "decoder":
            if _TOKENS not in inputs:
                raise MxortError(f"a decoder has an input {_TOKENS}, got {', '.join(inputs)}")
            following[:, :-1] = np.asarray(inputs[_TOKENS])[:, 1:]
            if "attention_mask" in inputs:  # its last columns are those of the tokens
                mask: NDArray[Any] = np.asarray(inputs["attention_mask"])
                real = mask[:, -real.shape[1] :] != 0
                following[:, :-1][~real[:, 1:]] = -1
            if following.max(initial=-1) >= classes:
                raise MxortError(f"a token is {following.max()}, expected at most {classes - 1}")
        rows = np.flatnonzero(real.reshape(-1))
        chosen = following.reshape(-1)
        pair = [array.reshape(-1, classes) for array in (reference, converted)]
        step = max(1, _LOGITS_AT_ONCE // classes)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            usable = np.isfinite(pair[0][part].max(axis=-1))
            self._left_out += len(part) - int(usable.sum())
            part = part[usable]
            p, q = (_log_softmax(array[part]) for array in pair)
            self._kl += _divergence(p, q)
            self._same += int((p.argmax(-1) == q.argmax(-1)).sum())
            self._rows += len(part)
            if self.kind == "classifier":
                self.predictions += len(part)
                continue
            counted = np.flatnonzero(chosen[part] >= 0)
            tokens = chosen[part][counted]
            self.predictions += len(tokens)
            self._loss -= [float(x[counted, tokens].sum()) for x in (p, q)]

    def running(self) -> dict[str, float]:
        return self.metrics()

    def metrics(self) -> dict[str, float]:
        rows = max(1, self._rows)
        metrics = {"kl": self._kl / rows, "top1": self._same / rows}
        if self._left_out:
            metrics["left_out"] = self._left_out
        if self.kind == "classifier":
            return metrics
        perplexities = np.exp(self._loss / max(1, self.predictions))
        return {
            "perplexity_reference": float(perplexities[0]),
            "perplexity": float(perplexities[1]),
        } | metrics


class _Embeddings:
    """Vectors [batch, dim], or [batch, tokens, dim] that are averaged over the tokens."""

    kind = "embedding"

    def __init__(self) -> None:
        self._vectors: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
        self._cosines = 0.0

    @property
    def predictions(self) -> int:
        return len(self._vectors[0])

    def add(self, reference: NDArray[Any], converted: NDArray[Any], inputs: Inputs) -> None:
        mask = inputs.get("attention_mask")
        pair = [list(_pooled(output.astype(np.float64), mask)) for output in (reference, converted)]
        self._cosines += sum(float(first @ second) for first, second in zip(*pair, strict=True))
        for vectors, new in zip(self._vectors, pair, strict=True):
            vectors.extend(new)

    def running(self) -> dict[str, float]:
        return {"cosine": self._cosines / max(1, self.predictions)}

    def metrics(self) -> dict[str, float]:
        first, second = (np.stack(vectors) for vectors in self._vectors)
        metrics = self.running()
        if len(first) >= 3:  # two vectors have one similarity, and nothing to rank
            metrics["rank_agreement"] = rank_agreement(first, second)
        return metrics


def rank_agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's correlation of the similarities of all pairs in two sets of unit vectors [n, dim]."""
    upper = np.triu_indices(len(first), k=1)
    ranks = [np.argsort(np.argsort((vectors @ vectors.T)[upper])) for vectors in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _pooled(output: NDArray[np.float64], mask: NDArray[Any] | None) -> Iterator[NDArray[np.float64]]:
    """Unit vectors, one for each sequence."""
    if output.ndim == 3:
        weights = np.ones(output.shape[:2]) if mask is None else mask.astype(np.float64)
        output = (output * weights[..., None]).sum(axis=1)
    yield from output / np.maximum(np.linalg.norm(output, axis=-1, keepdims=True), np.finfo(float).tiny)


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """-inf everywhere for a row without a number to start from."""
    x = logits.astype(np.float64)
    largest = x.max(axis=-1, keepdims=True)
    x -= np.where(np.isfinite(largest), largest, 0)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True), where=np.isfinite(largest), out=np.zeros_like(largest))
    x[~np.isfinite(largest[..., 0])] = -np.inf
    return x


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Sum of KL(p || q) over rows of log-probabilities; a class that p excludes adds nothing, whatever q says of it."""
    difference = np.subtract(p, q, where=p > -np.inf, out=np.zeros_like(p))
    return float((np.exp(p) * difference).sum())
