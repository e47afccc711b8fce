"""``mxort serve --ray``: the application in each of several processes of a Ray cluster, behind Ray Serve's proxy.

A replica is a process with models of its own. Ray chooses who answers, begins replicas where there is more to do, ends
those that are idle, and puts one in the place of one that died.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxort.errors import MxortError
from mxort.runtime import cluster
from mxort.runtime.session import one_line
from mxort.serve.lanes import BATCH
from mxort.serve.limits import Limits
from mxort.serve.server import listen, require_extra, warn_of_no_key

_NAME = "mxort"
_IDLE = 30.0
"""Seconds for which there must be less to do before a replica ends."""


@dataclass(frozen=True)
class Replicas:
    """How many processes, and the threads of each (0: the cores of a node, or of this machine by the replicas)."""

    least: int = 1
    most: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise MxortError(
                f"replicas {self.least}:{self.most}: expected at least 1, and no more than the most"
            )


@dataclass(frozen=True)
class _What:
    """What a replica is told."""

    folders: tuple[Path, ...]
    limits: Limits
    key: str | None = field(repr=False)
    device: str
    threads: int
    local: bool


class Replica:
    """The application in a process of the cluster, as Ray Serve makes and ends it."""

    def __init__(self, what: _What) -> None:
        from mxort.serve.backends import open_folders

        self._what, self._stack = what, contextlib.ExitStack()
        self._backends = self._stack.enter_context(
            open_folders(what.folders, what.limits, what.device, what.threads)
        )

    def __serve_build_asgi_app__(self) -> Any:
        from mxort.serve.app import Application

        what = self._what
        return Application(
            self._backends, what.limits, what.key, local=what.local, replica=str(os.getpid())
        ).asgi

    def check_health(self) -> None:
        """Ray begins another replica where this raises."""
        if ended := [name for name, each in self._backends.items() if not each.alive]:
            raise RuntimeError(f"{ended[0]} has ended")

    def __del__(self) -> None:
        self._stack.close()


def serve(
    folders: Sequence[Path],
    replicas: Replicas,
    *,
    address: str = cluster.LOCAL,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    limits: Limits | None = None,
    device: str = "cpu",
) -> None:
    """Serves until SIGTERM or SIGINT, as :func:`mxort.serve.server.serve`, on the Ray cluster at ``address``.

    The folders are at the same paths on all its machines. Requests come to the cluster's head, which is the machine
    to run this on. Raises MxortError as there, for a cluster that cannot be had or is too small, and where Ray Serve
    runs on it already.
    """
    require_extra()
    from mxort.serve.backends import names_of

    limits = limits or Limits()
    folders = tuple(Path(folder).resolve() for folder in folders)
    names = names_of(folders)
    with listen(host, port) as listening:  # Ray would say it in many words
        ip, chosen = listening.getsockname()[:2]
    local = ipaddress.ip_address(ip).is_loopback
    warn_of_no_key(local, key)
    with _stopped() as stop, cluster.connected(address, cpus=replicas.most) as ray:
        threads = _threads(cluster.cpus_of(ray), replicas)
        what = _What(folders, limits, key, device, threads, local)
        with _running(ray, what, replicas, ip, chosen, own=address == cluster.LOCAL):
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, lambda *_: stop.set())
            shown = f"[{ip}]" if ":" in ip else ip
            print(f"mxort: {', '.join(names)} at http://{shown}:{chosen}", file=sys.stderr, flush=True)
            stop.wait()


def _threads(cpus: Sequence[float], replicas: Replicas) -> int:
    """Those of a replica, which it takes of the cluster. Raises MxortError where the least do not fit."""
    threads = replicas.threads or max(1, int(min(min(cpus), sum(cpus) // replicas.most)))
    fit = sum(int(count // threads) for count in cpus)
    if fit < replicas.least:
        raise MxortError(
            f"{replicas.least} replicas of {threads} threads: the cluster has room for {fit} ({sum(cpus):g} CPUs)"
        )
    return threads


@contextlib.contextmanager
def _stopped() -> Iterator[threading.Event]:
    """An event for handlers of SIGTERM and SIGINT, which are as before when the block ends.

    Ray, when it connects, sets handlers of its own: those of the event are set behind that.
    """
    event = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _running(ray: Any, what: _What, replicas: Replicas, ip: str, port: int, *, own: bool) -> Iterator[None]:
    """The deployment, until the block ends. ``own``: of a cluster that ends then too."""
    from ray import serve as ray_serve

    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        raise MxortError("Ray Serve runs on this cluster already: expected one without it")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    at_once = BATCH * what.limits.batches
    # A replica refuses by itself who comes when it has enough to do: Ray would let him wait.
    most = 2 * what.limits.max_requests * len(what.folders)
    deployment = ray_serve.deployment(
        ray_serve.ingress()(Replica),
        name=_NAME,
        ray_actor_options={"num_cpus": what.threads},
        max_ongoing_requests=most,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=what.limits.grace,
        graceful_shutdown_wait_loop_s=0.2,
        **_count(replicas, at_once),
    )
    try:
        try:
            ray_serve.start(proxy_location="HeadOnly", http_options={"host": ip, "port": port})
            ray_serve.run(deployment.bind(what), name=_NAME, route_prefix="/")
        except Exception as error:  # Serve's, a task's, that of a process which died
            raise MxortError(_reason(ray_serve, error)) from None
        yield
    finally:
        with contextlib.suppress(Exception):  # Serve may be what has failed
            ray_serve.delete(_NAME)  # what runs may end
            if not own:
                ray_serve.shutdown()


def _count(replicas: Replicas, at_once: int) -> dict[str, Any]:
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.most}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "initial_replicas": replicas.least,
            "target_ongoing_requests": at_once,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": _IDLE,
        }
    }


def _reason(ray_serve: Any, error: Exception) -> str:
    """Why replicas could not begin, in one line: what the replica said is in the middle of a traceback."""
    told = [str(error)]
    with contextlib.suppress(Exception):  # Serve may be what has failed
        told += [each.message for each in ray_serve.status().applications[_NAME].deployments.values()]
    found = re.search(r"MxortError: (.*)", "\n".join(told))
    return found[1] if found else f"Ray Serve: {one_line(error)[-300:]}"
