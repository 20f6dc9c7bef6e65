"""Routes of the server.

| route                       | what                                                                   |
|-----------------------------|------------------------------------------------------------------------|
| `POST /v1/chat/completions` | an answer, at once or streamed                                         |
| `GET /v1/models`            | the one model, with its V2PE settings                                  |
| `GET /health`, `/metrics`   | whether the server works; counts and times for Prometheus              |
| `GET /`, `/page/NAME`       | the chat page                                                          |
"""

import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from internvl.infer.rows import TokenLogprobs
from internvl.infer.session import Session
from internvl.model.positions import ROPE_POS_ID_VERSIONS, takes_stride
from internvl.serve.answering import Answering, Service
from internvl.serve.engine import Engine
from internvl.serve.errors import ApiError, from_exception
from internvl.serve.media import MediaFolder
from internvl.serve.options import ServerOptions
from internvl.serve.positions import list_spans
from internvl.serve.protocol import Form, write_usage

logger = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page")
_CLIENT_LEFT = 499  # as nginx counts it
_LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]"]


def build_app(session: Session, options: ServerOptions, *, model_name: str) -> FastAPI:
    """The server's application; its engine starts and ends with it.

    Args:
        session: The model.
        options: Limits and access.
        model_name: The name that requests give.

    Raises:
        OSError: The allowed media folder is not there.
    """
    media = MediaFolder(options)

    @asynccontextmanager
    async def run_engine(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(session, options, count_open=lambda: app.state.service.num_open)
        app.state.service = Service(engine, media, options, model_name)
        try:
            yield
        finally:
            engine.close()
            media.close()

    app = FastAPI(title="V2PE", docs_url=None, redoc_url=None, openapi_url=None, lifespan=run_engine)
    if options.is_local and options.key is None:
        # Without a key, a web page whose name is made to mean this machine could read answers.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL_NAMES, www_redirect=False)
    for kind in (ApiError, HTTPException, Exception):
        app.add_exception_handler(kind, _write_error)
    allowed = [Depends(_key_checker(options.key))]
    app.add_api_route("/v1/chat/completions", _complete, methods=["POST"], dependencies=allowed, response_model=None)
    app.add_api_route("/v1/models", _list_models, dependencies=allowed, response_model=None)
    app.add_api_route("/v1/models/{name:path}", _show_model, dependencies=allowed, response_model=None)
    app.add_api_route("/metrics", _write_metrics, dependencies=allowed, response_model=None)
    app.add_api_route("/health", _report_health, response_model=None)
    app.add_api_route("/", lambda: FileResponse(_PAGE / "index.html"), response_model=None)
    app.mount("/page", StaticFiles(directory=_PAGE, check_dir=False))
    return app


def _key_checker(key: str | None) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")

    return check


async def _write_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):  # of the router: no such path, or another method
        error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    known = from_exception(error)
    return JSONResponse(known.body, known.status)


async def _complete(request: Request) -> Response:
    service: Service = request.app.state.service
    try:
        answering = Answering(service, request)
    except ApiError as error:
        service.engine.metrics.requests.labels(error.status).inc()
        raise
    is_handed_on = False
    status = _CLIENT_LEFT
    try:
        await answering.begin()
        if answering.body.stream:
            is_handed_on = True
            return _EventStream(answering, service)
        content = await _collect(answering, service)
        status = 200
        return JSONResponse(content)
    except Exception as error:
        known = _describe_error(error)
        status = known.status
        raise known from error
    finally:
        if not is_handed_on:
            answering.close()
            service.engine.metrics.requests.labels(status).inc()


def _describe_error(error: Exception) -> ApiError:
    known = from_exception(error)
    if known.status >= 500:
        logger.error("a request failed: %s", known.message, exc_info=None if error is known else error)
    return known


async def _collect(answering: Answering, service: Service) -> dict[str, object]:
    """The whole answer."""
    logprobs: dict[int, list[TokenLogprobs]] = {}
    async for piece in answering.pieces():
        logprobs.setdefault(piece.choice, []).extend(piece.logprobs)
    choices: list[dict[str, object]] = [
        {
            "index": number,
            "message": {"role": "assistant", "content": row.text, "refusal": None},
            "logprobs": _write_logprobs(logprobs.get(number, []), service) if answering.body.logprobs else None,
            "finish_reason": row.finish_reason,
        }
        for number, row in enumerate(answering.rows)
    ]
    form = Form(_new_id(), service.model_name, is_stream=False)
    return form.write(choices, usage=_usage(answering), v2pe=_describe_positions(answering, service))


