"""Greedy generation on a GPU with everything there: tokens, lengths and the cache. A step is one replay of a captured
graph and a download of one token.

The decoder's graph is closed into a loop of its own state: the mask is computed from a length, the last logits become
the next token, and both are written where the next step reads them.

    length -> mask -> [decoder: tokens, cache -> logits, cache] -> ArgMax -> tokens
       ^--------------------------- + 1 <- sum of the mask
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, load, numpy_helper

from mxort.errors import MxortError
from mxort.runtime import hardware
from mxort.runtime.session import one_line, register, require_onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort  # type: ignore[import-untyped]

_VENDOR = 0x1002  # of the provider's memory, as PCI numbers AMD
_LENGTH, _NEXT_LENGTH, _NEXT_TOKEN = "mxort_length", "mxort_next_length", "mxort_next_token"
_WITHOUT_GRAPH, _GRAPH = "-1", "1"  # run entries gpu_graph_id


class Generator:
    """The decoder of an onnxruntime-genai folder, for one sequence at a time.

    ``max_length``: tokens of prompt and answer together, for which the cache is allocated once. ``device`` and
    ``device_options`` are those of :func:`mxort.register`; ``graph_capture`` is on unless it is given.

    Raises MxortError for folders whose decoder has other inputs than tokens, mask, positions and a cache of one kind,
    and where no GPU can be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_length: int = 2048,
        device: str = "gpu",
        device_options: Mapping[str, object] | None = None,
    ) -> None:
        if max_length < 2:
            raise MxortError(f"max_length: got {max_length}, expected 2 or more")
        self.max_length = max_length
        self._names = _Names(Path(folder))
        chosen = hardware.choose(device)
        if chosen.gpu is None:
            raise MxortError(
                f"device: got {device!r}, expected a GPU: {chosen.why_cpu or 'the CPU was asked for'}"
            )
        self._ordinal = chosen.gpu.ordinal
        self._runtime = require_onnxruntime()
        model = _closed(load(str(self._names.file), load_external_data=False), self._names, max_length)
        options = self._runtime.SessionOptions()
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._names.file.parent)
        )
        register(options, device=device, device_options={"graph_capture": True, **(device_options or {})})
        try:
            # Without the fallback of its Python class, which would open a session on the CPU for tensors on the GPU.
            self._session = self._runtime.InferenceSession(
                model.SerializeToString(), options, enable_fallback=0
            )
        except Exception as error:  # of onnxruntime's own types
            raise MxortError(f"{folder}: onnxruntime cannot open its decoder: {one_line(error)}") from error
        self._token = self._on_device(np.zeros((1, 1), np.int64))
        self._length = self._on_device(np.zeros(1, np.int64))
        self._cache = self._empty_cache()
        self._step = self._binding(self._token)
        self._run_options = self._runtime.RunOptions()
        self._run_options.add_run_config_entry("gpu_graph_id", _GRAPH)
        # onnxruntime runs a step more than once until it has its graph, which no sequence may notice.
        self._length.update_inplace(np.array([1], np.int64))
        self._session.run_with_iobinding(self._step, self._run_options)

    @property
    def session(self) -> ort.InferenceSession:
        """The session, for its placement and profile."""
        return self._session

    def generate(self, tokens: Sequence[int], max_new_tokens: int | None = None) -> Iterator[int]:
        """The tokens that follow ``tokens``, each the likeliest, up to ``max_new_tokens`` or the cache's end; the
        folder's end tokens end it and are not given. One call at a time: a new one begins a new sequence."""
        prompt = np.asarray(tokens, np.int64).reshape(1, -1)
        if not 0 < prompt.size < self.max_length:
            raise MxortError(f"tokens: got {prompt.size}, expected 1 to {self.max_length - 1}")
        room = self.max_length - prompt.size
        count = room if max_new_tokens is None else min(room, max_new_tokens)
        self._length.update_inplace(np.array([prompt.size], np.int64))
        first = self._runtime.RunOptions()
        first.add_run_config_entry("gpu_graph_id", _WITHOUT_GRAPH)
        self._session.run_with_iobinding(self._binding(self._on_device(prompt)), first)
        for n in range(count):
            token = int(self._token.numpy()[0, 0])
            if token in self._names.ends:
                return
            yield token
            if n + 1 < count:
                self._session.run_with_iobinding(self._step, self._run_options)

    def _on_device(self, array: np.ndarray[Any, Any]) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array, "gpu", self._ordinal, _VENDOR)

    def _empty_cache(self) -> dict[str, Any]:
        """By the input's name. What was never written is not read: lengths say where the cache ends."""
        made = {}
        for value in self._session.get_inputs():
            if value.name not in self._names.cache:
                continue
            # Batch and positions have names, and in some files the size of a head.
            named = (1, None, self.max_length, self._names.head_size)
            shape = [d if isinstance(d, int) else size for d, size in zip(value.shape, named, strict=False)]
            element = _ELEMENTS.get(value.type)
            if element is None or len(shape) != 4 or None in shape:
                raise MxortError(f"{value.name}: got {value.type} {value.shape}, expected a cache of 4 axes")
            made[value.name] = self._runtime.OrtValue.ortvalue_from_shape_and_type(
                shape, element, "gpu", self._ordinal, _VENDOR
            )
        return made

    def _binding(self, tokens: Any) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._names.tokens, tokens)
        binding.bind_ortvalue_input(_LENGTH, self._length)
        binding.bind_ortvalue_output(_NEXT_TOKEN, self._token)
        binding.bind_ortvalue_output(_NEXT_LENGTH, self._length)
        for past, present in self._names.cache.items():
            binding.bind_ortvalue_input(past, self._cache[past])
            binding.bind_ortvalue_output(present, self._cache[past])
        return binding


