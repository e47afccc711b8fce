"""Load on a server by guidellm, where it is installed: its clients and its clocks, with prompts and figures of ours.

It is a program of its own, which may be in another environment. Its report has the times of each request, but not of
each token.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mxort.errors import MxortError
from mxort.evaluation.load import Seen, Target, make_prompt
from mxort.runtime.session import one_line

_VERSIONS = "0.8"
"""Whose configuration and report these are."""
_NO_END = 600.0
"""Seconds without a byte after which a request has failed, as with the clients of ours."""


def find_program() -> str:
    """The program's path, of this environment or of PATH. Raises MxortError where there is none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("guidellm", path=path)
    if found is None:
        raise MxortError(f"guidellm is not installed: expected its program on PATH (version {_VERSIONS})")
    return found


async def run_guidellm(
    client: Any,
    target: Target,
    *,
    clients: int,
    requests: int,
    words: int,
    tokens: int,
    max_seconds: float,
    seed: int,
) -> list[Seen]:
    """As :func:`mxort.evaluation.load.run_clients`, whose prompts it sends too; ``client`` is not needed.

    What has not ended after ``max_seconds`` is given up and not counted. Raises MxortError where guidellm fails, and
    where nothing ended.
    """
    program = find_program()
    with tempfile.TemporaryDirectory(prefix="mxort-guidellm-") as text:
        folder = Path(text)  # nobody else reads the key there, as they could in a list of processes
        prompts = [make_prompt(words, seed + number) for number in range(requests)]
        lines = [json.dumps({"prompt": prompt, "output_tokens_count": tokens}) for prompt in prompts]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
        report = folder / "report.json"
        spec = _spec(target, clients, requests, max_seconds, folder / "prompts.jsonl", report)
        (folder / "run.json").write_text(json.dumps({"spec": spec}))
        command = [program, "run", "--config", str(folder / "run.json"), "--disable-console"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode or not report.exists():
            said = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
            raise MxortError(f"guidellm ended with status {done.returncode}: {' '.join(said.split())}")
        seen = read_report(report.read_bytes())
    if not seen:
        raise MxortError(f"guidellm: {target.name}: no request ended within {max_seconds:g} seconds")
    return seen


def _spec(
    target: Target, clients: int, requests: int, max_seconds: float, prompts: Path, report: Path
) -> dict[str, Any]:
    key = target.headers.get("authorization", "").removeprefix("Bearer ")
    return {
        "backend": {
            "kind": "openai_http",
            "target": target.url,
            "model": target.model,
            "api_key": key or None,
            "request_format": "/v1/completions",
            "timeout": _NO_END,
            "verify": True,
            "validate_backend": False,  # there is an answer already, and not every server has its /health
        },
        "profile": {"kind": "concurrent", "streams": [clients]},
        "constraints": [
            {"kind": "max_requests", "count": requests},
            {"kind": "max_duration", "seconds": max_seconds},
        ],
        "data": [{"kind": "json_file", "path": str(prompts)}],
        "outputs": [{"kind": "json", "path": str(report)}],
    }


def read_report(content: bytes) -> list[Seen]:
    """The requests of a report that ended, well or not. Raises MxortError for one of another form."""
    try:
        (benchmark,) = json.loads(content)["benchmarks"]
        requests = benchmark["requests"]
        good = [_seen(each) for each in requests["successful"]]
        return good + [_failed(each) for each in requests["errored"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MxortError(
            f"guidellm: its report is not of version {_VERSIONS}: {type(error).__name__}: {one_line(error)}"
        ) from None


def _seen(request: dict[str, Any]) -> Seen:
    times = request["info"]["timings"]
    start, end = float(times["request_start"]), float(times["request_end"])
    ends = tuple(
        (end if times[name] is None else float(times[name])) - start  # None: tokens that are no text
        for name in ("first_token_iteration", "last_token_iteration")
    )
    counts = (request[name]["text_tokens"] for name in ("input_metrics", "output_metrics"))
    prompt, tokens = (int(count or 0) for count in counts)
    if not tokens:
        return Seen(start, (), end, 0, 0, "an answer without usage")
    return Seen(start, ends, end, prompt, tokens, all_pieces=False)


def _failed(request: dict[str, Any]) -> Seen:
    info = request["info"]
    times = info["timings"]
    # One that got no place never started.
    start, end = (
        float(times[name] or times[other])
        for name, other in (("request_start", "resolve_start"), ("request_end", "resolve_end"))
    )
    return Seen(start, (), end, 0, 0, " ".join((info["error"] or "").split()) or "an error without a message")
