"""Options are declared once: flags, JSON keys and report lines follow from the fields."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import get_type_hints

import pytest

from mxort.cli.options import add_arguments, from_arguments
from mxort.conversion.recipe import PRESETS, Recipe, RecipeOptions
from mxort.errors import MxortError
from mxort.formats import ACTIVATION_FORMATS
from mxort.quantize import ALGORITHMS
from mxort.scales import SCALE_RULES


def parse(*flags: str) -> Recipe:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return from_arguments(parser.parse_args(flags))


def other_value(option):
    """Some value that is not the default."""
    choices, default = option.metadata["choices"], option.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, tuple):
        return choices[:1] if choices else ("a*=mxfp8_e4m3", "b?=mxfp4")
    others = [
        c for c in choices or (default + 1 if isinstance(default, int | float) else "x",) if c != default
    ]
    return others[0] if others else default


OPTIONS = {option.name: option for option in fields(Recipe)}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_a_flag_a_json_key_and_a_report_line(option):
    value = other_value(option)
    recipe = Recipe(**{option.name: value})
    flag = "--" + option.name.replace("_", "-")
    if isinstance(value, bool):
        flags = [flag if value else flag.replace("--", "--no-", 1)]
    else:
        flags = [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    assert parse(*flags) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert option.name in json.loads(recipe.to_json())
    assert option.name in [name for name, _, _ in recipe.describe()]
    assert option.metadata["help"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    assert parse("--preset", name) == PRESETS[name] == Recipe.from_preset(name)
    assert Recipe.from_json(PRESETS[name].to_json()) == PRESETS[name]
    changed = Recipe.from_preset(name, rotation=64)
    assert changed.rotation == 64
    assert changed.with_overrides(rotation=1) == PRESETS[name]
    assert parse("--preset", name, "--rotation", "64") == changed


def test_defaults():
    assert parse() == Recipe() == PRESETS["weight-only"]
    assert {p.activation_format for p in PRESETS.values()} == {"none", "mxfp6_e2m3", "mxfp8_e4m3", "mxfp4"}


def test_every_choice_is_accepted():
    for name, table in (
        ("algorithm", ALGORITHMS),
        ("scale_rule", SCALE_RULES),
        ("activation_format", ACTIVATION_FORMATS),
    ):
        for value in table:
            assert getattr(Recipe(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scale_rule": "evn"},
            "unknown scale_rule: got 'evn', expected one of floor, even, rceil, mse; did you mean 'even'?",
        ),
        ({"rotation": 16}, "unknown rotation: got '16', expected one of 1, 32, 64, 128"),
        ({"accuracy_level": 2}, "unknown accuracy_level: got '2', expected one of 0, 1, 3, 4"),
        ({"op_types": ("MatMul", "Cnv")}, "unknown op_types: got 'Cnv', expected one of MatMul, Gemm"),
        ({"min_elements": -1}, "min_elements: expected 0 or more, got -1"),
        ({"min_elements": "many"}, "min_elements: expected an integer, got 'many'"),
        ({"rotation": True}, "rotation: expected an integer, got True"),
        ({"strict": 1}, "strict: expected true or false, got 1"),
        ({"include": "layer*"}, "include: expected a list of names, got 'layer*'"),
        ({"include": [1]}, "include: expected a list of names, got (1,)"),
        ({"algorithm": None}, "algorithm: expected a name, got None"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(MxortError) as caught:
        Recipe(**options)
    assert str(caught.value).startswith(message)
    with pytest.raises(MxortError):
        Recipe.from_json(json.dumps(options))


def test_unknown_names():
    with pytest.raises(
        MxortError, match=r"unknown preset: got 'mi355', expected one of .*; did you mean 'mi355x'"
    ):
        Recipe.from_preset("mi355")
    with pytest.raises(MxortError, match=r"unknown option: got 'rotaton', .*; did you mean 'rotation'"):
        Recipe.from_preset("w4a8", rotaton=32)
    with pytest.raises(MxortError, match="unknown option"):
        Recipe.from_json('{"colour": "blue"}')
    with pytest.raises(MxortError, match="unknown preset"):
        parse("--preset", "nothing")
    with pytest.raises(MxortError, match="unknown scale_rule"):
        parse("--scale-rule", "nothing")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null"])
def test_not_a_recipe(text):
    with pytest.raises(MxortError, match="recipe: "):
        Recipe.from_json(text)


def test_lists_become_tuples():
    recipe = Recipe(include=["a", "b"])
    assert recipe.include == ("a", "b")
    assert hash(recipe) == hash(Recipe(include=("a", "b")))


@pytest.mark.parametrize(
    ("include", "exclude", "node", "reason"),
    [
        ((), (), "a.b", None),
        (("a.*",), (), "a.b", None),
        (("a.*",), (), "b.a", "matches no include pattern"),
        (("a.*",), ("*.b",), "a.b", "excluded by pattern '*.b'"),
        ((), ("A.b",), "a.b", None),
        (("x", "a.?"), (), "a.b", None),
        ((), ("/blocks[0]/fc",), "/blocks[0]/fc", "excluded by pattern '/blocks[0]/fc'"),
        (("/blocks[0]/fc",), (), "/blocks[0]/fc", None),
        (("a[!b]*?",), (), "a[!b]*?", None),
        ((), ("/blocks[[]0]/fc",), "/blocks[0]/fc", "excluded by pattern '/blocks[[]0]/fc'"),
        ((), ("/blocks[01]/fc",), "/blocks1/fc", "excluded by pattern '/blocks[01]/fc'"),
    ],
)
def test_patterns(include, exclude, node, reason):
    assert Recipe(include=include, exclude=exclude).skip_reason(node) == reason


def test_typed_options_are_the_fields():
    """What type checkers are told of keyword arguments is what Recipe declares, sequences for tuples."""
    declared = get_type_hints(RecipeOptions)
    assert list(declared) == [f.name for f in fields(Recipe)]
    for f in fields(Recipe):
        expected = Sequence[str] if isinstance(f.default, tuple) else type(f.default)
        assert declared[f.name] == expected, f.name
