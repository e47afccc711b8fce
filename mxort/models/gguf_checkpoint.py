"""A GGUF file as a checkpoint: config.json and tokenizer from its metadata, its tensors under the model's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxort.errors import MxortError, first_line
from mxort.models import experts, gguf_architectures, gguf_experts, gguf_tensors
from mxort.models.checkpoint import Checkpoint, Packed
from mxort.models.gguf_architectures import ROPE_FREQUENCIES, Architecture
from mxort.models.gguf_tensors import MXFP4, PLAIN, GgufFile, Values
from mxort.models.shards import Tensor

_FORMAT = "GGUF"


def open_gguf(path: Path) -> Checkpoint:
    """Reads the header of a GGUF file. MXFP4 tensors keep their bits; they are in other places of their bytes there.

    Raises MxortError for a damaged file, an architecture or a type that is not in the tables, and for tensors that the
    architecture does not have.
    """
    file = gguf_tensors.read(path)
    architecture = gguf_architectures.find(file)
    if "token_embd.weight" not in file.tensors:
        raise MxortError(f"{path}: has no tensor 'token_embd.weight', which every model needs")
    settings = gguf_architectures.configuration(file, architecture)
    config = _config(file, architecture, settings)
    floats: dict[str, Tensor] = {}
    packed: dict[str, Packed] = {}
    family = experts.FAMILIES.get(config["architectures"][0])
    if family is not None:
        for part in gguf_experts.of(file, family, gguf_architectures.experts_of(file)):
            if isinstance(part, Packed):
                packed[part.name] = part
            else:
                floats[part.name] = part
    for tensor in file.tensors.values():
        if tensor.name == ROPE_FREQUENCIES and "rope_parameters" in settings:
            continue
        if family is not None and gguf_experts.is_one(tensor):
            continue
        named = _named(tensor, architecture, settings)
        if tensor.dtype == MXFP4:
            packed[named.name] = _packed(named)
        else:
            floats[named.name] = named
    return Checkpoint(
        path,
        config,
        _FORMAT if packed else "",
        (path,),
        floats,
        packed,
        tuple(_notes(file)),
        lambda folder: _write_tokenizer(path, folder, config["model_type"]),
    )


def _named(tensor: Values, architecture: Architecture, settings: Mapping[str, Any]) -> Values:
    name = gguf_architectures.name_of(architecture, tensor.stored_name)
    if name is None:
        raise MxortError(f"{tensor.label} is none of the architecture {architecture.model_type}")
    heads = 0
    if architecture.alternating and ".self_attn.q_proj" in name:
        heads = settings["num_attention_heads"]
    elif architecture.alternating and ".self_attn.k_proj" in name:
        heads = settings["num_key_value_heads"]
    if heads and tensor.shape[0] % (2 * heads):
        raise MxortError(f"{tensor.label} has {tensor.shape[0]} rows, expected pairs for {heads} heads")
    less = architecture.norm_offset if name.endswith("norm.weight") else 0.0
    return replace(tensor, name=name, heads=heads, less=less)


def _packed(tensor: Values) -> Packed:
    if len(tensor.shape) != 2:
        raise MxortError(f"{tensor.label} has the shape {list(tensor.shape)}, expected [N, K] of MXFP4")
    return gguf_tensors.packed(tensor)


def _notes(file: GgufFile) -> list[str]:
    kinds = Counter(t.dtype for t in file.tensors.values() if t.dtype not in (*PLAIN, MXFP4))
    if not kinds:
        return []
    counts = ", ".join(f"{count} tensors in {kind}" for kind, count in sorted(kinds.items()))
    return [f"{counts}: dequantised, then taken as float weights"]


def _config(file: GgufFile, architecture: Architecture, settings: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    try:
        config: dict[str, Any] = AutoConfig.for_model(architecture.model_type, **settings).to_dict()
    except Exception as error:  # what numbers that do not go together raise is open-ended
        raise MxortError(f"{file.path}: metadata: {type(error).__name__}: {first_line(error)}") from None
    return config | {"architectures": [CLASSES[architecture.model_type]]}


def _write_tokenizer(path: Path, folder: Path, model_type: str) -> None:
    """Writes the tokenizer's files. Raises MxortError for one that transformers cannot read."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # transformers (5.23) cannot read the positions in gpt-oss' metadata, which AutoTokenizer has it do.
    reader = PreTrainedTokenizerFast if model_type == "gpt_oss" else AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # what a tokenizer that is none raises is open-ended
        raise MxortError(f"{path}: tokenizer: {type(error).__name__}: {first_line(error)}") from None
