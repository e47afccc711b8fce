"""Load on a server with OpenAI's interface: clients that each send one request after the other, and what they see."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mxort.errors import MxortError
from mxort.runtime.session import one_line

_WORDS = """
river bridge winter garden market letter window people morning story island music paper stone answer question
mountain journey water table evening friend village road summer city house light night book
""".split()  # noqa: SIM905 - thirty quoted words would be no easier to read


@dataclass(frozen=True)
class Target:
    """A model of a server."""

    name: str
    url: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request as its client saw it: seconds from its start to each piece of text. The server counted the tokens.

    Without ``all_pieces`` the client told of the first and the last alone.
    """

    started: float
    pieces: tuple[float, ...]
    ended: float
    prompt_tokens: int
    tokens: int
    error: str = ""
    all_pieces: bool = True

    @property
    def first(self) -> float:
        """Seconds to the first token (TTFT)."""
        return self.pieces[0]

    @property
    def each(self) -> float:
        """Seconds of a token after the first (TPOT)."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)


def make_prompt(words: int, seed: int) -> str:
    """So many words; no two seeds begin alike, so that nothing is gained by remembering prompts."""
    chance = random.Random(seed)
    return " ".join(chance.choice(_WORDS) for _ in range(words))


async def fit_words(client: Any, target: Target, tokens: int) -> int:
    """Words of a prompt of about so many tokens, by what the server counts. Raises MxortError where it fails."""
    words = max(1, tokens // 8)  # few enough for tokenizers that know letters only
    for seed in (1, 2):
        seen = await ask(client, target, make_prompt(words, -seed), 1)
        if seen.error:
            raise MxortError(f"{target.url}: {target.model}: {seen.error}")
        words = max(1, round(words * tokens / max(seen.prompt_tokens, 1)))
    return words


async def ask(client: Any, target: Target, prompt: str, tokens: int) -> Seen:
    """One streamed completion of exactly so many tokens, where the server knows ``ignore_eos``."""
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    pieces: list[float] = []
    usage: dict[str, int] = {}
    error = ""
    try:
        async with client.stream(
            "POST", f"{target.url}/v1/completions", json=body, headers=target.headers
        ) as answer:
            if answer.status_code != 200:
                error = _message(await answer.aread(), answer.status_code)
            else:
                async for line in answer.aiter_lines():
                    event = _event(line)
                    if event.get("error"):
                        error = str(event["error"].get("message", "an error without a message"))
                    usage = event.get("usage") or usage
                    if any(choice.get("text") for choice in event.get("choices", ())):
                        pieces.append(time.perf_counter() - started)
    except Exception as failure:  # of httpx, and answers of any form
        error = one_line(failure) or type(failure).__name__
    if not error and not usage:
        error = "an answer without usage"
    ended = time.perf_counter()
    if not (error or pieces):
        pieces.append(ended - started)  # tokens that are no text: they were there when it ended
    count = usage.get("completion_tokens", 0)
    return Seen(started, tuple(pieces), ended, usage.get("prompt_tokens", 0), count, error)


def _event(line: str) -> dict[str, Any]:
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return {}
    value = json.loads(data)
    return value if isinstance(value, dict) else {}


def _message(content: bytes, status: int) -> str:
    try:
        return f"{status}: {json.loads(content)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


async def run_clients(
    client: Any,
    target: Target,
    *,
    clients: int,
    requests: int,
    words: int,
    tokens: int,
    max_seconds: float,
    seed: int,
) -> list[Seen]:
    """``requests`` completions by so many clients at once; none begins later than ``max_seconds`` after the first."""
    seen: list[Seen] = []
    numbers: Iterator[int] = iter(range(requests))
    end = time.perf_counter() + max_seconds

    async def one() -> None:
        for number in numbers:
            if time.perf_counter() > end and seen:
                return
            seen.append(await ask(client, target, make_prompt(words, seed + number), tokens))

    await asyncio.gather(*(one() for _ in range(clients)))
    return seen
