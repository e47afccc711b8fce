"""A server from start to end: the port first, then the models, then requests until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mxort.errors import MxortError
from mxort.serve.limits import Limits


def serve(
    folders: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    limits: Limits | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> None:
    """Serves until SIGTERM or SIGINT; then what runs may end, for ``limits.grace`` seconds. ``threads`` of each model.

    Port 0 takes one that is free; which it is, is said on stderr. Raises MxortError for a port that cannot be had, for
    folders that cannot be served, and where mxort[serve] is not installed.
    """
    require_extra()
    import uvicorn

    from mxort.serve.app import Application
    from mxort.serve.backends import open_folders

    limits = limits or Limits()
    with listen(host, port) as listening, open_folders(folders, limits, device, threads) as backends:
        address, chosen = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        warn_of_no_key(local, key)
        logging.getLogger("asyncio").setLevel(
            logging.ERROR
        )  # it warns of writing to clients that have hung up
        app = Application(backends, limits, key, local=local)
        config = uvicorn.Config(
            app.asgi,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=int(limits.grace) or 1,
        )
        shown = f"[{address}]" if ":" in address else address

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                print(f"mxort: {', '.join(backends)} at http://{shown}:{chosen}", file=sys.stderr, flush=True)

        server = Server(config)
        # uvicorn, when it is done, raises the signal that stopped it again: it has been obeyed.
        before = {each: signal.signal(each, server.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            server.run(sockets=[listening])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def require_extra() -> None:
    """Raises MxortError where mxort[serve] is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MxortError(f'a server needs mxort[serve] ({error}): pip install "mxort[serve]"') from error


def warn_of_no_key(local: bool, key: str | None) -> None:
    if not local and not key:
        print("mxort: warning: whoever reaches this address may use it: there is no API key", file=sys.stderr)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises MxortError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise MxortError(f"{host}: cannot listen there: {error.strerror or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # now, so that a second server finds the port taken
    except (OSError, OverflowError) as error:
        listening.close()
        raise MxortError(
            f"{host}:{port}: cannot listen there: {getattr(error, 'strerror', None) or error}"
        ) from None
    return listening
