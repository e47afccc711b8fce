"""Running a model stage by stage (``converters.stages``): onnxruntime what lies between the sites, torch the sites.

A state is the values alive between two stages, by name, as onnxruntime gives them: arrays, lists (sequences), None
(an optional that is empty). Numbers of a type that numpy does not have, such as bfloat16, are float32 there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto

from mxort.converters import stages
from mxort.converters.functions import DOMAIN
from mxort.converters.sites import Site
from mxort.converters.stages import Stage
from mxort.errors import MxortError
from mxort.quantize import with_torch
from mxort.runtime.hardware import CPU
from mxort.runtime.session import one_line, register, require_onnxruntime

Layer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A site's operand [..., K] -> its output [..., N]."""

State = MutableMapping[str, Any]

_NUMBERS = (
    "float",
    "double",
    "float16",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
_IN_NUMPY = frozenset(f"tensor({name})" for name in (*_NUMBERS, "bool", "string"))


class Executor:
    """A model's stages, each opened when it is first run: then the types of its inputs are known."""

    def __init__(self, model: ir.Model, plan: Sequence[Stage], threads: int) -> None:
        require_onnxruntime()
        self.plan = plan
        self._model, self._threads = model, threads
        self._open: dict[int, _Nodes] = {}
        self._types: dict[str, TypeProto] = {}

    def run_nodes(self, number: int, state: State, sample: int) -> None:
        """The nodes of a stage. Raises MxortError where onnxruntime cannot open or run them."""
        stage = self.plan[number]
        if not stage.outputs:
            return
        feeds = {name: state[name] for name in stage.inputs}
        if number not in self._open:
            for name, value in feeds.items():
                if name not in self._types:
                    self._types[name] = self._type_of(name, value)
            self._open[number] = _Nodes(self._model, stage, self._types, self._threads)
        state.update(self._open[number].run(feeds, sample))

    def run_sites(self, number: int, state: State, layer_of: Callable[[Site], Layer]) -> None:
        """The sites of a stage, each as the layer it is given; then what ends with the stage is dropped."""
        stage = self.plan[number]
        for site in stage.sites:
            if site.experts:
                continue  # what they compute came of quantising them
            x = state[operand_name(site)]
            a = np.ascontiguousarray(x.T if site.transpose_a else x, np.float32)
            state[site.node.outputs[0].name or ""] = layer_of(site)(a).astype(x.dtype, copy=False)
        drop(state, stage.dead)

    def close(self, number: int) -> None:
        """Frees the session of a stage that is not run again."""
        self._open.pop(number, None)

    def _type_of(self, name: str, value: Any) -> TypeProto:
        if isinstance(value, np.ndarray):
            return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None)
        declared = next(v for v in self._model.graph.inputs if v.name == name)
        return ir.serde.serialize_value(declared).type


def operand_name(site: Site) -> str:
    value = site.node.inputs[0]
    assert value is not None
    return value.name or ""


def float_layer(site: Site, rows: NDArray[np.float32] | None = None) -> Layer:
    """The site in float32, with its weight or with ``rows``, W^T [N, >= K]. Raises MxortError without torch."""
    rows = stages.float_weight(site) if rows is None else rows
    weight = rows[:, : site.K] * np.float32(site.alpha)
    layer: Layer = with_torch("moments").Linear(weight, stages.own_bias(site))
    return layer


def drop(state: State, names: Iterable[str]) -> None:
    for name in names:
        with suppress(KeyError):
            del state[name]


