"""What a client may ask of a server: each limit is a field here, and a flag of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from mxort.errors import MxortError


def _limit(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": f"{text} (default {default})"})


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes and tokens, times in seconds. Raises MxortError for what is not above 0."""

    max_requests: int = _limit(64, "requests that run or wait, of each model; another one gets 429")
    max_tokens: int = _limit(1024, "tokens that a request may ask for, and gets where it names no number")
    max_prompt: int = _limit(4096, "tokens of a prompt, or of a text to embed")
    max_inputs: int = _limit(256, "texts of a request for embeddings")
    max_body: int = _limit(1_000_000, "bytes of a request")
    batches: int = _limit(2, "batches that are decoded in turn, of up to 4 requests each")
    timeout: float = _limit(600.0, "seconds after which a request is given up, its waiting included")
    body_timeout: float = _limit(30.0, "seconds within which a request has to arrive")
    grace: float = _limit(30.0, "seconds that running requests get to end when the server is told to stop")

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise MxortError(f"{each.name} is {getattr(self, each.name)}, expected more than 0")
