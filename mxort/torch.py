"""torch: a module straight to a converted ONNX file, and a linear layer to try a recipe with. Needs torch 2.9 or later.

    mxort.torch.export(model, (tokens,), "model.onnx", "w4a8", dynamic_shapes=...)
    mxort.torch.swap(model, "weight-only", exclude=("lm_head",))     # its linears are MXFP4Linear from now on

No float weight is written in between: the exported graph refers to the module's own tensors, of which the conversion
reads some rows at a time.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch

from mxort import _native, quantize
from mxort.conversion.combinations import algorithm_for
from mxort.conversion.one_weight import level_of, wanted_rotation
from mxort.conversion.pipeline import convert
from mxort.conversion.recipe import Recipe, RecipeOptions
from mxort.conversion.report import Report
from mxort.conversion.weights import Calibration, CalibrationData
from mxort.converters import functions, model_io
from mxort.converters.staged_output import StagedOutput
from mxort.errors import MxortError, first_line
from mxort.formats import BLOCK_SIZE, blocks_of
from mxort.quantize import ALGORITHMS, Settings

_OPERATOR = "MatMulMXFP4"


def export(
    model: torch.nn.Module,
    args: Sequence[Any],
    out: str | os.PathLike[str],
    recipe: Recipe | str = "weight-only",
    *,
    kwargs: Mapping[str, Any] | None = None,
    calibration: Calibration | CalibrationData | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    **overrides: Unpack[RecipeOptions],
) -> Report | None:
    """torch.onnx.export (dynamo) and :func:`mxort.convert` in one; ``model``, in evaluation mode, stays as it is.

    ``args``, ``kwargs``, ``dynamic_shapes`` and the names are torch's. A model with :class:`MXFP4Linear` in it is
    written as it is: those are its MatMulMXFP4, ``recipe`` is not asked, and the result is None.

    Raises MxortError for what torch cannot export, and as :func:`mxort.convert` does.
    """
    try:
        program = torch.onnx.export(
            model,
            tuple(args),
            kwargs=dict(kwargs or {}),
            dynamo=True,
            verbose=False,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            custom_translation_table={torch.ops.mxort.matmul_mxfp4.default: _translate},
        )
    except Exception as error:  # what a module that cannot be traced raises is open-ended
        cause = error.__cause__ or error
        raise MxortError(
            f"{type(model).__name__}: torch.onnx cannot export it: {first_line(cause)}"
        ) from error
    assert program is not None
    if any(isinstance(module, MXFP4Linear) for module in model.modules()):
        _write(program.model, out)
        return None
    return convert(program.model, out, recipe, calibration=calibration, **overrides)


def _write(model: ir.Model, out: str | os.PathLike[str]) -> None:
    """Writes a graph with operators of ours, their function in it."""
    function = ir.serde.deserialize_function(functions.function(_OPERATOR, model.opset_imports[""]))
    model.functions[function.identifier()] = function
    model.opset_imports[functions.DOMAIN] = functions.VERSION
    source = model_io.from_memory(model)
    with StagedOutput(out, source, external=source.nbytes > model_io.SINGLE_FILE_BYTES) as output:
        output.write(source.model)
        output.commit()


class MXFP4Linear(torch.nn.Module):
    """A linear layer with MXFP4 weights, run by this library's kernel on the CPU. For inference: it has no gradient.

    Buffers: ``codes`` uint8 [N, ceil(K/32)*16], ``scales`` uint8 [N, ceil(K/32)], ``column_scale`` and ``bias`` float32
    [N]. The input is [..., K] in float32, float16 or bfloat16, the output [..., N] in the same.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    column_scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: torch.nn.Linear, recipe: Recipe | str = "weight-only") -> None:
        """The weights of ``linear``, rounded as ``recipe`` says without data. Raises MxortError for other formats."""
        super().__init__()
        chosen = recipe if isinstance(recipe, Recipe) else Recipe.from_preset(recipe)
        if chosen.weight_format != "mxfp4":
            raise MxortError(f"MXFP4Linear: weight_format: got {chosen.weight_format}, expected mxfp4")
        algorithm = algorithm_for(chosen, calibrated=False)
        self.N, self.K = linear.weight.shape
        width = blocks_of(self.K) * BLOCK_SIZE
        weight = linear.weight.detach()

        def rows(start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
            padded = np.zeros((stop - start, width), np.float32)
            padded[:, : self.K] = weight[start:stop].float().cpu().numpy()
            return padded

        self.rotation = quantize.fitting_rotation(
            self.K, wanted_rotation(chosen, algorithm), functions.ROTATIONS
        )
        settings = Settings(chosen.scale_rule, chosen.column_multiplier, effort=chosen.effort)
        packed, sqnr_db = quantize.quantize_weight(
            rows, self.N, self.K, ALGORITHMS[algorithm].quantize, settings, self.rotation
        )
        self.activation_format = chosen.activation_format
        self.accuracy_level = 0 if self.activation_format != "none" else level_of(chosen, sqnr_db)
        bias = torch.zeros(self.N) if linear.bias is None else linear.bias.detach().float().cpu()
        for name, array in (
            ("codes", packed.codes),
            ("scales", packed.scales),
            ("column_scale", packed.column_scale),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))
        self.register_buffer("bias", bias.clone())
        self._kernel: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        settings = (self.K, self.N, self.rotation, self.activation_format, self.accuracy_level)
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            y: torch.Tensor = torch.ops.mxort.matmul_mxfp4(
                x, self.codes, self.scales, self.column_scale, self.bias, *settings
            )
            return y
        if self._kernel is None:
            self._kernel = _kernel(self.codes, self.scales, self.column_scale, self.bias, *settings)
        return _run(self._kernel, x, self.N)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.K}, out_features={self.N}, rotation={self.rotation}, "
            f"activation_format={self.activation_format}, accuracy_level={self.accuracy_level}"
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        self._kernel = None
        super()._load_from_state_dict(*args)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> MXFP4Linear:
        """Without the kernel, which is made again when it is needed."""
        made = MXFP4Linear.__new__(MXFP4Linear)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "_kernel"}, memo))
        made._kernel = None
        return made


