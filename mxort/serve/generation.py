"""A request for text, from its tokens to the JSON of its answer, whole or piece by piece."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from mxort.serve.decoder import Decoder
from mxort.serve.errors import CLIENT_GONE, ApiError
from mxort.serve.metrics import Metrics
from mxort.serve.sampling import Sampling
from mxort.serve.worker import Event

_DONE = "data: [DONE]\n\n"


@dataclass
class Generation:
    """One request. ``chat``: the forms of chat completions, else those of completions."""

    decoder: Decoder
    tokens: npt.NDArray[np.int32]
    sampling: Sampling
    chat: bool
    metrics: Metrics
    timeout: float
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    generated: int = 0

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer in one. Raises ApiError where it fails, and where the client hangs up."""
        texts, finish = [], ""
        async for event in self._events(request):
            texts.append(event.text)
            finish = event.finish
        text = "".join(texts)
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._object(said, finish) | {"usage": self._usage()}

    async def stream(self, request: Request, usage: bool) -> AsyncIterator[str]:
        """The same as server-sent events. An error is one of them: the status has been sent."""
        try:
            if self.chat:
                yield self._piece({"role": "assistant", "content": ""}, None)
            async for event in self._events(request):
                if event.text or event.finish:
                    said = ({"content": event.text} if event.text else {}) if self.chat else event.text
                    yield self._piece(said, event.finish or None)
            if usage:
                yield _data(self._object(None, None, piece=True) | {"usage": self._usage()})
        except ApiError as error:
            yield _data(error.body())
        yield _DONE

    async def _events(self, request: Request) -> AsyncIterator[Event]:
        async with self.decoder.generate(self.tokens, self.sampling) as queue:
            watcher = asyncio.create_task(_watch(request, queue))
            late = ApiError(504, f"not answered within {self.timeout:g} seconds", None, "timeout")
            timer = asyncio.get_running_loop().call_later(self.timeout, queue.put_nowait, late)
            began = first = time.perf_counter()
            try:
                while True:
                    event = await queue.get()
                    if isinstance(event, ApiError):
                        raise event
                    if event.finish == "error":
                        raise ApiError(500, f"the model failed: {event.error}")
                    if not self.generated and event.generated:
                        first = time.perf_counter()
                        self.metrics.first.labels(self.decoder.name).observe(first - began)
                    self.generated = event.generated
                    yield event
                    if event.finish:
                        break
            finally:
                timer.cancel()
                watcher.cancel()
                self.metrics.finished(self.decoder.name, len(self.tokens), self.generated)
            if self.generated > 1:
                each = (time.perf_counter() - first) / (self.generated - 1)
                self.metrics.each.labels(self.decoder.name).observe(each)

    def _usage(self) -> dict[str, int]:
        prompt = len(self.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
        }

    def _piece(self, said: Any, finish: str | None) -> str:
        choice = {"delta": said} if self.chat else {"text": said}
        return _data(self._object(choice, finish, piece=True))

    def _object(
        self, choice: dict[str, Any] | None, finish: str | None, piece: bool = False
    ) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if piece else "chat.completion") if self.chat else "text_completion"
        choices = (
            [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}] if choice is not None else []
        )
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.decoder.name,
            "choices": choices,
        }


async def _watch(request: Request, queue: asyncio.Queue[Event | ApiError]) -> None:
    """Puts an error in the queue when the client hangs up."""
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(ApiError(CLIENT_GONE, "the client hung up"))


def _data(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
