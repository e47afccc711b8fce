"""A folder of onnxruntime-genai as the server sees it: prompts in, events out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mxort.genai
from mxort.errors import MxortError
from mxort.models import genai_config
from mxort.runtime.session import one_line
from mxort.serve.errors import ApiError, too_long, too_many
from mxort.serve.lanes import Prompt
from mxort.serve.limits import Limits
from mxort.serve.sampling import Sampling
from mxort.serve.worker import Event, Job, Worker

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Decoder:
    """A language model. ``context`` is what prompt and answer may be together, in tokens."""

    kind = "decoder"

    def __init__(self, name: str, folder: Path, limits: Limits, device: str, threads: int = 0) -> None:
        self.name, self._limits = name, limits
        config = genai_config.load(folder)
        if not any((folder / file).is_file() for file in _TOKENIZERS):
            raise MxortError(f"{folder}: no tokenizer in it (one of {', '.join(_TOKENIZERS)})")
        self.context, self.vocabulary, random = _sizes(folder, config)
        model = mxort.genai.open(folder, device=device, threads=threads)
        import onnxruntime_genai as genai  # type: ignore[import-untyped]

        try:
            self._tokenizer = genai.Tokenizer(model)
            self._worker = Worker(genai, model, self._tokenizer, limits.batches, random=random)
        except Exception as error:  # genai's errors have no type of their own
            raise MxortError(f"{folder}: onnxruntime-genai cannot serve it: {one_line(error)}") from error
        self._threads = ThreadPoolExecutor(1, "mxort-tokenizer")
        self._open = 0

    @property
    def alive(self) -> bool:
        return self._worker.alive

    def counts(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return self._worker.counts()

    async def chat_tokens(self, messages: Sequence[dict[str, str]]) -> npt.NDArray[np.int32]:
        """int32 [n]: a conversation in the model's template. Raises ApiError where the template refuses it."""
        return await self._in_thread(self._chat_tokens, messages, "messages")

    async def text_tokens(self, text: str) -> npt.NDArray[np.int32]:
        """int32 [n] tokens of a text."""
        return await self._in_thread(self._text_tokens, text, "prompt")

    async def _in_thread(self, function: Any, value: Any, param: str) -> npt.NDArray[np.int32]:
        try:
            tokens = await asyncio.get_running_loop().run_in_executor(self._threads, function, value)
        except Exception as error:  # genai's errors have no type of their own
            raise ApiError(400, f"{param}: {one_line(error)[:300]}", param) from None
        return self.check(tokens, param)

    def _chat_tokens(self, messages: Sequence[dict[str, str]]) -> npt.NDArray[np.int32]:
        text = self._tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        return self._text_tokens(text)

    def _text_tokens(self, text: str) -> npt.NDArray[np.int32]:
        if "\0" in text:
            raise ValueError("text with the character 0")  # where genai's tokenizer ends the text
        return np.asarray(self._tokenizer.encode(text), np.int32)

    def check(self, tokens: npt.NDArray[np.int32], param: str) -> npt.NDArray[np.int32]:
        """Raises ApiError for a prompt that is empty, too long, or of tokens that the model has not."""
        most = min(self._limits.max_prompt, self.context - 1)
        if not len(tokens):
            raise ApiError(400, f"{param}: it has no tokens", param)
        if len(tokens) > most:
            raise too_long(len(tokens), most, param)
        if len(
            bad := tokens[(tokens < 0) | (tokens >= self.vocabulary)]
        ):  # a text may hold what it has no token for
            raise ApiError(400, f"{param}: token {bad[0]}, of a vocabulary of {self.vocabulary}", param)
        return tokens

    def check_room(self) -> None:
        """Raises ApiError where too many requests are open, or where what generates has come to an end."""
        if not self.alive:
            raise ApiError(503, f"{self.name} has ended: the server must be started again")
        if self._open >= self._limits.max_requests:
            raise too_many(self._limits.max_requests)

    @contextlib.asynccontextmanager
    async def generate(
        self, tokens: npt.NDArray[np.int32], sampling: Sampling
    ) -> AsyncIterator[asyncio.Queue[Event | ApiError]]:
        """The queue of a request's events, which others may put errors in. It ends with the block, read or not."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | ApiError] = asyncio.Queue()

        def deliver(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads it
                loop.call_soon_threadsafe(queue.put_nowait, event)

        job = Job(Prompt(tokens, sampling), deliver)
        self._open += 1
        self._worker.submit(job)
        try:
            yield queue
        finally:
            self._open -= 1
            self._worker.cancel(job)

    def close(self) -> None:
        self._worker.close()
        self._threads.shutdown()


def _sizes(folder: Path, config: dict[str, Any]) -> tuple[int, int, bool]:
    """(tokens of a context, vocabulary, whether tokens are drawn where a request does not say)."""
    model, search = config["model"], config.get("search", {})
    try:
        context = min(int(model["context_length"]), int(search.get("max_length", model["context_length"])))
        return context, int(model["vocab_size"]), bool(search.get("do_sample", False))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MxortError(
            f"{folder}: {genai_config.NAME}: context_length, vocab_size or search: {error!r}"
        ) from None
