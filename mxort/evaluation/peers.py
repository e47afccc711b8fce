"""What a model becomes with other tools, to stand beside a conversion: one table, ``PEERS``."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx

from mxort.errors import MxortError


def quantize_int8(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Dynamic quantisation to int8, which most exported encoders come with."""
    from onnxruntime.quantization import quantize_dynamic  # type: ignore[import-untyped]

    with _quiet():
        quantize_dynamic(source, target, use_external_data_format=_is_large(source))


def quantize_int4(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """MatMulNBits: int4 in blocks of 32, symmetric, accuracy level 4."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # type: ignore[import-untyped]
        MatMulNBitsQuantizer,
    )

    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(os.fspath(target), use_external_data_format=_is_large(source))


def write_openvino(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """OpenVINO's own file of the model, its weights as they are."""
    openvino = importlib.import_module("openvino")
    openvino.save_model(openvino.convert_model(os.fspath(source)), os.fspath(target), compress_to_fp16=False)


@dataclass(frozen=True)
class Peer:
    """``write(source, target)`` makes it; ``library`` is what that needs."""

    write: Callable[[str | os.PathLike[str], str | os.PathLike[str]], None]
    library: str = "onnxruntime"
    suffix: str = ".onnx"


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "ort-int8": Peer(quantize_int8),
        "ort-int4": Peer(quantize_int4),
        "openvino": Peer(write_openvino, "openvino", ".xml"),
    }
)


def is_available(name: str) -> bool:
    """Whether the library of a peer is installed."""
    return importlib.util.find_spec(PEERS[name].library) is not None


def make(name: str, source: Path, folder: Path) -> Path:
    """The peer of that name of ``source``, in ``folder``. Raises MxortError where its library cannot make it."""
    target = folder / f"{source.stem}.{name}{PEERS[name].suffix}"
    try:
        PEERS[name].write(source, target)
    except Exception as error:
        text = " ".join(str(error).split())
        raise MxortError(f"{source}: {name}: {type(error).__name__}: {text}") from None
    return target


def _is_large(source: str | os.PathLike[str]) -> bool:
    """Whether a model needs a data file: one that is a quarter of 2 GB and more gets one."""
    path = Path(source)
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) > 1 << 29


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log each node, and advise steps that change nothing here."""
    root, nbits = logging.getLogger(), logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    levels = root.level, nbits.level
    root.setLevel(logging.ERROR)
    nbits.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(levels[0])
        nbits.setLevel(levels[1])
