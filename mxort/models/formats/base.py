"""What a file format of quantised checkpoints says: where MXFP4 weights are, and what their operands are rounded to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxort.errors import MxortError

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Linear:
    """What a checkpoint says of one linear. ``activation_format``: None where its operand stays float."""

    activation_format: str | None = None


@dataclass(frozen=True)
class Layout:
    """How a format stores weights: a linear X in the tensors X + ``codes`` and X + ``scales``.

    ``codes`` are uint8 [..., N, K/2], or with ``blocks`` [..., N, K/32, 16], low nibble = even k; ``scales`` uint8
    [..., N, K/32], E8M0 with bias 127. ``linear`` tells what the settings say of a module, and refuses with an
    MxortError what is no MXFP4. ``ignored``: endings of tensors without a meaning for the weight. ``notes``: what the
    user should hear.
    """

    codes: str
    scales: str
    linear: Callable[[str], Linear] = lambda module: Linear()
    blocks: bool = False
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a checkpoint's ``file`` says of its quantisation: quantization_config, or what stands for it.

    ``float_activations``: whatever it says of activations, they stay float.
    """

    file: Path
    settings: Settings
    float_activations: bool = False

    @property
    def method(self) -> str:
        return str(self.settings.get("quant_method", "")).lower()

    def refuse(self, what: str, got: Any, expected: str) -> MxortError:
        """The error that names a setting of this file."""
        return MxortError(f"{self.file}: {what}: got {got!r}, expected {expected}")

    def expect(self, where: str, settings: Settings, name: str, *allowed: Any) -> None:
        """Raises MxortError where a setting is given and none of ``allowed``."""
        value = settings.get(name)
        if value is not None and value not in allowed:
            raise self.refuse(f"{where} {name}".strip(), value, " or ".join(map(repr, allowed)))

    def table(self, settings: Settings, name: str) -> Settings:
        """A setting that is an object, {} where it is absent. Raises MxortError for anything else."""
        value = settings.get(name) or {}
        if not isinstance(value, Mapping):
            raise self.refuse(name, value, "an object")
        return value

    def names(self, settings: Settings, name: str) -> tuple[str, ...]:
        """A setting that is a list of texts, () where it is absent. Raises MxortError for anything else."""
        value = settings.get(name) or []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.refuse(name, value, "a list of names")
        return tuple(value)


@dataclass(frozen=True)
class Export:
    """How a format is written: a linear X in the tensors X + ``codes`` and X + ``scales``.

    ``settings`` makes quantization_config of the format of the operands ("none": they stay float) and the linears that
    are float. ``activations``: the formats it has words for. ``stacks``: it has stacks of experts in MXFP4, codes uint8
    [E, N, K/32, 16], and nothing else; without, it has linears.
    """

    codes: str
    scales: str
    activations: tuple[str, ...]
    settings: Callable[[str, tuple[str, ...]], dict[str, Any]]
    stacks: bool = False


@dataclass(frozen=True)
class Format:
    """A row of the table: ``name`` for people; ``methods``: the quant_method values it answers to.

    ``export``: how `mxort export` writes it, None where it does not.
    """

    name: str
    methods: tuple[str, ...]
    layout: Callable[[Source], Layout]
    export: Export | None = None