class _Nodes:
    """The nodes of one stage in onnxruntime. ``types`` has those of its inputs, and gets those of its outputs."""

    def __init__(self, model: ir.Model, stage: Stage, types: dict[str, TypeProto], threads: int) -> None:
        widened = {name for name in stage.inputs if _is_widened(types[name])}
        self._open(stage, stage.proto(model, types, widened), threads)
        for name, output in zip(stage.outputs, self._session.get_outputs(), strict=True):
            types[name] = _parse_type(output.type)
        widened |= {name for name in stage.outputs if _is_widened(types[name])}
        if not widened.isdisjoint(stage.outputs):
            self._open(stage, stage.proto(model, types, widened), threads)
        self._stage = stage
        self._inputs = dict(zip(stage.inputs, (i.name for i in self._session.get_inputs()), strict=True))

    def _open(self, stage: Stage, proto: onnx.ModelProto, threads: int) -> None:
        runtime = require_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # torch has the cores next
        if DOMAIN in (opset.domain for opset in proto.opset_import):  # experts, converted before
            register(options, device=CPU)
        options.enable_cpu_mem_arena = False  # results are kept: an arena they lie in would be kept whole
        if folder := stage.data_folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            self._session = runtime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exception types have no common base but this
            raise MxortError(f"calibration: onnxruntime cannot open the model: {one_line(error)}") from error

    def run(self, feeds: Mapping[str, Any], sample: int) -> dict[str, Any]:
        """The stage's outputs by name."""
        try:
            results = self._session.run(None, {self._inputs[name]: value for name, value in feeds.items()})
        except Exception as error:
            raise MxortError(f"calibration: sample {sample} fails to run: {one_line(error)}") from error
        return dict(zip(self._stage.outputs, results, strict=True))


def _parse_type(text: str) -> TypeProto:
    """A type as onnxruntime writes it: tensor(float), seq(tensor(int64)), optional(...)."""
    kind, inner = text.removesuffix(")").split("(", 1)
    if kind == "tensor":
        return onnx.helper.make_tensor_type_proto(TensorProto.DataType.Value(inner.upper()), None)
    if kind == "seq":
        return onnx.helper.make_sequence_type_proto(_parse_type(inner))
    if kind == "optional":
        return onnx.helper.make_optional_type_proto(_parse_type(inner))
    raise MxortError(f"calibration: cannot hold values of type {text}")


def _is_widened(kind: TypeProto) -> bool:
    """Whether numpy lacks the type of a tensor's numbers, of which float32 then has all."""
    if not kind.HasField("tensor_type"):
        return False
    return f"tensor({TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()})" not in _IN_NUMPY


class Store:
    """The states of many samples: in memory up to a budget of bytes, then in files, where a value can be saved.

    Where nothing more can be written, a warning says so and memory is used. ``held``: bytes in memory now.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget, self._written = folder, budget, 0
        self._full = False
        self.held = 0

    def sample(self, inputs: Mapping[str, Any]) -> State:
        """A further sample, with the inputs of the model."""
        state = _Sample(self)
        state.update(inputs)
        return state

    def keep(self, value: Any) -> Any:
        """``value``, or the path that it is in."""
        if self.held + _bytes_of(value) > self._budget and not self._full and _is_saved_whole(value):
            self._written += 1
            path = self._folder / f"{self._written}.npy"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                np.save(path, value, allow_pickle=False)
                return path
            except OSError as error:
                self._full = True
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                why = f"{path}: {error.strerror or error}: activations beyond the budget stay in memory"
                warnings.warn(why, RuntimeWarning, stacklevel=4)
        self.held += _bytes_of(value)
        return value

    def forget(self, kept: Any) -> None:
        """Ends what :meth:`keep` returned."""
        if isinstance(kept, Path):
            kept.unlink()
        else:
            self.held -= _bytes_of(kept)


class _Sample(MutableMapping[str, Any]):
    """The state of one sample in a store."""

    def __init__(self, store: Store) -> None:
        self._store, self._kept = store, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        kept = self._kept[name]
        return np.load(kept, allow_pickle=False) if isinstance(kept, Path) else kept

    def __setitem__(self, name: str, value: Any) -> None:
        drop(self, (name,))
        self._kept[name] = self._store.keep(value)

    def __delitem__(self, name: str) -> None:
        self._store.forget(self._kept.pop(name))

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def _bytes_of(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_bytes_of, value))
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _is_saved_whole(value: Any) -> bool:
    """Strings are objects, of which a file would have to be trusted; a sequence is no array."""
    return isinstance(value, np.ndarray) and not value.dtype.hasobject
