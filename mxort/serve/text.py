"""Tokens to text as they come, up to a stop sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """``decode`` gives the text that a token adds, "" while a character is incomplete.

    What may be the beginning of a stop sequence is held back until it is known to be none.
    """

    def __init__(self, decode: Callable[[int], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be sent now. After a stop sequence ``stopped`` is set, and nothing more comes."""
        text = self._held + self._decode(token)
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
