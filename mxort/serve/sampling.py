"""How a request wants its tokens chosen, and how onnxruntime-genai is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SEEDS = 2**31 - 1


@dataclass(frozen=True)
class Sampling:
    """None: as the folder's genai_config.json has it under "search". A temperature of 0 takes the likeliest token."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool | None:
        """None: as the folder has it."""
        if self.temperature is not None:
            return self.temperature > 0
        return True if self.top_p is not None else None

    def for_turn(self, options: Any) -> None:
        """Sets a genai.TurnOptions, of an engine."""
        options.set_max_generated_tokens(self.max_tokens)
        if self.min_tokens:
            options.set_min_generated_tokens(self.min_tokens)
        for name, value in self._chosen().items():
            getattr(options, f"set_{name}")(value)

    def for_generator(self, prompt: int) -> dict[str, Any]:
        """Search options of a genai.Generator behind a prompt of so many tokens."""
        options: dict[str, Any] = {"max_length": prompt + self.max_tokens, **self._chosen()}
        if self.min_tokens:
            options["min_length"] = prompt + self.min_tokens
        if self.seed is not None:
            options["random_seed"] = (
                self.seed % _SEEDS
            )  # genai takes an int, and draws one for negative numbers
        return options

    def _chosen(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {} if self.is_random is None else {"do_sample": self.is_random}
        if self.temperature:
            chosen["temperature"] = self.temperature
        names = ("top_p", "top_k", "repetition_penalty")
        return chosen | {name: value for name in names if (value := getattr(self, name)) is not None}
