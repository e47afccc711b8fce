"""Running a decoder token by token: one loop for whatever inputs, cache and masks its exporter gave it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.calibration.example_inputs import cache_window, generate_inputs, table_rows
from mxort.errors import MxortError
from mxort.runtime.session import one_line, require_onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort  # type: ignore[import-untyped]

Tokens = NDArray[np.int64]

_TOKENS, _LOGITS = "input_ids", "logits"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PRESENT = (("past_key_values", "present"), ("past", "present"), ("past_key_values", "present_key_values"))
"""How the output that goes on with an input is named after it."""
_SAME = 1e-2
"""Of the largest logit: by how much the logits of one position may differ between two runs and count as the same."""


class DecoderLoop:
    """A decoder and ``batch`` sequences of one length that it has read. The cache never leaves onnxruntime's memory.

    Knows input_ids (or the only input), attention_mask [batch, total], positions, token types, a cache as
    onnxruntime-genai's builder and optimum write it (past_key_values.*, present.*; also recurrent states and caches
    over which a window slides), use_cache_branch and num_logits_to_keep. Without a cache every step runs the whole
    sequences again. A model with a fixed batch has that one; ``vocabulary`` is the number of tokens it knows.

    ``capacity``: tokens that no sequence will exceed, so that GroupQueryAttention appends to its cache in place, where
    it would otherwise return a copy that is a token longer; 0: not known.

    Raises MxortError where the model (called ``name``) is no such decoder.
    """

    def __init__(
        self, session: ort.InferenceSession, model: ir.Model, name: str, batch: int, capacity: int = 0
    ) -> None:
        self._session, self._name = session, name
        self._inputs = {v.name or "": v for v in model.graph.inputs if v.name not in model.graph.initializers}
        self._tokens = self._token_input()
        rows, columns = _dims(self._inputs[self._tokens])
        if columns is not None:
            raise self._refused(f"{self._tokens} has a fixed length of {columns}")
        self.batch = rows or batch
        self.vocabulary = table_rows(self._inputs[self._tokens]) or 0
        self._logits = self._logits_output(model)
        self._present = self._cache_outputs()
        self._outputs = [self._logits, *self._present.values()]
        unknown = [key for key in self._inputs if key not in self._present and not self._is_known(key)]
        if unknown:
            raise self._refused(f"what to feed its input {unknown[0]} is not known")
        in_place = capacity and all(self._appends(key) for key in self._present)
        self._in_place = {output: key for key, output in self._present.items() if in_place}
        self._empty = self._empty_cache(model, capacity)
        self.reset()
        self.step(np.zeros((self.batch, 1), np.int64))  # which says how large the vocabulary is
        self.reset()
        if not self.cached:
            self._check_causal()

    @property
    def cached(self) -> bool:
        """Whether a step costs what its tokens cost, not what the whole sequences do."""
        return bool(self._present)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the cache of one sequence of so many tokens."""
        arrays = self._empty.values()
        return sum(math.prod(size or tokens for size in x.shape) * x.itemsize // self.batch for x in arrays)

    def reset(self) -> None:
        """Forgets the sequences."""
        value = require_onnxruntime().OrtValue.ortvalue_from_numpy
        self._past = {key: value(array) for key, array in self._empty.items()}
        self._read = np.zeros((self.batch, 0), np.int64)

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        """Appends int64 [batch, n] tokens -> float32 [batch, vocabulary], the logits of what follows the last."""
        past = self._read.shape[1]
        self._read = np.concatenate([self._read, tokens], axis=1)
        given = tokens if self.cached else self._read
        results = self._run(given, past if self.cached else 0)
        if not self._in_place:
            self._past = {key: results[output] for key, output in self._present.items()}
        logits = self._logits_of(results)
        self.vocabulary = min(self.vocabulary or logits.shape[-1], logits.shape[-1])
        return logits[:, -1].astype(np.float32)

    def _logits_of(self, results: Mapping[str, ort.OrtValue]) -> NDArray[Any]:
        logits: NDArray[Any] = results[self._logits].numpy()
        if logits.ndim != 3 or logits.shape[0] != self.batch:
            raise self._refused(
                f"{self._logits} is {list(logits.shape)}, expected [batch, tokens, vocabulary]"
            )
        return logits

    def _run(self, tokens: Tokens, past: int) -> dict[str, ort.OrtValue]:
        value = require_onnxruntime().OrtValue.ortvalue_from_numpy
        feeds = {key: value(self._fed(key, tokens, past)) for key in self._inputs if key not in self._present}
        try:
            binding = self._session.io_binding()
            for key, given in (feeds | self._past).items():
                binding.bind_ortvalue_input(key, given)
            for output in self._outputs:
                if output in self._in_place:
                    binding.bind_ortvalue_output(output, self._past[self._in_place[output]])
                else:
                    binding.bind_output(output, "cpu")
            self._session.run_with_iobinding(binding)
            return dict(zip(self._outputs, binding.get_outputs(), strict=True))
        except Exception as error:  # onnxruntime's exception types have no common base but this
            raise MxortError(f"{self._name}: fails to run token by token: {one_line(error)}") from error

    def _fed(self, key: str, tokens: Tokens, past: int) -> NDArray[Any]:
        declared = self._inputs[key]
        assert declared.dtype is not None
        dtype = declared.dtype.numpy()
        total = past + tokens.shape[1]
        if key == self._tokens:
            return tokens.astype(dtype)
        if key == "use_cache_branch":
            return np.array([past > 0])
        if "logits_to_keep" in key:
            return np.full([1] * len(declared.shape or ()), 1 if self.cached else total, dtype)
        if "mask" in key:
            return np.ones((self.batch, total), dtype)
        axes = _dims(declared)
        shape = {1: tokens.shape[1:], 2: tokens.shape}.get(len(axes), (axes[0] or 1, *tokens.shape))
        if "position" in key:  # three axes: one of them for text and both directions of a picture
            return np.broadcast_to(np.arange(past, total, dtype=dtype), shape).copy()
        return np.zeros(shape, dtype)

    def _is_known(self, key: str) -> bool:
        ranks = {"mask": (2,), "position": (1, 2, 3), "token_type": (2,), "logits_to_keep": (0, 1)}
        rank = len(self._inputs[key].shape or ())
        named = any(part in key and rank in allowed for part, allowed in ranks.items())
        return named or key in (self._tokens, "use_cache_branch")

    def _token_input(self) -> str:
        if _TOKENS in self._inputs:
            key = _TOKENS
        elif len(self._inputs) == 1:
            key = next(iter(self._inputs))
        else:
            raise self._refused(f"it has no input {_TOKENS} (it has: {', '.join(self._inputs)})")
        value = self._inputs[key]
        if (
            value.dtype is None
            or not value.dtype.is_integer()
            or value.shape is None
            or len(value.shape) != 2
        ):
            raise self._refused(f"input {key} is no integers [batch, tokens]")
        return key

    def _logits_output(self, model: ir.Model) -> str:
        """The output called so, or the only one as wide as the vocabulary."""
        outputs = {v.name or "": v for v in model.graph.outputs if v.dtype in _FLOATS}
        if _LOGITS in outputs:
            return _LOGITS
        wide = [
            key
            for key, v in outputs.items()
            if v.shape and self.vocabulary and v.shape[-1] == self.vocabulary
        ]
        if len(wide) != 1:
            raise self._refused(f"it has no output {_LOGITS} (it has: {', '.join(outputs)})")
        return wide[0]

    def _cache_outputs(self) -> dict[str, str]:
        """Input of the cache -> the output that goes on with it."""
        outputs = {output.name for output in self._session.get_outputs()}
        found: dict[str, str] = {}
        for key, value in self._inputs.items():
            if "past" not in key or value.dtype not in _FLOATS:
                continue
            names = [key.replace(*pair) for pair in _PRESENT]
            output = next((name for name in names if name in outputs), None)
            if output is None:
                raise self._refused(f"input {key} has no output {names[0]} to go on with")
            found[key] = output
        return found

    def _appends(self, key: str) -> bool:
        """Whether this part of the cache is a GroupQueryAttention's alone, which appends where both are one buffer."""
        uses = list(self._inputs[key].uses())
        if len(uses) != 1 or cache_window(self._inputs[key]):
            return False
        node, index = uses[0].node, uses[0].idx
        grown = {3: 1, 4: 2}.get(index) if node.op_type == "GroupQueryAttention" else None
        return grown is not None and node.outputs[grown].name == self._present[key]

    def _empty_cache(self, model: ir.Model, capacity: int) -> dict[str, NDArray[Any]]:
        batches = {key: self._inputs[key] for key in (self._tokens, *self._present)}
        symbols = {_symbol(v, 0) for v in batches.values()} - {""}
        made = generate_inputs(model, self._name, dims=dict.fromkeys(symbols, self.batch))
        result = {}
        for key in self._present:
            value, array = self._inputs[key], made[key]
            shape = list(array.shape)
            for axis, dim in enumerate(value.shape or ()):
                if not isinstance(dim, int) and not _symbol(value, axis):  # a size without a name
                    shape[axis] = 0 if axis else self.batch
            fixed = len(shape) == 4 and shape[2] and not cache_window(value)
            if fixed and key.endswith(("key", "value")):
                raise self._refused(f"its cache {key} has a fixed size of {shape[2]} positions")
            if self._in_place:
                shape[2] = capacity
            result[key] = np.zeros(shape, array.dtype)
        return result

    def _check_causal(self) -> None:
        """A model that fills gaps has the same inputs and outputs, but what comes later counts in it."""
        tokens = np.zeros((2, self.batch, 4), np.int64)
        tokens[1, :, 3] = max(self.vocabulary, 2) // 2
        first, second = (self._logits_of(self._run(each, 0)).astype(np.float32) for each in tokens)
        if np.abs(first[:, :3] - second[:, :3]).max(initial=0) > _SAME * np.abs(first).max():
            raise self._refused("its logits depend on later tokens, as those of an encoder do")

    def _refused(self, why: str) -> MxortError:
        return MxortError(f"{self._name}: is no decoder that can write text: {why}")


def _dims(value: ir.Value) -> tuple[int | None, ...]:
    """Sizes, None where they are open (also those written as -1)."""
    return tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape or ())


def _symbol(value: ir.Value, axis: int) -> str:
    dim = (value.shape or ())[axis]
    return "" if isinstance(dim, int) else dim.value or ""
