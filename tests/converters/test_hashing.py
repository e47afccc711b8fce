"""Digests that are made beside other work are those of the bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mxort.converters import hashing


def test_a_file_is_hashed_behind_its_writer(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(10_000_000)
    with (tmp_path / "file").open("wb") as file:
        follower = hashing.Follower(tmp_path / "file")
        for start in range(0, len(data), 3_000_000):
            file.write(data[start : start + 3_000_000])
            file.flush()
            follower.advance(file.tell())
        assert follower.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()


def test_a_follower_that_is_not_wanted_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    follower = hashing.Follower(tmp_path / "file")
    follower.advance(1000)
    follower.close()
    follower.close()
    with pytest.raises(RuntimeError):  # no thread is left that could
        follower.advance(1000)


def test_files_one_after_the_other(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(file.name.encode() * 5_000_000)
    expected = hashlib.sha256(b"a" * 5_000_000 + b"b" * 5_000_000).hexdigest()
    assert hashing.sha256_of(files) == expected
    with hashing.beside(files) as digest:
        assert digest.result() == expected
    with hashing.beside([tmp_path / "absent"]) as digest, pytest.raises(FileNotFoundError):
        digest.result()