# As onnxruntime names types -> ONNX's numbers, which it takes where NumPy has no name.
_ELEMENTS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(uint8)": np.uint8,
}


class _Names:
    """What genai_config.json calls the decoder's file, inputs and outputs."""

    def __init__(self, folder: Path) -> None:
        path = folder / "genai_config.json"
        try:
            model = json.loads(path.read_text())["model"]
            decoder = model["decoder"]
            inputs, outputs = decoder["inputs"], decoder["outputs"]
            self.file = folder / decoder["filename"]
            self.tokens, self.mask = inputs["input_ids"], inputs["attention_mask"]
            self.positions = inputs.get("position_ids", "position_ids")
            self.logits = outputs["logits"]
            patterns = [
                (inputs["past_key_names"], outputs["present_key_names"]),
                (inputs["past_value_names"], outputs["present_value_names"]),
            ]
            layers, self.head_size = int(decoder["num_hidden_layers"]), int(decoder["head_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MxortError(f"{path}: no decoder that can be run alone: {one_line(error)}") from error
        self.cache = {p % n: q % n for n in range(layers) for p, q in patterns}
        ends = model.get("eos_token_id", [])
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])


def _positions(names: _Names) -> list[NodeProto]:
    """Of the tokens that come in, the last of which is at length - 1. Their number is also counted on the device,
    where the length is."""
    return [
        helper.make_node("Equal", [names.tokens, names.tokens], ["mxort_tokens"]),
        helper.make_node("Cast", ["mxort_tokens"], ["mxort_ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["mxort_ones", "mxort_axes"], ["mxort_count"], keepdims=0),
        helper.make_node("Sub", [_LENGTH, "mxort_count"], ["mxort_first"]),
        helper.make_node("Add", ["mxort_places", "mxort_first"], ["mxort_from_first"]),
        helper.make_node("Shape", [names.tokens], ["mxort_new"], start=1, end=2),
        helper.make_node(
            "Slice", ["mxort_from_first", "mxort_zero", "mxort_new", "mxort_axes"], [names.positions]
        ),
    ]


def _closed(model: ModelProto, names: _Names, capacity: int) -> ModelProto:
    """The decoder with its loop: see the module."""
    graph = model.graph
    given = {value.name for value in graph.input} - {t.name for t in graph.initializer}
    unknown = given - {names.tokens, names.mask, names.positions} - set(names.cache)
    if unknown:
        raise MxortError(
            f"{names.file}: got the inputs {', '.join(sorted(unknown))}, expected tokens, mask and cache"
        )
    constants = {
        "mxort_places": np.arange(capacity, dtype=np.int64).reshape(1, -1),
        "mxort_one": np.array([1], np.int64),
        "mxort_last": np.array(-1, np.int64),
        "mxort_axes": np.array([1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    before = [
        helper.make_node("Less", ["mxort_places", _LENGTH], ["mxort_seen"]),
        helper.make_node("Cast", ["mxort_seen"], [names.mask], to=TensorProto.INT64),
        helper.make_node("ReduceSum", [names.mask, "mxort_axes"], ["mxort_sum"], keepdims=0),
        helper.make_node("Add", ["mxort_sum", "mxort_one"], [_NEXT_LENGTH]),
    ]
    after = [
        helper.make_node("Gather", [names.logits, "mxort_last"], ["mxort_logits"], axis=1),
        helper.make_node("ArgMax", ["mxort_logits"], [_NEXT_TOKEN], axis=1, keepdims=1),
    ]
    if names.positions in given:
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "mxort_zero"))
        before += _positions(names)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    made = {names.mask, names.positions}
    inputs = [value for value in graph.input if value.name not in made]
    outputs = [value for value in graph.output if value.name != names.logits]
    del graph.input[:], graph.output[:]
    graph.input.extend([*inputs, helper.make_tensor_value_info(_LENGTH, TensorProto.INT64, [1])])
    graph.output.extend(
        [
            *outputs,
            helper.make_tensor_value_info(_NEXT_TOKEN, TensorProto.INT64, [1, 1]),
            helper.make_tensor_value_info(_NEXT_LENGTH, TensorProto.INT64, [1]),
        ]
    )
    # Shapes that were inferred with an open mask would keep its arithmetic from being folded.
    del graph.value_info[:]
    return model
