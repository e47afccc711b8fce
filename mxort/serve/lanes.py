"""What generates: onnxruntime-genai's Engine, and its Generator for requests that bring a seed.

On the CPU genai 0.18 has static batching only (continuous batching wants a paged cache, whose attention has GPU kernels
alone): a batch of up to 4 requests begins together, and a newcomer waits until all of them have ended. So several
engines of one model take turns: one that is idle takes what waits, and nobody waits for one long answer. An engine of
that kind knows neither seeds nor stop sequences: a seed means a Generator of its own, stop sequences are found in the
text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mxort.serve.sampling import Sampling

BATCH = 4
"""Requests of a batch: what genai's static scheduler takes at once."""


@dataclass(frozen=True)
class Step:
    """What a step did to a request: ``token`` is None where it only ended.

    ``finish``: "" while it goes on, then "stop", "length" or "error".
    """

    place: int
    token: int | None
    finish: str = ""
    error: str = ""


class Lane(Protocol):
    """A batch that is under way; its requests are known by their place in it."""

    def step(self) -> Iterator[Step]:
        """Generates a token for each request that is left."""

    def drop(self, place: int) -> None:
        """Ends a request whose answer nobody wants any more."""


@dataclass(frozen=True)
class Prompt:
    """int32 [n] tokens, and how to go on."""

    tokens: npt.NDArray[np.int32]
    sampling: Sampling


class EngineLane:
    """A batch in an engine, which is free for another when it has ended."""

    def __init__(self, genai: Any, engine: Any, prompts: Sequence[Prompt]) -> None:
        self._genai, self._engine = genai, engine
        self._events = engine.create_event_buffer(2 * BATCH)
        self._requests: dict[int, Any] = {}
        try:
            for place, prompt in enumerate(prompts):
                self._begin(place, prompt)
        except BaseException:
            self.close()
            raise

    def _begin(self, place: int, prompt: Prompt) -> None:
        options = self._genai.RequestOptions()
        options.set_max_session_tokens(
            len(prompt.tokens) + prompt.sampling.max_tokens
        )  # genai reserves them all
        request = self._requests[place] = self._engine.create_request(options=options)
        turn = self._genai.TurnOptions(request)
        prompt.sampling.for_turn(turn)
        request.begin_turn(prompt.tokens, turn)

    def step(self) -> Iterator[Step]:
        self._engine.run(self._events)
        for event in self._events:
            place = next((p for p, request in self._requests.items() if request is event.request), None)
            if place is None:
                continue  # dropped, with events on the way
            finish, error = self._finish(event)
            if finish:
                self.drop(place)
            if finish or event.token is not None:
                yield Step(place, event.token, finish, error)

    def _finish(self, event: Any) -> tuple[str, str]:
        reasons = self._genai.FinishReason
        if event.finish_reason == reasons.NONE:
            return "", ""
        if event.finish_reason == reasons.EOS:
            return "stop", ""
        if event.finish_reason in (reasons.MAX_GENERATED_TOKENS, reasons.MAX_SESSION_TOKENS):
            return "length", ""
        return "error", f"onnxruntime-genai ended it: {event.error_code.name}"

    def drop(self, place: int) -> None:
        self._requests.pop(place).close()

    def close(self) -> None:
        """Ends all that is left; the engine can begin another batch."""
        for place in list(self._requests):
            self.drop(place)


class GeneratorLane:
    """One request in a Generator. The prompt is read in the first step, not before."""

    def __init__(self, genai: Any, model: Any, prompt: Prompt, eos: Sequence[int]) -> None:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(**prompt.sampling.for_generator(len(prompt.tokens)))
        self._generator = genai.Generator(model, parameters)
        self._prompt: npt.NDArray[np.int32] | None = prompt.tokens
        self._eos = eos

    def step(self) -> Iterator[Step]:
        if self._prompt is not None:
            self._generator.append_tokens(self._prompt)
            self._prompt = None
        self._generator.generate_next_token()
        token = int(self._generator.get_next_tokens()[0])
        if not self._generator.is_done():
            yield Step(0, token)
        elif token in self._eos:
            yield Step(0, None, "stop")  # an engine does not show the token either
        else:
            yield Step(0, token, "length")

    def drop(self, place: int) -> None:
        self._generator = None
