"""Safetensors files and their index, honest and hostile. A refusal is one line that names the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mxort.errors import MxortError
from mxort.models import shards


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(folder: Path, names: str) -> str:
    with pytest.raises(MxortError) as error:
        shards.read(folder)
    text = str(error.value)
    assert names in text
    assert "\n" not in text
    return text


def test_every_type_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "f32": torch.from_numpy(rng.standard_normal((3, 5), np.float32)),
        "f16": torch.from_numpy(rng.standard_normal((7,), np.float32)).half(),
        "bf16": torch.from_numpy(rng.standard_normal((2, 3), np.float32)).bfloat16(),
        "u8": torch.from_numpy(rng.integers(0, 256, (4, 4), np.uint8)),
        "empty": torch.zeros((0, 4)),
        "scalar": torch.tensor(3.0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found, files = shards.read(tmp_path)
    assert files == (tmp_path / "model.safetensors",)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        array = found[name].array()
        assert array.shape == tuple(tensor.shape) == found[name].shape
        if name == "bf16":
            assert array.dtype == ml_dtypes.bfloat16
            assert array.tobytes() == tensor.view(torch.int16).numpy().tobytes()
        else:
            np.testing.assert_array_equal(array, tensor.numpy())


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / shards.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    found, files = shards.read(tmp_path)
    assert [file.name for file in files] == ["one.safetensors", "two.safetensors"]
    np.testing.assert_array_equal(found["b"].array(), np.zeros(3))


def index(folder: Path, weight_map: Any) -> None:
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "a/b.safetensors",
        "..",
        "x.bin",
        "a\\b.safetensors",
        3,
        None,
    ],
)
def test_an_index_leads_nowhere_else(name: Any, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    index(folder, {"a": name})
    assert "expected a .safetensors file of this folder" in refused(folder, shards.INDEX)


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    for content in ([], {}, "text", None):
        index(tmp_path, content)
        assert "got no weight_map" in refused(tmp_path, shards.INDEX)
    index(tmp_path, {"a": "three.safetensors"})
    assert "'three.safetensors', which is missing" in refused(tmp_path, shards.INDEX)
    index(tmp_path, {"c": "one.safetensors"})
    assert "tensor 'c' is not in 'one.safetensors'" in refused(tmp_path, shards.INDEX)
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert "tensor 'a' is in" in refused(tmp_path, "two.safetensors")
    (tmp_path / shards.INDEX).write_text("{")
    refused(tmp_path, shards.INDEX)
    (tmp_path / shards.INDEX).write_text("[" * 100_000)
    refused(tmp_path, shards.INDEX)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert "got no model.safetensors" in refused(tmp_path, str(tmp_path))


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "header longer than the file": lambda p: write(p, {"a": entry([2], 0, 2)}, b"xx", length=1 << 20),
    "header of 2^63 bytes": lambda p: write(p, {"a": entry([2], 0, 2)}, b"xx", length=1 << 63),
    "header of 2^64 - 1 bytes": lambda p: write(p, {"a": entry([2], 0, 2)}, b"xx", length=(1 << 64) - 1),
    "no header": lambda p: write(p, b"", length=0),
    "empty file": lambda p: (p.write_bytes(b"") and p) or p,
    "no JSON": lambda p: write(p, b"\xff\xfe{}"),
    "deep JSON": lambda p: write(p, b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "a list": lambda p: write(p, []),
    "overlapping offsets": lambda p: write(p, {"a": entry([4], 0, 4), "b": entry([4], 2, 6)}, b"123456"),
    "a hole": lambda p: write(p, {"a": entry([2], 0, 2), "b": entry([2], 4, 6)}, b"123456"),
    "end before begin": lambda p: write(p, {"a": entry([2], 2, 0)}, b"12"),
    "negative offset": lambda p: write(p, {"a": entry([2], -2, 0)}, b"12"),
    "shape beyond its bytes": lambda p: write(p, {"a": entry([1 << 40], 0, 2)}, b"12"),
    "shape that overflows": lambda p: write(p, {"a": entry([1 << 40, 1 << 40], 0, 2)}, b"12"),
    "negative dimension": lambda p: write(p, {"a": entry([-2], 0, 2)}, b"12"),
    "type of another size": lambda p: write(p, {"a": entry([2], 0, 2, "F32")}, b"12"),
    "type that is none": lambda p: write(p, {"a": entry([2], 0, 2, "F99")}, b"12"),
    "truncated data": lambda p: write(p, {"a": entry([8], 0, 8)}, b"1234"),
    "data behind the end": lambda p: write(p, {"a": entry([2], 0, 2)}, b"1234"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    HOSTILE[case](tmp_path / "model.safetensors")
    assert "not a safetensors file, or damaged" in refused(tmp_path, "model.safetensors")


def test_a_file_that_is_damaged_anywhere_is_refused_or_within_its_bounds(tmp_path: Path) -> None:
    """Each byte of a header changed at random: never another exception, never a view beyond the file."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4, 4), "b": torch.zeros(8, dtype=torch.uint8)}, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    refusals = 0
    for position in range(header):
        damaged = bytearray(whole)
        damaged[position] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            found, _ = shards.read(tmp_path)
        except MxortError:
            refusals += 1
            continue
        for tensor in found.values():
            try:
                size = tensor.nbytes
            except MxortError:  # a type that is not read
                continue
            assert tensor.begin >= header
            assert tensor.begin + size <= len(whole)
            assert tensor.array().nbytes == size
    assert refusals > header / 2


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1 << 16)}, tmp_path / "model.safetensors")
    found, _ = shards.read(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(MxortError, match=r"model\.safetensors: tensor 'a': cannot read"):
        found["a"].array()


def test_a_type_that_is_not_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    found, _ = shards.read(tmp_path)
    with pytest.raises(MxortError, match="tensor 'a' has the type F8_E4M3, expected one of F32"):
        found["a"].array()