def swap(
    model: torch.nn.Module, recipe: Recipe | str = "weight-only", **overrides: Unpack[RecipeOptions]
) -> list[str]:
    """Puts an :class:`MXFP4Linear` in the place of each linear of ``model`` that the recipe takes -> their names.

    ``include``, ``exclude`` and ``min_elements`` pick by the module's name. Tied weights stay: others read them.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.from_preset(recipe)
    chosen = base.with_overrides(**overrides)
    readers: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            readers[id(parameter)] = readers.get(id(parameter), 0) + 1
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear
        and readers[id(module.weight)] == 1
        and module.weight.numel() >= chosen.min_elements
        and chosen.skip_reason(name) is None
    ]
    for name in names:
        model.set_submodule(name, MXFP4Linear(model.get_submodule(name), chosen))  # type: ignore[arg-type]
    return names


def _kernel(
    codes: torch.Tensor, scales: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor, *settings: Any
) -> Any:
    k, _, rotation, activation_format, level = settings
    return _native.MatMul(
        codes.cpu().numpy(),
        scales.cpu().numpy(),
        column_scale.float().cpu().numpy(),
        bias.float().cpu().numpy(),
        k,
        rotation,
        activation_format,
        level,
    )


def _run(kernel: Any, x: torch.Tensor, n: int) -> torch.Tensor:
    rows = x.detach().float().cpu().reshape(-1, x.shape[-1]).contiguous()
    result = torch.from_numpy(kernel(rows.numpy(), torch.get_num_threads()))
    return result.reshape(*x.shape[:-1], n).to(dtype=x.dtype, device=x.device)


@torch.library.custom_op("mxort::matmul_mxfp4", mutates_args=())
def _matmul(
    a: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor,
    K: int,  # noqa: N803 (the operator's own)
    N: int,  # noqa: N803
    rotation: int,
    activation_format: str,
    accuracy_level: int,
) -> torch.Tensor:
    settings = (K, N, rotation, activation_format, accuracy_level)
    return _run(_kernel(codes, scales, column_scale, bias, *settings), a, N)


@_matmul.register_fake
def _(a: torch.Tensor, codes: torch.Tensor, *_: Any) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], codes.shape[0]))


def _translate(*args: Any, **attributes: Any) -> Any:
    """torch's operator in ONNX: five inputs, then the attributes."""
    names = ("K", "N", "rotation", "activation_format", "accuracy_level")
    inputs, settings = args[:5], dict(zip(names, args[5:], strict=False)) | attributes
    return onnxscript.values.Op(_domain, _OPERATOR, _schema())(*inputs, **settings)


_domain = onnxscript.values.Opset(functions.DOMAIN, functions.VERSION)


def _schema() -> onnx.defs.OpSchema:
    """What torch's exporter wants to know of an operator. Nothing is registered: the model brings its function."""
    schema = onnx.defs.OpSchema
    number, text = schema.AttrType.INT, schema.AttrType.STRING
    weights = {"B": "uint8", "B_scale": "uint8", "column_scale": "float", "bias": "float"}
    return schema(
        _OPERATOR,
        functions.DOMAIN,
        functions.VERSION,
        "",
        inputs=[
            schema.FormalParameter("A", "T"),
            *(schema.FormalParameter(n, f"tensor({t})") for n, t in weights.items()),
        ],
        outputs=[schema.FormalParameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            *(
                schema.Attribute(name, number, required=False)
                for name in ("K", "N", "rotation", "accuracy_level")
            ),
            schema.Attribute("activation_format", text, required=False),
        ],
    )
