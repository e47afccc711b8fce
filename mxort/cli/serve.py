"""``mxort serve``: arguments."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from mxort.cli import shared
from mxort.serve.limits import Limits

KEY = "MXORT_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="of onnxruntime-genai, sentence-transformers or optimum",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone)"
    )
    parser.add_argument("--port", type=shared.port, default=8000, help="0: one that is free (default 8000)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get(KEY),
        help=f"what clients must know (default: ${KEY}, which others do not see)",
    )
    parser.add_argument(
        "--device", metavar="cpu|gpu|gpu:N", default="cpu", help="where models run (default cpu)"
    )
    for each in fields(Limits):
        kind = shared.positive if isinstance(each.default, int) else shared.positive_float
        flag = "--" + each.name.replace("_", "-")
        parser.add_argument(flag, type=kind, metavar="N", default=each.default, help=each.metadata["help"])


def run(arguments: argparse.Namespace) -> int:
    from mxort.serve.server import serve

    limits = Limits(**{each.name: getattr(arguments, each.name) for each in fields(Limits)})
    serve(
        arguments.folders,
        host=arguments.host,
        port=arguments.port,
        key=arguments.api_key,
        limits=limits,
        device=arguments.device,
    )
    return 0
