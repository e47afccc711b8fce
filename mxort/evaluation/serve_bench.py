"""Servers under load: how many tokens a second, and how long a user waits, by the number of users."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mxort.errors import MxortError
from mxort.evaluation.energy import CpuEnergy, GpuEnergy
from mxort.evaluation.guidellm import find_program, run_guidellm
from mxort.evaluation.load import Seen, Target, fit_words, run_clients
from mxort.progress import Progress, silent
from mxort.runtime.machine import Machine, describe_machine
from mxort.runtime.session import one_line

_PERCENTILES = (50, 90, 99)
_PERIOD = 0.05
_MEMORY = "process_resident_memory_bytes"

Percentiles = dict[str, float]

CLIENTS = {"own": run_clients, "guidellm": run_guidellm}
"""Who asks and holds the clock. What they see becomes figures in one place, so that rows mean the same."""


@dataclass(frozen=True)
class Load:
    """What is asked of every server. Shapes are (tokens of a prompt, tokens to generate).

    ``tpot_limit_ms``: a request whose tokens take longer is no goodput. ``price``: of an hour of the machine.
    """

    shapes: tuple[tuple[int, int], ...] = ((128, 128),)
    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    requests_per_client: int = 4
    max_seconds: float = 60.0
    tpot_limit_ms: float = 100.0
    price: float | None = None
    seed: int = 0
    client: str = "own"


@dataclass(frozen=True)
class Point:
    """A server, a shape and a number of clients. Times are percentiles over requests, of ITL over all tokens,
    and there are none of ITL where the client does not tell them.

    ``prompt_tokens`` and ``generated_tokens`` are means, by the server's count. Energy is the whole machine's.
    """

    target: str
    shape: tuple[int, int]
    concurrency: int
    requests: int
    errors: int
    first_error: str
    seconds: float
    prompt_tokens: float
    generated_tokens: float
    tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    latency_ms: Percentiles
    memory_bytes: int | None
    cpu_joules: float | None
    gpu_joules: float | None
    tokens_per_joule: float | None
    cost_per_million: float | None


@dataclass(frozen=True)
class ServeBench:
    """Result of :func:`bench_servers`."""

    machine: Machine
    load: Load
    targets: tuple[str, ...]
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)


def bench_servers(
    targets: Sequence[str], load: Load, *, key: str | None = None, progress: Progress | None = None
) -> ServeBench:
    """Measures servers in turns: each takes a shape and a number of clients before the next number is tried.

    A target is the address of a server, or a folder, which gets a server of its own for as long as this takes. Raises
    MxortError for what cannot be reached or served, and where httpx is missing; requests that fail are counted.
    """
    try:
        import httpx
    except ImportError as error:
        raise MxortError(f'a load needs httpx ({error}): pip install "mxort[serve]"') from error
    if load.client == "guidellm":
        find_program()  # before servers are started
    report = progress or silent
    with contextlib.ExitStack() as stack:
        report("starting", 0.0)
        found = [_target(httpx, stack, target, key) for target in targets]
        points = asyncio.run(_sweep(httpx, _distinct(found), load, report))
    return ServeBench(
        describe_machine(), load, tuple(target.name for target in _distinct(found)), tuple(points)
    )


def _target(httpx: Any, stack: contextlib.ExitStack, text: str, key: str | None) -> Target:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = text.rstrip("/").removesuffix("/v1")
    if not text.startswith(("http://", "https://")):
        url = stack.enter_context(_server(Path(text)))
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=30)
        answer.raise_for_status()
        models = answer.json()["data"]
        model = next(each["id"] for each in models if each.get("kind", "decoder") == "decoder")
    except StopIteration:
        raise MxortError(f"{text}: no language model there") from None
    except Exception as error:  # of httpx, and answers of any form
        raise MxortError(f"{url}: not a server of OpenAI's interface: {one_line(error)}") from error
    return Target(model, url, model, headers)


def _distinct(targets: Sequence[Target]) -> list[Target]:
    """With addresses, where models have one name."""
    names = [target.name for target in targets]
    return [
        target
        if names.count(target.name) == 1
        else Target(f"{target.name} {index + 1}", target.url, target.model, target.headers)
        for index, target in enumerate(targets)
    ]


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """The address of a server of this folder. Raises MxortError with what it says where it does not start."""
    command = [
        sys.executable,
        "-m",
        "mxort",
        "serve",
        os.fspath(folder),
        "--port",
        "0",
        "--max-requests",
        "256",
    ]
    command += ["--max-tokens", "4096"]
    environment = {name: value for name, value in os.environ.items() if name != "MXORT_API_KEY"}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stderr=said, stdin=subprocess.DEVNULL, env=environment) as process,
    ):
        try:
            yield _address(folder, process, said)
        finally:
            process.terminate()


def _address(folder: Path, process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """Waits until the server has said where it is."""
    while True:
        ended = process.poll() is not None  # before what it said is read, or its last word could be missed
        said.seek(0)
        text = said.read()
        if found := re.search(r"^mxort: .* at (http://\S+)\n", text, re.MULTILINE):
            return found[1]
        if ended:
            last = text.strip().rpartition("\n")[2].removeprefix("mxort: error: ")
            raise MxortError(last or f"{folder}: its server ended with status {process.returncode}")
        time.sleep(_PERIOD)


async def _sweep(httpx: Any, targets: Sequence[Target], load: Load, report: Progress) -> list[Point]:
    points: list[Point] = []
    steps = len(load.shapes) * len(load.concurrency) * len(targets)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=httpx.Timeout(600), limits=limits) as client:
        for shape in load.shapes:
            words = [await fit_words(client, target, shape[0]) for target in targets]
            for clients in load.concurrency:
                for target, count in zip(targets, words, strict=True):
                    report(f"{target.name} {shape[0]}/{shape[1]}, {clients} clients", len(points) / steps)
                    points.append(await _measure(client, target, shape, clients, count, load))
    return points


async def _measure(
    client: Any, target: Target, shape: tuple[int, int], clients: int, words: int, load: Load
) -> Point:
    cpu, gpu = CpuEnergy(), GpuEnergy()
    seen = await CLIENTS[load.client](
        client,
        target,
        clients=clients,
        requests=clients * load.requests_per_client,
        words=words,
        tokens=shape[1],
        max_seconds=load.max_seconds,
        seed=load.seed,
    )
    joules = cpu.joules(), gpu.joules()
    return summarize(target.name, shape, clients, seen, load, joules, await _memory(client, target))


async def _memory(client: Any, target: Target) -> int | None:
    """What the server holds, by its metrics, where it tells them."""
    try:
        text = (await client.get(f"{target.url}/metrics", headers=target.headers)).text
        return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith(_MEMORY))
    except Exception:  # of httpx, and answers of any form
        return None


def summarize(
    name: str,
    shape: tuple[int, int],
    clients: int,
    seen: Sequence[Seen],
    load: Load,
    joules: tuple[float | None, float | None] = (None, None),
    memory: int | None = None,
) -> Point:
    """The figures of what clients saw, at least one request."""
    good = [each for each in seen if not each.error]
    seconds = max(each.ended for each in seen) - min(each.started for each in seen)
    tokens = sum(each.tokens for each in good)
    prompt = sum(each.prompt_tokens for each in good)
    told = [each for each in good if each.all_pieces]
    gaps = [b - a for each in told for a, b in zip(each.pieces, each.pieces[1:], strict=False)]
    kept = sum(each.each * 1e3 <= load.tpot_limit_ms for each in good)
    energy = sum(value for value in joules if value is not None)
    return Point(
        target=name,
        shape=shape,
        concurrency=clients,
        requests=len(seen),
        errors=len(seen) - len(good),
        first_error=next((each.error for each in seen if each.error), ""),
        seconds=seconds,
        prompt_tokens=prompt / max(len(good), 1),
        generated_tokens=tokens / max(len(good), 1),
        tokens_per_s=tokens / seconds,
        total_tokens_per_s=(tokens + prompt) / seconds,
        requests_per_s=len(good) / seconds,
        goodput_per_s=kept / seconds,
        ttft_ms=_percentiles([each.first for each in good]),
        tpot_ms=_percentiles([each.each for each in good]),
        itl_ms=_percentiles(gaps),
        latency_ms=_percentiles([each.ended - each.started for each in good]),
        memory_bytes=memory,
        cpu_joules=joules[0],
        gpu_joules=joules[1],
        tokens_per_joule=tokens / energy if energy else None,
        cost_per_million=load.price * seconds / 3600 / tokens * 1e6 if load.price and tokens else None,
    )


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    """Milliseconds; none of nothing."""
    if not seconds:
        return {}
    return {f"p{p}": float(np.percentile(seconds, p)) * 1e3 for p in _PERCENTILES}
