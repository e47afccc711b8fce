"""What stands before the application: who may ask, how much may be sent, and how long it may take."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import sys

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mxort.runtime.session import one_line
from mxort.serve.errors import CLIENT_GONE, ApiError, body
from mxort.serve.limits import Limits
from mxort.serve.metrics import Metrics

_SLACK = 5.0
"""Seconds after the time-out of a request, within which it can say so itself."""


class Guard:
    """Limits of a request, its key, and the answer where the application failed. Counts what was answered.

    Answers are never a traceback. A request whose path begins with /v1 needs the key, where there is one. Where the
    server listens to this machine only, requests must name it so (``local``): a page on the web whose name was made to
    point here has no business with it.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, key: str | None, metrics: Metrics, *, local: bool
    ) -> None:
        self._app, self._limits, self._metrics, self._local = app, limits, metrics, local
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        failure: ApiError | None = None
        try:
            async with asyncio.timeout(self._limits.timeout + _SLACK):
                self._check(scope)
                content = await self._read(scope, receive)
                await self._app(scope, _replay(content, receive), sending)
        except ApiError as error:
            failure = error
        except TimeoutError:
            failure = ApiError(504, f"not answered within {self._limits.timeout:g} seconds", None, "timeout")
        except Exception as error:
            print(
                f"mxort: internal error: {scope['path']}: {type(error).__name__}: {one_line(error)}",
                file=sys.stderr,
            )
            failure = ApiError(500, "internal error")
        if failure is not None and not status:
            status = failure.status
            headers = {"retry-after": "1"} if status == 429 else {}
            if status == 413:
                headers["connection"] = "close"
            await JSONResponse(failure.body(), status, headers)(scope, receive, send)
        path = scope["path"] if scope["path"] in _COUNTED else "other"  # whatever clients make up is one row
        self._metrics.requests.labels(path, str(status or CLIENT_GONE)).inc()

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._local and not _is_this_machine(host):
            raise ApiError(403, "the host that the request names is not this machine's loopback address")
        if self._key is not None and scope["path"].startswith("/v1"):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self._key):
                raise ApiError(401, "no API key, or a wrong one", None, "invalid_api_key")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, which is short: before the application, so that it waits for no client."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(CLIENT_GONE, "the client hung up")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > self._limits.max_body:
                        raise ApiError(413, f"more than {self._limits.max_body} bytes")
        except TimeoutError:
            raise ApiError(408, f"it did not arrive within {self._limits.body_timeout:g} seconds") from None
        return b"".join(parts)


_COUNTED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/metrics",
    "/health",
    "/",
)


def _replay(content: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body that was read, then what comes."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": content, "more_body": False}

    return replaying


def _is_this_machine(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]")
    if name in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def error_response(status: int, message: str, param: str | None = None) -> JSONResponse:
    """A JSONResponse with an error."""
    return JSONResponse(body(status, message, param), status)
