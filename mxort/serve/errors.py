"""What a client is told when its request fails: one JSON object, as OpenAI's interface has it."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 504: "timeout_error"}
CLIENT_GONE = 499
"""The status of a request whose client hung up; nobody reads it but the metrics."""


class ApiError(Exception):
    """A request that fails: ``status`` of HTTP, a line of text, the parameter that is to blame, a code for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """What is sent."""
        return body(self.status, str(self), self.param, self.code)


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error. Text that is no UTF-8 (half a surrogate pair, which JSON can hold) is replaced."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    line = " ".join(message.split()).encode("utf-8", "replace").decode()
    return {"error": {"message": line, "type": kind, "param": param, "code": code}}


def too_many(limit: int) -> ApiError:
    return ApiError(
        429, f"{limit} requests are running or waiting: try again later", None, "rate_limit_exceeded"
    )


def too_long(length: int, limit: int, param: str) -> ApiError:
    return ApiError(
        400, f"{param} has {length} tokens, at most {limit} fit", param, "context_length_exceeded"
    )


def unsupported(param: str, value: str) -> ApiError:
    return ApiError(400, f"{param}: {value} is not supported here", param, "unsupported_value")
