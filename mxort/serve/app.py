"""The application: paths, and what they answer."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from mxort.serve import metrics as counted
from mxort.serve.backends import Backend
from mxort.serve.decoder import Decoder
from mxort.serve.encoder import Encoder
from mxort.serve.errors import ApiError
from mxort.serve.generation import Generation
from mxort.serve.guard import Guard, error_response
from mxort.serve.limits import Limits
from mxort.serve.protocol import ChatRequest, CompletionRequest, EmbeddingRequest

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Application:
    """The paths of OpenAI's interface over the models by name; ``asgi`` is what a server runs.

    ``replica`` names this one in the metrics, where several answer at one address.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        limits: Limits,
        key: str | None,
        *,
        local: bool,
        replica: str = "",
    ) -> None:
        self._backends, self._limits = backends, limits
        self._created = int(time.time())
        self._metrics = counted.Metrics({name: each.counts for name, each in backends.items()}, replica)
        # Without its pages of documentation, whose scripts come from elsewhere.
        app = FastAPI(title="mxort", docs_url=None, redoc_url=None)
        self._routes(app)
        _errors(app)
        self.asgi: ASGIApp = Guard(app, limits, key, self._metrics, local=local)

    def _routes(self, app: FastAPI) -> None:
        app.post("/v1/chat/completions")(self.chat)
        app.post("/v1/completions")(self.complete)
        app.post("/v1/embeddings")(self.embed)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name}")(self.model)
        app.get("/health")(self.health)
        app.get("/metrics")(self.metrics)
        app.get("/", response_class=HTMLResponse)(self.page)

    async def chat(self, body: ChatRequest, request: Request) -> Any:
        """A conversation goes on."""
        decoder = self._decoder(body.model)
        body.refuse_unsupported()
        tokens = await decoder.chat_tokens([message.plain() for message in body.messages])
        return await self._generate(decoder, tokens, body, request, chat=True)

    async def complete(self, body: CompletionRequest, request: Request) -> Any:
        """A text goes on."""
        decoder = self._decoder(body.model)
        body.refuse_unsupported()
        prompt = body.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
            prompt = prompt[0]
        if isinstance(prompt, str):
            tokens = await decoder.text_tokens(prompt)
        else:
            tokens = decoder.check(np.array(prompt, np.int32), "prompt")
        return await self._generate(decoder, tokens, body, request, chat=False)

    async def _generate(
        self,
        decoder: Decoder,
        tokens: Any,
        body: ChatRequest | CompletionRequest,
        request: Request,
        *,
        chat: bool,
    ) -> Any:
        sampling = body.sampling(self._limits, decoder.context - len(tokens), decoder.vocabulary)
        generation = Generation(decoder, tokens, sampling, chat, self._metrics, self._limits.timeout)
        decoder.check_room()  # once more: reading the prompt may have taken a while
        if not body.stream:
            return JSONResponse(await generation.whole(request))
        usage = body.stream_options is not None and body.stream_options.include_usage
        stream = generation.stream(request, usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_STREAM)

    async def embed(self, body: EmbeddingRequest) -> Any:
        """A vector for each text."""
        encoder = self._backend(body.model)
        if not isinstance(encoder, Encoder):
            raise ApiError(400, f"{encoder.name} makes no embeddings, it generates text", "model")
        body.refuse_unsupported()
        vectors, tokens = await encoder.embed(body.inputs())
        self._metrics.finished(encoder.name, tokens, 0)
        as_text = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if as_text
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": encoder.name, "data": data, "usage": usage})

    async def models(self) -> Any:
        return JSONResponse(
            {"object": "list", "data": [self._model(each) for each in self._backends.values()]}
        )

    async def model(self, name: str) -> Any:
        return JSONResponse(self._model(self._backend(name)))

    async def health(self) -> Any:
        ended = [each.name for each in self._backends.values() if not each.alive]
        return JSONResponse({"status": "ended" if ended else "ok", "ended": ended}, 503 if ended else 200)

    async def metrics(self) -> Any:
        return Response(self._metrics.text(), media_type=counted.CONTENT_TYPE)

    async def page(self) -> Any:
        """A chat that needs nothing but this server."""
        return HTMLResponse(_page(), headers=_HEADERS)

    def _model(self, backend: Backend) -> dict[str, Any]:
        """``kind`` and ``context`` are ours."""
        return {
            "id": backend.name,
            "object": "model",
            "created": self._created,
            "owned_by": "mxort",
            "kind": backend.kind,
            "context": backend.context,
        }

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            known = ", ".join(self._backends)
            raise ApiError(404, f"no model {name[:80]!r} here, there is {known}", "model", "model_not_found")
        return self._backends[name]

    def _decoder(self, name: str) -> Decoder:
        backend = self._backend(name)
        if not isinstance(backend, Decoder):
            raise ApiError(400, f"{name} generates no text, it makes embeddings", "model")
        backend.check_room()
        return backend


def _page() -> str:
    return resources.files("mxort.serve").joinpath("page.html").read_text(encoding="utf-8")


def _errors(app: FastAPI) -> None:
    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if len(first["loc"]) < 2 or first["type"] == "json_invalid":
            return error_response(400, "expected a JSON object, of content-type application/json")
        place = ".".join(str(part) for part in first["loc"][1:])
        return error_response(400, f"{place}: {first['msg']}"[:300], str(first["loc"][1]))

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail))

    async def of_ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    async def bug(request: Request, error: Exception) -> JSONResponse:
        return error_response(
            500, "internal error"
        )  # the guard, which gets the exception next, says more on stderr

    app.exception_handler(Exception)(bug)
    app.exception_handler(RequestValidationError)(invalid)
    app.exception_handler(HTTPException)(of_http)
    app.exception_handler(ApiError)(of_ours)
