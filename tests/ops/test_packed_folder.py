"""MXORT_PACKED_WEIGHTS: packed weights in files of a folder, which processes share."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import op_model
import oracle

VARIABLE = "MXORT_PACKED_WEIGHTS"
PAGE = 4096
END = 24
"""Bytes behind the last page: the magic word, the size, the scales that occur."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "packed"))
    return tmp_path / "packed"


def case(seed: int = 0, weight_format: str = "mxfp4", k: int = 320, n: int = 200) -> oracle.Case:
    return oracle.random_case(np.random.default_rng(seed), n, k, weight_format=weight_format)


def run(problem: oracle.Case, session: ort.InferenceSession | None = None) -> np.ndarray:
    a = np.random.default_rng(9).standard_normal((1, 3, problem.K), dtype=np.float32)
    (y,) = (session or op_model.session(op_model.model(problem))).run(None, {"A": a})
    return np.asarray(y)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.packed"))


def mapped(folder: Path) -> Iterator[str]:
    """Lines of this process's mappings of the folder's files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return (line for line in lines if str(folder) in line)


@pytest.mark.parametrize("weight_format", ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxint8"])
def test_the_numbers_are_those_of_weights_in_memory(folder, monkeypatch, weight_format):
    problem = case(weight_format=weight_format)
    made, read = run(problem), run(problem)
    assert len(files(folder)) == 1
    monkeypatch.delenv(VARIABLE)
    in_memory = run(problem)
    assert made.tobytes() == in_memory.tobytes() == read.tobytes()


def test_a_file_is_mapped_shared_and_read_only(folder):
    problem = case()
    session = op_model.session(op_model.model(problem))
    (line,) = mapped(folder)
    assert " r--s " in line
    del session
    assert not list(mapped(folder))


def test_other_weights_and_shapes_have_other_files(folder):
    run(case(0))
    run(case(1))
    run(case(0, n=199))
    run(case(0))
    assert len(files(folder)) == 3
    assert {path.stat().st_mode & 0o777 for path in [folder, *folder.iterdir()]} == {0o700, 0o600}


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: bytes(len(b)),  # the space was reserved, and then the machine lost power
        lambda b: b[:-END] + b"xxpacked" + b[8 - END :],
        lambda b: b[: 8 - END] + (7).to_bytes(8, "little") + b[16 - END :],
        lambda b: b[:-8] + b"\xff" * 8,
        lambda b: bytes(10 * len(b)),
    ],
    ids=["empty", "half", "a byte short", "zeros", "magic", "size", "scales", "longer"],
)
def test_a_file_that_was_not_finished_is_made_again(folder, damage):
    problem = case()
    expected = run(problem)
    (path,) = files(folder)
    whole = path.read_bytes()
    assert len(whole) % PAGE == END
    path.write_bytes(damage(whole))
    assert run(problem).tobytes() == expected.tobytes()
    assert path.read_bytes()[: len(whole)] == whole


def _run_in_process(problem: oracle.Case) -> tuple[bytes, list[int]]:
    session = op_model.session(op_model.model(problem))
    y = run(problem, session)
    maps = Path("/proc/self/maps").read_text()
    return y.tobytes(), [int(line.split()[4]) for line in re.findall(r".*\.packed", maps)]


def test_processes_that_begin_together_share_one_file(folder):
    problem = case(k=1024, n=1040)
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(_run_in_process, [problem] * 4))
    (path,) = files(folder)
    assert {inodes for _, (inodes,) in results} == {path.stat().st_ino}
    assert len({y for y, _ in results}) == 1


def test_a_file_that_is_in_use_is_not_locked(folder):
    problem = case()
    session = op_model.session(op_model.model(problem))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        other = pool.submit(_run_in_process, problem)
        waited = concurrent.futures.wait([other], timeout=60)
        expected = run(problem, session).tobytes()
        del session  # what waits for it goes on
    assert waited.done
    y, inodes = other.result()
    assert y == expected
    assert inodes == [files(folder)[0].stat().st_ino]


def test_what_is_no_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    with pytest.raises(Exception, match=rf"{VARIABLE}: {tmp_path}/file/points: Not a directory"):
        run(case())
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no" / "folder"))
    with pytest.raises(Exception, match=rf"{VARIABLE}: {tmp_path}/no/folder: No such file or directory"):
        run(case())


def test_a_disk_without_room_is_an_error_and_leaves_nothing_that_is_read(folder):
    problem = case(k=1024, n=1040)
    expected = run(problem)
    (path,) = files(folder)
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(Exception, match=rf"{VARIABLE}: {path}: File too large"):
            run(problem)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run(problem).tobytes() == expected.tobytes()
