"""What is in a folder: its kind, its models, and everything else."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mxort.errors import MxortError
from mxort.models import genai_config

GENAI = "genai"
TRANSFORMERS = "transformers"

_CONFIGS = {genai_config.NAME: GENAI, "config.json": TRANSFORMERS, "modules.json": TRANSFORMERS}
"""File that tells a folder's kind -> kind, the first that is there: genai folders may have a config.json too."""

_NEEDED = {
    GENAI: ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    TRANSFORMERS: (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "preprocessor_config.json",
    ),
}
"""One of these is in a folder of the kind, or the library that reads it complains."""

_PARTS = ("_merged",)
"""What optimum appends to a model's name for another part of the whole, not another variant of the same."""


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file of a folder. ``path`` is relative to the folder, ``part`` what it is there (vision, decoder), "" for
    one that only goes along. ``keep``: why it is left as it is; "" where it is to be converted.
    """

    path: PurePath
    part: str
    keep: str = ""

    @property
    def is_embedding(self) -> bool:
        """Whether it is a language model's embedding alone, which its graph does not tell from any other table."""
        return self.part.rpartition(".")[2].startswith("embed")


@dataclass(frozen=True)
class ModelFolder:
    """A folder. ``files`` are all files but hidden ones, relative to ``path``; ``models`` those that are ONNX."""

    path: Path
    kind: str
    models: tuple[ModelFile, ...]
    files: tuple[PurePath, ...]
    warnings: tuple[str, ...] = ()

    @property
    def to_convert(self) -> tuple[ModelFile, ...]:
        return tuple(model for model in self.models if not model.keep)


def is_model_folder(path: Path) -> bool:
    """Whether there is one of the files that tell what a folder is."""
    return any((path / name).is_file() for name in _CONFIGS)


def read(path: str | os.PathLike[str]) -> ModelFolder:
    """Looks at a folder of models. Raises MxortError where it is none, or where a file that it names is missing."""
    folder = Path(path)
    kind = next((kind for name, kind in _CONFIGS.items() if (folder / name).is_file()), "")
    if not kind:
        known = ", ".join(_CONFIGS)
        raise MxortError(f"{path}: not a folder of models: expected one of {known} in it")
    files = tuple(_files(folder, PurePath(), (folder.resolve(),)))
    onnx = [file for file in files if file.suffix == ".onnx"]
    models = _named_by_genai(folder, onnx) if kind == GENAI else _by_name(onnx)
    if not models:
        raise MxortError(f"{path}: no ONNX file in it")
    warnings = []
    if not any(file.name in _NEEDED[kind] for file in files):
        warnings.append(f"{path}: no tokenizer in it (one of {', '.join(_NEEDED[kind])})")
    return ModelFolder(folder, kind, tuple(models), files, tuple(warnings))


def _files(folder: Path, below: PurePath, parents: Sequence[Path]) -> Iterator[PurePath]:
    """Files of ``folder / below``, links followed: caches of model hubs are made of them."""
    try:
        names = sorted(path.name for path in (folder / below).iterdir())
    except OSError as error:
        raise MxortError(f"{folder / below}: cannot read: {error.strerror or error}") from None
    for name in names:
        path = folder / below / name
        if name.startswith("."):
            continue
        if path.is_dir():
            if (real := path.resolve()) in parents:
                raise MxortError(f"{path}: links to a folder that it is in")
            yield from _files(folder, below / name, (*parents, real))
        elif path.is_file():
            yield below / name
        else:
            raise MxortError(f"{path}: cannot copy: a broken link, or no regular file")


def _named_by_genai(folder: Path, onnx: Sequence[PurePath]) -> list[ModelFile]:
    """The models that the configuration names, then those that it does not."""
    named: dict[PurePath, list[genai_config.Part]] = defaultdict(list)
    for part in genai_config.parts(genai_config.load(folder)):
        path = PurePath(os.path.normpath(part.filename))
        if path.is_absolute() or ".." in path.parts:
            raise MxortError(f"{folder}: {part.name} is {part.filename!r}, expected a file in the folder")
        if not (folder / path).is_file():
            raise MxortError(
                f"{folder}: {genai_config.NAME} names {part.filename} ({part.name}): no such file"
            )
        named[path].append(part)
    models = []
    for path, parts in named.items():
        shares = any(part.shares for part in parts)
        keep = "shares weights with another model (shared_initializers)" if shares else ""
        models.append(ModelFile(path, ", ".join(part.name for part in parts), keep))
    others = (file for file in onnx if file not in named)
    return models + [ModelFile(file, "", f"{genai_config.NAME} does not name it") for file in others]


def _by_name(onnx: Sequence[PurePath]) -> list[ModelFile]:
    """All of them; model_quantized.onnx beside model.onnx is the same once more, in another form."""
    models = []
    for file in onnx:
        bases = (o for o in onnx if o.parent == file.parent and file.stem.startswith(o.stem + "_"))
        base = next((o for o in bases if not file.stem.removeprefix(o.stem).startswith(_PARTS)), None)
        keep = f"another form of {base.name}" if base else ""
        models.append(ModelFile(file, "" if base else file.stem, keep))
    return models
