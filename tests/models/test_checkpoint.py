"""What is read of a checkpoint of each format, and which variants are refused, by name and in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
from checkpoints import Matrix
from mxort.errors import MxortError
from mxort.models.checkpoint import Checkpoint, open_checkpoint

MODULE = "model.layers.0.mlp.up_proj"


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    quantization: Any,
    beside: Any = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"]}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    checkpoints.save_tensors(folder, dict(tensors))
    return folder


def every_byte() -> Matrix:
    """All pairs of codes, and all scales that are numbers."""
    pairs = np.arange(256, dtype=np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(16, 32)
    codes = np.tile(codes, (17, 1))[:255]
    return Matrix(codes, np.arange(255, dtype=np.uint8)[:, None])


def made(fmt: str, matrix: Matrix | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, settings = checkpoints.FORMATS[fmt]({MODULE: matrix or every_byte()})
    assert settings is not None
    return tensors | {"lm_head.weight": torch.ones(4, 4).bfloat16()}, settings


@pytest.mark.parametrize("fmt", checkpoints.OF_MATRICES)
def test_codes_and_scales_are_the_files(fmt: str, tmp_path: Path) -> None:
    tensors, settings = made(fmt)
    opened = open_checkpoint(write(tmp_path, tensors, settings))
    matrix = every_byte()
    (packed,) = opened.packed.values()
    assert packed.name == MODULE + ".weight"
    assert packed.shape == (255, 32)
    codes, scales = packed.arrays()
    np.testing.assert_array_equal(codes, matrix.bytes)
    np.testing.assert_array_equal(scales, matrix.scales)
    np.testing.assert_array_equal(packed.values(3, 200), matrix.values[3:200])
    assert packed.activation_format == ("mxfp4" if fmt.endswith("w4a4") else None)
    assert list(opened.floats) == ["lm_head.weight"]


def test_scales_may_have_the_type_of_scales(tmp_path: Path) -> None:
    tensors, settings = made("quark")
    name = MODULE + ".weight_scale"
    tensors[name] = tensors[name].view(torch.float8_e8m0fnu)
    (packed,) = open_checkpoint(write(tmp_path, tensors, settings)).packed.values()
    np.testing.assert_array_equal(packed.arrays()[1], every_byte().scales)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, (2, 6, 3), dtype=np.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {name + "_blocks": torch.from_numpy(blocks), name + "_scales": torch.from_numpy(scales)}
    (packed,) = open_checkpoint(write(tmp_path, tensors, {"quant_method": "mxfp4"})).packed.values()
    assert packed.shape == (2, 6, 96)
    np.testing.assert_array_equal(packed.arrays()[0], blocks.reshape(2, 6, 48))
    np.testing.assert_array_equal(packed.arrays()[1], scales)


def test_a_float_checkpoint(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path, {"a.weight": torch.ones(2, 2)}, None))
    assert (opened.format, list(opened.floats), opened.packed) == ("", ["a.weight"], {})
    assert opened.architecture == "LlamaForCausalLM"


def test_modelopt_says_more_in_a_file_of_its_own(tmp_path: Path) -> None:
    tensors, _ = made("modelopt")
    beside = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "W4A8_MXFP4_FP8", "group_size": 32},
    }
    opened = open_checkpoint(write(tmp_path, tensors, {"quant_algo": "mxfp4"}, beside))
    assert len(opened.packed) == 1
    assert "FP8" in opened.notes[0]
    mixed = {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {MODULE: {"quant_algo": "mxfp4", "group_size": 32}},
    }
    opened = open_checkpoint(write(tmp_path, tensors, None, {"quantization": mixed}))
    assert len(opened.packed) == 1


def test_overrides_by_layer(tmp_path: Path) -> None:
    tensors, settings = made("quark-w4a4")
    weight = settings["global_quant_config"]["weight"]
    override = {"layer_quant_config": {"*up_proj": {"weight": weight, "input_tensors": None}}}
    (packed,) = open_checkpoint(write(tmp_path, tensors, settings | override)).packed.values()
    assert packed.activation_format is None

    tensors, settings = made("auto-round")
    override = {"extra_config": {MODULE: {"act_bits": 4, "act_data_type": "mx_fp"}}}
    (packed,) = open_checkpoint(write(tmp_path, tensors, settings | override)).packed.values()
    assert packed.activation_format == "mxfp4"

    tensors, settings = made("compressed-tensors")
    first = settings["config_groups"]["group_0"]
    second = first | {"targets": ["re:.*up_proj"], "input_activations": first["weights"] | {"dynamic": True}}
    groups = {"config_groups": {"group_0": first, "group_1": second}}
    (packed,) = open_checkpoint(write(tmp_path, tensors, settings | groups)).packed.values()
    assert packed.activation_format == "mxfp4"


def changed(settings: Any, path: str, value: Any) -> Any:
    """The settings with the entry at ``a/b/c`` set."""
    name, _, rest = path.partition("/")
    return settings | {name: changed(settings[name], rest, value) if rest else value}


VARIANTS = [
    ("quark", "global_quant_config/weight/qscheme", "mx", "weight qscheme: got 'mx'"),
    ("quark", "global_quant_config/weight/dtype", "fp6_e2m3", "weight dtype: got 'fp6_e2m3'"),
    ("quark", "global_quant_config/weight/dtype", None, "weight dtype: got None"),
    ("quark", "global_quant_config/weight/group_size", 16, "weight group_size: got 16"),
    ("quark", "global_quant_config/weight/scale_format", "float", "weight scale_format: got 'float'"),
    ("quark", "global_quant_config/weight", [{}, {}], "weight: got .*, expected one specification"),
    ("quark", "global_quant_config", "fp4", "global_quant_config: got 'fp4', expected an object"),
    ("quark", "export/weight_format", "fake_quantized", "export weight_format: got 'fake_quantized'"),
    ("quark", "algo_config", [{"name": "rotation"}], "algo_config: got 'rotation'"),
    ("quark", "layer_type_quant_config", {"Linear": {}}, "layer_type_quant_config: got"),
    ("quark-w4a4", "global_quant_config/input_tensors/dtype", "int8", "input_tensors dtype: got 'int8'"),
    (
        "quark-w4a4",
        "global_quant_config/input_tensors/is_dynamic",
        False,
        "input_tensors is_dynamic: got False",
    ),
    ("compressed-tensors", "format", "nvfp4-pack-quantized", "format: got 'nvfp4-pack-quantized'"),
    (
        "compressed-tensors",
        "config_groups/group_0/weights/group_size",
        16,
        "group_0 weights group_size: got 16",
    ),
    ("compressed-tensors", "config_groups/group_0/weights/type", "int", "group_0 weights type: got 'int'"),
    (
        "compressed-tensors",
        "config_groups/group_0/weights/actorder",
        "group",
        "weights actorder: got 'group'",
    ),
    (
        "compressed-tensors",
        "config_groups/group_0/targets",
        ["re:.*down"],
        "the group of 'model.layers.0.mlp.up",
    ),
    (
        "compressed-tensors",
        "config_groups/group_0/targets",
        "Linear",
        "targets: got 'Linear', expected a list",
    ),
    ("compressed-tensors", "transform_config", {"config_groups": {}}, "transform_config: got"),
    ("compressed-tensors", "sparsity_config", {"format": "sparse-24-bitmask"}, "sparsity_config: got"),
    (
        "compressed-tensors-w4a4",
        "config_groups/group_0/input_activations/dynamic",
        False,
        "dynamic: got False",
    ),
    ("modelopt", "quant_algo", "NVFP4", "quant_algo: got 'NVFP4'"),
    ("modelopt", "group_size", 16, "group_size: got 16"),
    ("auto-round", "bits", 8, "bits: got 8"),
    ("auto-round", "data_type", "int", "data_type: got 'int'"),
    ("auto-round", "group_size", 16, "group_size: got 16"),
    ("auto-round", "rotation_config", {"hadamard_type": "x"}, "rotation_config: got"),
    ("auto-round", "act_bits", 5, "act_bits: got 5"),
    ("auto-round", "extra_config", {MODULE: {"bits": 8}}, f"linear {MODULE} bits: got 8"),
    ("quark", "quant_method", "gptq", "quant_method: got 'gptq', expected one of mxfp4, quark"),
]


@pytest.mark.parametrize(("fmt", "path", "value", "message"), VARIANTS)
def test_variants_are_refused_by_name(fmt: str, path: str, value: Any, message: str, tmp_path: Path) -> None:
    tensors, settings = made(fmt)
    write(tmp_path, tensors, changed(settings, path, value))
    with pytest.raises(MxortError, match=message) as error:
        open_checkpoint(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(error.value)


ODD = [
    None,
    True,
    3,
    -1,
    2.5,
    "",
    "text",
    "re:(",
    [],
    [1],
    ["re:["],
    [{}],
    {},
    {"x": 1},
    {"weights": 3},
    "*" * 99,
]


def places(settings: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in settings.items() if isinstance(settings, dict) else ():
        yield from places(value, (*path, key))


@pytest.mark.parametrize("fmt", checkpoints.OF_MATRICES)
def test_odd_settings_are_taken_or_refused(fmt: str, tmp_path: Path) -> None:
    """Every setting replaced by things that it is not: one line, or what it was without it."""
    tensors, settings = made(fmt)
    write(tmp_path, tensors, settings)
    refused = 0
    for path in places(settings):
        for odd in ODD:
            whole = json.loads(json.dumps({"quantization_config": settings}))
            inner = whole
            for key in ("quantization_config", *path)[:-1]:
                inner = inner[key]
            inner[("quantization_config", *path)[-1]] = odd
            (tmp_path / "config.json").write_text(json.dumps(whole))
            try:
                opened = open_checkpoint(tmp_path)
                assert len(opened.packed) == 1
            except MxortError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > len(ODD)


@pytest.mark.parametrize(
    ("dtype", "activation_format"),
    [("fp4", "mxfp4"), ("fp6_e2m3", "mxfp6_e2m3"), ("fp6_e3m2", "mxfp6_e3m2"), ("fp8_e4m3", "mxfp8_e4m3")],
)
def test_activation_formats_of_quark(dtype: str, activation_format: str, tmp_path: Path) -> None:
    tensors, settings = made("quark-w4a4")
    write(tmp_path, tensors, changed(settings, "global_quant_config/input_tensors/dtype", dtype))
    (packed,) = open_checkpoint(tmp_path).packed.values()
    assert packed.activation_format == activation_format
    (packed,) = open_checkpoint(tmp_path, float_activations=True).packed.values()
    assert packed.activation_format is None


def test_another_scale_rule_of_activations_is_said(tmp_path: Path) -> None:
    tensors, settings = made("quark-w4a4")
    path = "global_quant_config/input_tensors/scale_calculation_mode"
    assert not open_checkpoint(write(tmp_path, tensors, settings)).notes
    (note,) = open_checkpoint(write(tmp_path, tensors, changed(settings, path, "floor"))).notes
    assert note == "activations: the checkpoint's scale rule is 'floor', the operator's 'even'"
    tensors, settings = made("auto-round")
    settings |= {"act_bits": 4, "act_data_type": "mx_fp"}
    (note,) = open_checkpoint(write(tmp_path / "auto-round", tensors, settings)).notes
    assert note == "activations: AutoRound's scale rule is 'floor', the operator's 'even'"


def open_with(tmp_path: Path, **tensors: torch.Tensor | None) -> Checkpoint:
    """Opens a Quark checkpoint with other tensors; None leaves one out."""
    whole, settings = made("quark")
    merged = {**whole, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    return open_checkpoint(write(tmp_path, kept, settings))


CODES, SCALES = MODULE + ".weight", MODULE + ".weight_scale"
TENSORS: list[tuple[dict[str, torch.Tensor | None], str]] = [
    ({SCALES: None}, "no tensor ends in '.weight_scale'"),
    ({CODES: None}, f"tensor '{SCALES}' has no '{CODES}' beside it"),
    ({CODES: torch.zeros(255, 16, dtype=torch.int8)}, f"tensor '{CODES}' has the type I8, expected U8"),
    ({SCALES: torch.zeros(255, 1)}, f"tensor '{SCALES}' has the type F32, expected U8"),
    (
        {CODES: torch.zeros(255, 15, dtype=torch.uint8)},
        r"has the shape \[255, 15\] and its scales \[255, 1\]",
    ),
    (
        {CODES: torch.zeros(254, 16, dtype=torch.uint8)},
        r"has the shape \[254, 16\] and its scales \[255, 1\]",
    ),
    ({SCALES: torch.zeros(255, dtype=torch.uint8)}, r"its scales \[255\]"),
    (
        {"x.weight": torch.zeros(2, 2, dtype=torch.uint8)},
        "tensor 'x.weight' has the type U8, expected F32, F16, BF16",
    ),
    ({"x.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, "tensor 'x.weight' has the type F8_E4M3"),
]


@pytest.mark.parametrize(("tensors", "message"), TENSORS)
def test_tensors_that_do_not_fit_are_named(
    tensors: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MxortError, match=message) as error:
        open_with(tmp_path, **tensors)
    assert "\n" not in str(error.value)


def test_a_scale_that_is_no_number_is_refused_when_it_is_read(tmp_path: Path) -> None:
    scales = torch.full((255, 1), 255, dtype=torch.uint8)
    (packed,) = open_with(tmp_path, **{SCALES: scales}).packed.values()
    with pytest.raises(MxortError, match=f"tensor '{SCALES}' has the scale 255, which is NaN"):
        packed.arrays()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"quantization_config": 3}', "\x00"])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    checkpoints.save_tensors(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MxortError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MxortError, match="expected a folder with config"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(MxortError, match=r"config\.json: cannot read"):
        open_checkpoint(tmp_path)
