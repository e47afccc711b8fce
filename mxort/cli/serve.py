"""``mxort serve``: arguments."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from mxort.cli import shared
from mxort.errors import MxortError
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
    parser.add_argument(
        "--threads",
        type=shared.positive,
        metavar="N",
        help="of each model, and of each replica, which takes as many CPUs of the cluster (default: all cores; "
        "those of a machine of the cluster, or of this one by the replicas)",
    )
    shared.add_ray(parser, "several processes, behind Ray Serve's proxy,")
    parser.add_argument(
        "--replicas",
        type=replicas,
        metavar="N|N:M",
        help="processes of --ray; N:M as many as the requests need (default 1)",
    )
    for each in fields(Limits):
        kind = shared.positive if isinstance(each.default, int) else shared.positive_float
        flag = "--" + each.name.replace("_", "-")
        parser.add_argument(flag, type=kind, metavar="N", default=each.default, help=each.metadata["help"])


def replicas(text: str) -> tuple[int, int]:
    """An argparse type: "2" or "1:4"."""
    least, colon, most = text.partition(":")
    return shared.positive(least), shared.positive(most if colon else least)


def run(arguments: argparse.Namespace) -> int:
    limits = Limits(**{each.name: getattr(arguments, each.name) for each in fields(Limits)})
    settings = {
        "host": arguments.host,
        "port": arguments.port,
        "key": arguments.api_key,
        "limits": limits,
        "device": arguments.device,
    }
    address = shared.cluster(arguments)
    if address is None:
        for flag in ("ray_address", "replicas"):
            if getattr(arguments, flag) is not None:
                raise MxortError(f"--{flag.replace('_', '-')}: would change nothing: expected --ray too")
        from mxort.serve.server import serve

        serve(arguments.folders, threads=arguments.threads or 0, **settings)
    else:
        from mxort.serve import cluster

        least, most = arguments.replicas or (1, 1)
        count = cluster.Replicas(least, most, arguments.threads or 0)
        cluster.serve(arguments.folders, count, address=address, **settings)
    return 0
