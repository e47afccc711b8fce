"""Driving onnxruntime-genai's model builder: its graphs, our weights.

The builder is given a torch model without numbers (:mod:`mxort.models.stand_ins`) and asked for its graph, which it
is kept from writing. So no float copy of the weights ever exists, on disk or in memory, and every architecture that
the builder knows comes with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir

from mxort.converters.lazy_weights import LazyWeight
from mxort.errors import MxortError, first_line
from mxort.models import configuration, experts, origin
from mxort.models.checkpoint import Checkpoint, Packed
from mxort.models.shards import Tensor

_NEEDED = ("accelerate", "onnxruntime_genai", "safetensors", "torch", "transformers")

COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Files beside the weights: the tokenizer's, chat templates, generation settings. No Python, which might be run."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MATRIX = 2


def require() -> None:
    """Raises MxortError where a library that an import needs is not installed."""
    if missing := [module for module in _NEEDED if importlib.util.find_spec(module) is None]:
        raise MxortError(f"import needs {', '.join(missing)}: pip install 'mxort[import]'")


@dataclass(frozen=True)
class Graph:
    """What the builder made of a checkpoint. ``unused``: weights that the model has no place for."""

    model: ir.Model
    unused: tuple[str, ...]


def build(checkpoint: Checkpoint, folder: Path) -> Graph:
    """The graph of a checkpoint, float32, with its weights as :class:`LazyWeight`.

    Writes genai_config.json and the tokenizer's files into ``folder``. Raises MxortError for an architecture that
    the builder does not know, weights that do not fit it, and a tokenizer that cannot be read.
    """
    companions = folder / ".checkpoint"
    companions.mkdir()
    try:
        with _offline(), _silent():
            _copy_companions(checkpoint, companions)
            return _Build(checkpoint).run(companions, folder)
    finally:
        shutil.rmtree(companions, ignore_errors=True)


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    if checkpoint.write_tokenizer is not None:
        checkpoint.write_tokenizer(folder)
    for pattern in COMPANIONS if checkpoint.write_tokenizer is None else ():
        for file in checkpoint.folder.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
    (folder / origin.CONFIG).write_text(origin.plain_config(checkpoint), encoding="utf-8")


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nothing is asked of a model hub."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    with mock.patch.dict(os.environ, dict.fromkeys(names, "1")):
        from huggingface_hub import constants

        with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
            yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The builder prints what it does, and transformers warns of what is meant here."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


class _Build:
    """One run of the builder."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model: ir.Model | None = None
        self._used: set[str] = set()
        self._weights: dict[str, Tensor | Packed] = {**checkpoint.floats, **checkpoint.packed}
        family = experts.FAMILIES.get(checkpoint.architecture)
        self._experts = None if family is None else experts.Experts(checkpoint, family, self._used)
        self._config: Any = None

    def run(self, companions: Path, folder: Path) -> Graph:
        genai = importlib.import_module("onnxruntime_genai.models.builder")
        # The module puts its own folder on the path, and what it works with is found there.
        base = importlib.import_module("builders.base")
        options = ["shared_embeddings=false"] if self._own_head() else []
        try:
            with self._hooks(base.Model):
                arguments = (None, str(companions), str(folder), "fp32", "cpu", str(companions))
                parsed = genai.parse_extra_options(*arguments, options)
                self._config = parsed["hf_details"]["hf_config"]
                configuration.prepare(self._config, self._checkpoint.settings)
                if self._experts is not None:
                    self._config.architectures = [self._experts.family.stands_for]
                genai.create_model(*arguments, **parsed)
        except MxortError:
            raise
        except Exception as error:  # what a configuration that does not fit raises is open-ended
            raise MxortError(
                f"{self._checkpoint.folder}: the model builder cannot build {self._checkpoint.architecture}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        if self._model is None:
            raise MxortError(f"{self._checkpoint.folder}: the model builder wrote no graph")
        _tidy(self._model)
        return Graph(self._model, tuple(sorted(set(self._weights) - self._used)))

    @contextlib.contextmanager
    def _hooks(self, cls: Any) -> Iterator[None]:
        """The builder's class reads weights, makes initializers and saves as we do."""
        from mxort.models.stand_ins import StandIn

        make_initializer = cls.make_initializer

        def load_weights(builder: Any, input_path: str) -> Any:
            return self._torch_model(builder)

        def initializer(
            builder: Any, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False
        ) -> None:
            if not isinstance(tensor, StandIn):
                make_initializer(builder, tensor, name, to=to, raw=raw)
                return
            lazy = LazyWeight(tensor.pieces, tensor.transposed, to or ir.DataType.FLOAT, name)
            value = builder.make_value(name, lazy.dtype, lazy.shape)
            value.const_value = lazy
            builder.model.graph.register_initializer(value)

        def make_moe(builder: Any, layer_id: int, moe: Any, root_input: str) -> None:
            if self._experts is None:
                raise MxortError(f"{self._checkpoint.architecture}: its experts are not imported")
            self._experts.add(builder, self._config, layer_id, moe, root_input)

        def save_model(builder: Any, out_dir: str) -> None:
            builder.model.graph.sort()
            self._model = builder.model

        with (
            mock.patch.object(cls, "load_weights", load_weights),
            mock.patch.object(cls, "make_initializer", initializer),
            mock.patch.object(cls, "save_model", save_model),
            mock.patch.object(cls, "make_moe", make_moe),
            mock.patch.object(cls, "get_moe_module", lambda builder, layer_id, layer: layer.mlp),
        ):
            yield

    def _own_head(self) -> bool:
        """Whether the output projection has MXFP4 of its own, so that it cannot be the embedding's table."""
        return "lm_head.weight" in self._checkpoint.packed

    def _torch_model(self, builder: Any) -> Any:
        from accelerate import init_empty_weights  # type: ignore[import-untyped]
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(builder.model_name_or_path, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        tied = bool(getattr(config, "tie_word_embeddings", False)) and not self._own_head()
        for name, parameter in list(model.named_parameters(remove_duplicate=False)):
            module, _, attribute = name.rpartition(".")
            source = _EMBEDDING if tied and name == _HEAD else name
            if self._experts is not None:
                if self._experts.holds(name):
                    continue  # read when the graph gets to them
                source = self._experts.renamed(source)
            setattr(model.get_submodule(module), attribute, self._parameter(source, tuple(parameter.shape)))
            self._used.add(source)
        self._used |= {_HEAD} if tied else set()
        _keep_apart(model)
        return model

    def _parameter(self, name: str, shape: tuple[int, ...]) -> Any:
        """What stands for a parameter of the model. Raises MxortError where the checkpoint's has another shape."""
        import torch

        from mxort.models import stand_ins

        weight = self._weights.get(name)
        if weight is None:
            raise MxortError(f"{self._checkpoint.folder}: has no tensor {name!r}, which the model needs")
        if tuple(weight.shape) != shape:
            label = weight.label if isinstance(weight, Tensor) else weight.codes.label
            raise MxortError(f"{label} has the shape {list(weight.shape)}, the model needs {list(shape)}")
        if isinstance(weight, Packed) or len(shape) == _MATRIX:
            return torch.nn.Parameter(stand_ins.of(weight), requires_grad=False)
        return torch.nn.Parameter(stand_ins.values(weight), requires_grad=False)


def _tidy(model: ir.Model) -> None:
    """What is lost when the builder writes its model: values without a name for absent inputs, None as a domain."""
    for node in model.graph:
        node.domain = node.domain or ""
        for index, value in enumerate(node.inputs):
            if value is not None and not value.name and value.producer() is None:
                node.replace_input_with(index, None)


def _keep_apart(model: Any) -> None:
    """Where queries, keys and values of a layer are not of one kind none are merged: what is packed would be lost.

    In no layer: the builder (0.18) does not forget the keys of the layer before when it comes to a merged one.
    """
    attentions: list[list[Any]] = []
    for module in model.modules():
        projections: list[Any] = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        if all(hasattr(projection, "weight") for projection in projections):
            attentions.append(projections)
    if any(len({_kind(p.weight.data) for p in projections}) > 1 for projections in attentions):
        for projection in (p for projections in attentions for p in projections):
            projection.exclude_from_quantization = True  # the builder's own sign for it


def _kind(weight: Any) -> tuple[bool, str | None]:
    return weight.pieces[0].is_packed, weight.pieces[0].activation_format
