"""A folder of sentence-transformers or optimum as the server sees it: texts in, vectors out.

With onnxruntime and tokenizers alone: a server need not bring torch. How token vectors become one is what the folder's
modules.json says; without one, their mean, of length 1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mxort.errors import MxortError
from mxort.runtime.inference_session import InferenceSession
from mxort.runtime.session import one_line, require_onnxruntime
from mxort.serve.errors import ApiError, too_long, too_many
from mxort.serve.limits import Limits

_BATCH = 32
_MODELS = ("onnx/model.onnx", "model.onnx")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_POOLINGS = ("mean", "cls")

Vectors = npt.NDArray[np.float32]


class Encoder:
    """A sentence encoder. ``context`` is what a text may be, in tokens, those included that the tokenizer adds."""

    kind = "encoder"
    alive = True

    def __init__(self, name: str, folder: Path, limits: Limits, device: str, threads: int = 0) -> None:
        self.name, self._limits = name, limits
        self._pooling, self._unit = _pooling(folder)
        self.context = min(_context(folder), limits.max_prompt)
        self._tokenizer = _tokenizer(folder)
        path = next((folder / file for file in _MODELS if (folder / file).is_file()), None)
        if path is None:
            raise MxortError(f"{folder}: none of {', '.join(_MODELS)} in it")
        options = require_onnxruntime().SessionOptions()
        options.intra_op_num_threads = threads
        self._session = InferenceSession(path, options, device=device)
        self._inputs = [each.name for each in self._session.get_inputs()]
        if unknown := sorted(set(self._inputs) - set(_INPUTS)):
            raise MxortError(f"{path}: input {unknown[0]}, expected {', '.join(_INPUTS)} only")
        self._output = _output(path, self._session)
        self._vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._threads = ThreadPoolExecutor(1, "mxort-encoder")
        self._open = 0

    def counts(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return min(self._open, 1), max(self._open - 1, 0)

    async def embed(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> tuple[Vectors, int]:
        """(float32 [inputs, size], tokens read). Raises ApiError for inputs that are empty, too many or too long."""
        if not 0 < len(inputs) <= self._limits.max_inputs:
            raise ApiError(
                400, f"input: {len(inputs)} texts, expected 1 to {self._limits.max_inputs}", "input"
            )
        if self._open >= self._limits.max_requests:
            raise too_many(self._limits.max_requests)
        loop = asyncio.get_running_loop()
        self._open += 1
        try:
            tokens = await loop.run_in_executor(self._threads, self._tokens, inputs)
            vectors = [await loop.run_in_executor(self._threads, self._run, part) for part in _parts(tokens)]
        finally:
            self._open -= 1
        joined = np.concatenate(vectors)
        if not np.isfinite(joined).all():
            raise ApiError(500, "the model's vectors are not finite")
        return joined, sum(map(len, tokens))

    def _tokens(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> list[Sequence[int]]:
        if isinstance(inputs[0], str):
            try:
                tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(inputs))]
            except Exception as error:  # of tokenizers, without a type of their own
                raise ApiError(400, f"input: {one_line(error)[:300]}", "input") from None
        else:
            tokens = [list(each) for each in inputs]  # type: ignore[arg-type]
        for each in tokens:
            if not each:
                raise ApiError(400, "input: a text without tokens", "input")
            if len(each) > self.context:
                raise too_long(len(each), self.context, "input")
            if max(each) >= self._vocabulary:
                raise ApiError(
                    400, f"input: token {max(each)}, of a vocabulary of {self._vocabulary}", "input"
                )
        return tokens

    def _run(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, tokens))
        mask = np.array([[1] * len(each) + [0] * (longest - len(each)) for each in tokens], np.int64)
        ids = np.array([[*each, *[0] * (longest - len(each))] for each in tokens], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        result = self._session.run([self._output], {name: feeds[name] for name in self._inputs})[0]
        vectors: Vectors = np.asarray(result, np.float32)
        if vectors.ndim == 3:
            vectors = vectors[:, 0] if self._pooling == "cls" else _mean(vectors, mask)
        if self._unit:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def close(self) -> None:
        self._threads.shutdown()


def _mean(vectors: Vectors, mask: npt.NDArray[np.int64]) -> Vectors:
    weights = mask[:, :, None].astype(np.float32)
    mean: Vectors = (vectors * weights).sum(axis=1) / weights.sum(axis=1)
    return mean


def _parts(tokens: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    for start in range(0, len(tokens), _BATCH):
        yield tokens[start : start + _BATCH]


def _output(path: Path, session: Any) -> str:
    """The vectors of texts, or else of tokens."""
    outputs = {each.name: each for each in session.get_outputs()}
    if "sentence_embedding" in outputs:
        return "sentence_embedding"
    name: str | None = next((name for name, each in outputs.items() if len(each.shape or ()) == 3), None)
    if name is None:
        raise MxortError(f"{path}: outputs {', '.join(outputs)}: none of them vectors of tokens")
    return name


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MxortError(f"{path}: cannot read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MxortError(f"{path}: not JSON: {error}") from None


def _tokenizer(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MxortError(f"{folder}: no tokenizer.json in it")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MxortError(f'a server needs tokenizers ({error}): pip install "mxort[serve]"') from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of tokenizers, without a type of their own
        raise MxortError(f"{path}: cannot read: {one_line(error)}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _context(folder: Path) -> int:
    """Tokens of a text, by the folder's configurations."""
    found = []
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        if (folder / name).is_file():
            config = _json(folder / name)
            value = config.get(key) if isinstance(config, dict) else None
            if isinstance(value, int) and value > 0:
                found.append(value)
    return min(found, default=512)


@dataclass(frozen=True)
class _Module:
    kind: str
    path: str


def _pooling(folder: Path) -> tuple[str, bool]:
    """(how token vectors become one, whether that gets length 1), by modules.json. Raises MxortError."""
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", True
    try:
        modules = [_Module(each["type"].rpartition(".")[2], each["path"]) for each in _json(path)]
    except (TypeError, KeyError, AttributeError):
        raise MxortError(f'{path}: expected objects with a "type" and a "path"') from None
    pooling = "mean"
    for module in modules:
        if module.kind == "Pooling":
            pooling = _mode(folder / module.path / "config.json")
        elif module.kind not in ("Transformer", "Normalize"):
            raise MxortError(f"{path}: {module.kind} is not served, expected Transformer, Pooling, Normalize")
    return pooling, any(module.kind == "Normalize" for module in modules)


def _mode(path: Path) -> str:
    config = _json(path)
    if not isinstance(config, dict):
        raise MxortError(f"{path}: expected an object")
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    named = config.get("pooling_mode")
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    chosen = [named] if named else [flags.get(key, key) for key in on]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise MxortError(f"{path}: pooling {chosen}, expected one of {', '.join(_POOLINGS)}")
    return str(chosen[0])
