"""genai_config.json: the models that onnxruntime-genai opens in a folder, and where their sessions get the library.

Every object below "model" with a "filename" is a session: decoder, encoder, vision, embedding, speech, stages of a
pipeline, and what later releases add. One without "session_options" of its own gets the decoder's, one that inherits
them has both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxort.errors import MxortError

NAME = "genai_config.json"

_LIBRARY_KEY = "custom_ops_library"


@dataclass(frozen=True)
class Part:
    """A session: ``name`` is its place in the configuration, "vision" or "decoder.pipeline.embeddings".

    ``shares``: its weights are named one by one, to be shared with another session's, so that they must stay.
    """

    name: str
    filename: str
    shares: bool


def load(folder: Path) -> dict[str, Any]:
    """The configuration of a folder. Raises MxortError for what is none."""
    path = folder / NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MxortError(f"{path}: cannot read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MxortError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise MxortError(f'{path}: expected an object with a "model"')
    return config


def parts(config: Mapping[str, Any]) -> list[Part]:
    """The sessions of a configuration, in its order."""
    return [
        Part(name, section["filename"], bool(section.get("shared_initializers")))
        for name, section in _sections(config["model"])
    ]


def _sections(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of what has a filename. A pipeline is a list of objects, or one, with a stage a key."""
    if isinstance(value, list):
        for element in value:
            yield from _sections(element, name)
    elif isinstance(value, dict):
        if name and isinstance(value.get("filename"), str) and value["filename"]:
            yield name, value
        for key, inner in value.items():
            yield from _sections(inner, f"{name}.{key}".removeprefix("."))


def name_library(config: dict[str, Any], library: str) -> None:
    """Makes every session know ``library``, a file in the folder: genai accepts no other place.

    Those whose model is not converted too: it changes nothing for them. Raises MxortError where another library is
    named already, as there can be one only.
    """
    decoder = config["model"].setdefault("decoder", {})
    if not isinstance(decoder, dict):
        raise MxortError(f"{NAME}: decoder is {decoder!r}, expected an object")
    if decoder.get("session_options") is None:
        decoder["session_options"] = {}
    for name, section in [("decoder", decoder), *_sections(config["model"])]:
        options = section.get("session_options")
        if options is None or section.get("inherit_session_options"):
            continue  # it has the decoder's, its library included
        if not isinstance(options, dict):
            raise MxortError(f"{NAME}: session_options of {name} are {options!r}, expected an object")
        if (other := options.get(_LIBRARY_KEY, library)) != library:
            raise MxortError(
                f"{NAME}: {name} has the {_LIBRARY_KEY} {other!r}, and onnxruntime-genai takes one library only"
            )
        options[_LIBRARY_KEY] = library


def set_head_size(config: dict[str, Any], size: int) -> None:
    """The last dimension of the decoder's caches: the bytes of a position where they are quantised (uint8)."""
    config["model"]["decoder"]["head_size"] = size


def text(config: Mapping[str, Any]) -> str:
    """The file of a configuration."""
    return json.dumps(config, indent=4, ensure_ascii=False) + "\n"