class _EventStream(StreamingResponse):
    """An answer as server-sent events; whatever ends it, the request is closed."""

    def __init__(self, answering: Answering, service: Service):
        self._answering, self._service = answering, service
        self._status = _CLIENT_LEFT
        super().__init__(self._write(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.close()
            self._service.engine.metrics.requests.labels(self._status).inc()

    async def _write(self) -> AsyncIterator[str]:
        answering, service = self._answering, self._service
        form = Form(_new_id(), service.model_name, is_stream=True)
        wants_usage = answering.body.stream_options is not None and answering.body.stream_options.include_usage
        others: dict[str, object] = {"usage": None} if wants_usage else {}
        try:
            for number in range(answering.body.num_choices):
                yield _event(form.write([_chunk(number, {"role": "assistant", "content": ""})], **others))
            async for piece in answering.pieces():
                logprobs = _write_logprobs(piece.logprobs, service) if answering.body.logprobs else None
                yield _event(form.write([_chunk(piece.choice, {"content": piece.text}, logprobs)], **others))
            positions = _describe_positions(answering, service)
            for number, row in enumerate(answering.rows):
                end = _chunk(number, {}, finish_reason=row.finish_reason)
                yield _event(form.write([end], v2pe=positions, **others))
            if wants_usage:
                yield _event(form.write([], usage=_usage(answering)))
            self._status = 200
        except Exception as error:
            known = _describe_error(error)
            self._status = known.status
            yield _event(known.body)
        yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _chunk(
    number: int,
    delta: dict[str, str],
    logprobs: dict[str, object] | None = None,
    *,
    finish_reason: str | None = None,
) -> dict[str, object]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _usage(answering: Answering) -> dict[str, int]:
    return write_usage(answering.prompt.length, sum(row.num_new_tokens for row in answering.rows))


def _write_logprobs(tokens: Sequence[TokenLogprobs], service: Service) -> dict[str, object]:
    tokenizer = service.engine.session.tokenizer

    def write(token_id: int, logprob: float) -> dict[str, object]:
        text = str(tokenizer.decode([token_id]))
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            {**write(token.token_id, token.logprob), "top_logprobs": [write(*other) for other in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _describe_positions(answering: Answering, service: Service) -> dict[str, object]:
    prompt, settings = answering.prompt, answering.settings
    has_stride = takes_stride(prompt.rope_pos_id_version)
    description: dict[str, object] = {
        "rope_pos_id_version": settings.rope_pos_id_version,
        "rope_pos_id_stride": settings.rope_pos_id_stride if has_stride else None,
        "prompt_tokens": prompt.length,
        "tiles": sum(prompt.tiles_per_image),
        "frames": prompt.num_frames,
        "last_position": prompt.last_position,
        "seconds": answering.seconds,
    }
    if answering.body.return_positions:
        visual = torch.eq(prompt.input_ids[0], service.engine.session.questions.conversation.image_token_id)
        # Of several axes the first, time, is told.
        description["spans"] = list_spans(prompt.position_ids.flatten(0, -2)[0], visual)
    return description


async def _list_models(request: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [_describe_model(request.app.state.service)]})


async def _show_model(request: Request, name: str) -> JSONResponse:
    service: Service = request.app.state.service
    if name != service.model_name:
        message = f"there is no model {name!r:.100}, expected {service.model_name!r}"
        raise ApiError(404, message, code="model_not_found", param="model")
    return JSONResponse(_describe_model(service))


def _describe_model(service: Service) -> dict[str, object]:
    session = service.engine.session
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "v2pe",
        "v2pe": {
            "rope_pos_id_version": session.settings.rope_pos_id_version,
            "rope_pos_id_stride": session.settings.rope_pos_id_stride,
            "tokens_per_tile": session.model.num_image_token,
            "max_tiles": session.settings.max_num,
            "versions": list(ROPE_POS_ID_VERSIONS),
        },
    }


async def _write_metrics(request: Request) -> Response:
    return Response(request.app.state.service.engine.metrics.write(), media_type=CONTENT_TYPE_LATEST)


async def _report_health(request: Request) -> JSONResponse:
    is_alive = request.app.state.service.engine.is_alive
    return JSONResponse({"status": "ok" if is_alive else "failed"}, 200 if is_alive else 503)
