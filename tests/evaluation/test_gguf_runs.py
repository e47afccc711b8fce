"""GGUF files among the models of a benchmark. llama-cpp-python is not among what the tests install: a stand-in of the
part of it that is used shows what it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mxort.errors import MxortError
from mxort.evaluation.model_bench import bench_models
from tiny_models import decoder, mlp

STAND_IN = """
import json, os, time
class Llama:
    def __init__(self, path, **options):
        if os.path.getsize(path) < 5:
            raise ValueError("too short")
        os.write(2, b"llama.cpp talks")
        self.path = path
        self.calls = [options]
    def reset(self):
        self.calls.append("reset")
    def eval(self, tokens):
        self.calls.append(len(tokens))
        with open(self.path + ".json", "w") as file:
            json.dump(self.calls, file)
        time.sleep(0.001 * len(tokens))
"""


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    decoder(tmp_path / "model.onnx")
    (tmp_path / "model.gguf").write_bytes(b"GGUF and so on")
    return tmp_path / "model.onnx", tmp_path / "model.gguf"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (folder / "llama_cpp.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))  # spawned workers get the path


def bench(*models: Path) -> object:
    return bench_models(models, runs=1, warmup=0, prompt=6, generate=3, threads=1)


def test_it_takes_its_turns(
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    stand_in(tmp_path, monkeypatch, STAND_IN)
    onnx_row, gguf_row = bench(*models).models  # type: ignore[attr-defined]
    assert gguf_row.model == str(models[1]) and gguf_row.file_bytes == 14
    assert onnx_row.file_bytes == models[0].stat().st_size
    assert gguf_row.timing.p50_ms >= 6 and gguf_row.decode.p50_ms >= 1
    options, *calls = json.loads(models[1].with_suffix(".gguf.json").read_text())
    assert options["n_threads"] == options["n_threads_batch"] == 1
    assert options["n_ctx"] == options["n_batch"] == options["n_ubatch"] == 6
    rounds = [["reset", 6], ["reset", 1, 1, 1]]
    while calls:
        assert calls[: len(rounds[0])] == rounds[0]
        calls = calls[len(rounds[0]) :]
        rounds.append(rounds.pop(0))
    assert "talks" not in capfd.readouterr().err


def test_what_cannot_be_compared_is_one_line(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "raise ImportError")
    onnx_file, gguf = models
    with pytest.raises(MxortError, match=r"model\.gguf: the first model gives the inputs"):
        bench(gguf, onnx_file)
    with pytest.raises(MxortError, match=r"none\.gguf: cannot be read: No such file"):
        bench(onnx_file, tmp_path / "none.gguf")
    with pytest.raises(
        MxortError, match=r"model\.gguf: a GGUF runs in llama-cpp-python, which is not installed"
    ):
        bench(onnx_file, gguf)
    mlp(tmp_path / "mlp.onnx")
    with pytest.raises(MxortError, match=r"mlp\.onnx: a GGUF is compared with decoders"):
        bench(tmp_path / "mlp.onnx", gguf)


def test_what_llama_cpp_refuses_is_one_line(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, STAND_IN)
    models[1].write_bytes(b"GGUF")
    with pytest.raises(MxortError, match=r"model\.gguf: llama\.cpp cannot load it: too short"):
        bench(*models)
