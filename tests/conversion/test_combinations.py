"""Options that would change nothing are errors, before any work; what only the model can tell is a warning."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from mxort.cli import app
from mxort.conversion.combinations import NEEDS, check
from mxort.conversion.inspection import inspect
from mxort.conversion.recipe import Recipe
from mxort.quantize import ALGORITHMS
from tiny_models import mlp

CALIBRATED = ("gptq", "mr-gptq", "smooth-gptq", "smoothquant")
SOLVERS = ("gptq", "mr-gptq", "smooth-gptq")
SMOOTH = ("smooth-gptq", "smoothquant")


def meant(options: dict, calibrated: bool) -> bool:
    """By hand: whether every one of the options means something beside the others."""
    algorithm = options.get("algorithm", "auto")
    if algorithm == "auto":
        algorithm = "mr-gptq" if calibrated else "rtn"
    return (
        (algorithm in CALIBRATED) == calibrated
        and (algorithm in SOLVERS or not options.keys() & {"damping", "effort"})
        and (algorithm in SMOOTH or "smooth_alpha" not in options)
        and (calibrated or "sequential" not in options)
        and not {"accuracy_level", "activation_format"} <= options.keys()
        and (options.get("op_types") != () or "convert_embedding" in options)
        and not {"table_format", "convert_embedding"} <= options.keys()
        and not {"op_types", "convert_conv"} <= options.keys()
        and not {"fuse", "kv_cache"} <= options.keys()
    )


OTHER = {
    "damping": 0.1,
    "effort": 2,
    "sequential": False,
    "smooth_alpha": "0.5",
    "scale_rule": "even",
    "column_multiplier": False,
    "weight_format": "mxfp8_e4m3",
    "layer_formats": ("a=mxfp8_e4m3",),
    "table_format": "float",
    "activation_format": "mxfp4",
    "accuracy_level": 4,
    "rotation": 32,
    "include": ("a",),
    "exclude": ("a",),
    "op_types": (),
    "min_elements": 1,
    "convert_lm_head": True,
    "convert_embedding": True,
    "convert_conv": True,
    "requantize": True,
    "fuse": False,
    "kv_cache": "mxfp8",
    "strict": True,
}
"""Of every option but the algorithm a value that is not its default."""


def test_every_option_is_in_the_table():
    assert list(NEEDS) == [option.name for option in fields(Recipe)] == ["algorithm", *OTHER]


@pytest.mark.parametrize("calibrated", [False, True], ids=["no data", "data"])
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_every_pair_of_options(algorithm, calibrated):
    for first in OTHER:
        for second in OTHER:
            options = {"algorithm": algorithm, first: OTHER[first], second: OTHER[second]}
            if meant(options, calibrated):
                assert check(Recipe(**options), calibrated) in ALGORITHMS
            else:
                with pytest.raises(mxort.MxortError) as caught:
                    check(Recipe(**options), calibrated)
                assert "\n" not in str(caught.value) and "got" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"effort": 3},
            "effort 3: would change nothing: got algorithm rtn (there is no calibration data), "
            "expected one of the algorithms gptq, mr-gptq, smooth-gptq",
        ),
        (
            {"sequential": False},
            "sequential False: would change nothing: got none, expected calibration data",
        ),
        (
            {"accuracy_level": 1, "recipe": "w4a8"},
            "accuracy_level 1: would change nothing: got activation_format mxfp8_e4m3, "
            "expected activation_format none",
        ),
        ({"op_types": ()}, "op_types nothing: would change nothing: got neither, expected an operator, "),
        ({"algorithm": "gptq"}, "algorithm gptq: needs calibration data, got none"),
        ({"algorithm": "rtn", "calibration": "x"}, "algorithm rtn: makes nothing of calibration data, got"),
        (
            {"algorithm": "smoothquant", "damping": 1, "calibration": "x"},
            "damping 1.0: would change nothing: got algorithm smoothquant, expected",
        ),
    ],
)
def test_convert_and_the_command_line_say_the_same(capsys, options, message):
    """And before the model is read, which does not exist."""
    with pytest.raises(mxort.MxortError) as caught:
        mxort.convert("absent.onnx", "out.onnx", **options)
    assert str(caught.value).startswith(message)
    flags = []
    for name, value in options.items():
        flag = "--" + {"recipe": "preset"}.get(name, name).replace("_", "-")
        flags += [flag.replace("--", "--no-")] if value is False else [flag, str(value)]
    if "op_types" not in options:  # a flag without a value is argparse's error
        assert app.main(["convert", "absent.onnx", *flags]) == 2
        assert capsys.readouterr().err.startswith(f"mxort: error: {message}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory", "9"], "--memory 9: would change nothing: expected --calibration too"),
        (["--threads", "0"], "--threads 0: would change nothing: expected --calibration too"),
        (["--cache", "c"], "--cache c: would change nothing: expected --calibration too"),
        (["--device", "auto"], "--device auto: would change nothing: expected --calibration too"),
        (["--samples", "2"], "--samples 2: would change nothing: expected a sensitivity that is measured"),
        (["--sensitivity", "s"], "--sensitivity s: would change nothing: expected --budget-bits or"),
        (["--calibration", "d", "--samples", "2"], "--samples 2: would change nothing"),
        (["--budget-bits", "5", "--sensitivity", "s", "--samples", "2"], "--samples 2: would change nothing"),
        (["--budget-bits", "5"], "--budget-bits, --target-kl: got no data"),
        (["--target-kl", "5"], "--budget-bits, --target-kl: got no data"),
        (
            ["--budget-bits", "5", "--calibration", "d", "--weight-format", "mxfp8_e4m3"],
            "a budget or a target chooses the weight formats: the recipe must not, got mxfp8_e4m3",
        ),
        (
            ["--target-kl", "5", "--calibration", "d", "--layer-formats", "a=mxfp4"],
            "a budget or a target chooses the weight formats: the recipe must not, got a=mxfp4",
        ),
        (
            ["--budget-bits", "5", "--calibration", "d", "--algorithm", "rtn"],
            "algorithm rtn: makes nothing of calibration data, got some",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry run"])
def test_flags_that_mean_nothing_alone(capsys, flags, message, dry):
    assert app.main(["convert", "absent.onnx", *flags, *dry]) == 2
    assert capsys.readouterr().err.startswith(f"mxort: error: {message}")


def embedding(path: Path) -> Path:
    """One table, and nothing that multiplies by it."""
    table = np.random.default_rng(1).standard_normal((100, 64), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("make", "options", "warnings"),
    [
        (
            mlp,
            {"convert_lm_head": True},
            ["convert_lm_head: the model has no output projection of a language"],
        ),
        (mlp, {"convert_embedding": True}, ["convert_embedding: the model has no embedding table"]),
        (lambda path: mlp(path, output="logits"), {"convert_lm_head": True}, []),
        (embedding, {"convert_embedding": True}, []),
        (
            embedding,
            {"convert_embedding": True, "rotation": 32, "activation_format": "mxfp4"},
            [
                "activation_format mxfp4: changes nothing: only embedding tables are converted",
                "rotation 32: changes nothing: only embedding tables are converted",
            ],
        ),
        (
            mlp,
            {"layer_formats": ("fc*=mxfp8_e4m3", "fc1=mxfp6_e2m3")},
            [
                "layer_formats: 'fc1=mxfp6_e2m3' changes nothing: of its nodes 'fc*=mxfp8_e4m3' before it match"
            ],
        ),
        (mlp, {"layer_formats": ("fc1=mxfp6_e2m3", "fc*=mxfp8_e4m3")}, []),
        (
            mlp,
            {"layer_formats": ("fc1=mxfp6_e2m3",), "exclude": ("fc1",)},
            ["layer_formats: 'fc1=mxfp6_e2m3' changes nothing: of its nodes all are left alone"],
        ),
    ],
)
def test_what_the_model_does_not_have_is_a_warning(tmp_path, make, options, warnings):
    path = make(tmp_path / "m.onnx")
    for found in (
        mxort.convert(path, tmp_path / "o.onnx", **options).warnings,
        inspect(path, Recipe(**options)).warnings,
    ):
        assert len(found) == len(warnings)
        assert all(text.startswith(start) for text, start in zip(found, warnings, strict=True))
