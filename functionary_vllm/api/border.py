"""The border to the client: request ids, keys, and the one place where an error becomes bytes.

In: every HTTP request, outside of the routes. Out: OpenAI's envelope with its status before the first byte, one
`data: {"error": ...}` event and `[DONE]` after it; an unforeseen exception is logged and told as a bare 500. Adds
x-request-id, openai-processing-ms and openai-version to every answer, and tells metrics, log and traces of each once
its last byte is sent. Refuses to know what the routes do.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from contextlib import nullcontext, suppress
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functionary_vllm import metrics, tracing
from functionary_vllm.api.auth import Key, Keys
from functionary_vllm.api.connection import ClientLeft
from functionary_vllm.api.ids import new_id
from functionary_vllm.api.life import Life
from functionary_vllm.api.limits import Usage
from functionary_vllm.api.sse import MEDIA_TYPE, error_event
from functionary_vllm.api.wire import dumps
from functionary_vllm.errors import (
    ApiError,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RateLimited,
)

log = logging.getLogger(__name__)
requests_log = logging.getLogger("functionary_vllm.requests")

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_WATCHES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds: no spans, and lines only at debug
_LAST_WORDS_S = 1.0  # for a client that reads slowly while the server stops
_FOR_WATCHERS = frozenset({"/health", "/ready", "/metrics", "/version"})  # answered to the end
_UNLIMITED = nullcontext()
# A request that missed its own deadline would miss it again: OpenAI's clients are told.
_HEADERS = {401: {"www-authenticate": "Bearer"}, 408: {"x-should-retry": "false"}}
_OPENAI_VERSION = b"2020-10-01"  # what OpenAI's own servers answer


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def error_response(error: ApiError) -> Response:
    headers = _HEADERS.get(error.status, {}).copy()
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return Json(error.envelope(), status_code=error.status, headers=headers)


async def http_exception(request: Request, exc: Exception) -> Response:
    """What the router refuses by itself: unknown paths and methods."""
    http = cast(HTTPException, exc)
    match http.status_code:
        case 404:
            error: ApiError = NotFound(f"Invalid URL ({request.method} {request.url.path})")
        case 405:
            error = MethodNotAllowed(f"Not allowed to {request.method} on {request.url.path}")
        case _:
            error = InvalidRequest(str(http.detail))
    response = error_response(error)
    response.status_code = http.status_code
    response.headers.update(http.headers or {})
    return response


class Border:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, traces: tracing.Tracing | None, keys: Keys, life: Life) -> None:
        self._app = app
        self._keys = keys
        self._traces = traces
        self._life = life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._life)
        if self._traces is not None and scope["path"] not in _WATCHES:
            exchange.trace(self._traces)
        try:
            usage = exchange.belong(self._keys.check(scope))
            if scope["path"] not in _FOR_WATCHERS:
                self._life.refuse_at_end()
            with usage if usage is not None and scope["method"] == "POST" else _UNLIMITED:
                await self._app(scope, receive, exchange.send)
        except (ClientLeft, ClientDisconnect):
            exchange.status = 499  # nginx's code for a client that closed the request; only the metric sees it
        except ApiError as error:
            await exchange.fail(error, receive)
        except asyncio.CancelledError:  # the server stops, and has waited long enough for this answer
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await exchange.fail(EngineUnavailable("The server is stopping."), receive)
            if not self._life.ending:
                raise
        except Exception:
            log.exception("request %s: unforeseen error", exchange.request_id)
            await exchange.fail(
                EngineFailure("The server had an error. It has been logged.", code="internal_error"), receive
            )
        finally:
            exchange.end()


class _Exchange:
    """One request and its answer, as far as it was sent."""

    def __init__(self, scope: Scope, send: Send, life: Life) -> None:
        self._scope = scope
        self._send = send
        self._life = life
        self._begin = time.monotonic()
        self.status = 0
        self._streaming = False
        self._error: ApiError | None = None
        self._usage: Usage | None = None
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else new_id("req_", 32)
        self._state = scope.setdefault("state", {})
        self._state.update(request_id=self.request_id, begin=self._begin, observation=None, span=None)

    def belong(self, key: Key) -> Usage | None:
        self._state.update(key=key, key_name=key.name or None)
        self._usage = key.usage
        return key.usage

    def trace(self, traces: tracing.Tracing) -> None:
        self._state["span"] = traces.begin(self._scope["method"], self._scope["headers"])

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._streaming = any(
                v.startswith(MEDIA_TYPE.encode()) for k, v in message["headers"] if k == b"content-type"
            )
            elapsed = b"%d" % round((time.monotonic() - self._begin) * 1000)
            message["headers"] = [
                *message["headers"],
                (b"x-request-id", self.request_id.encode()),
                (b"openai-processing-ms", elapsed),
                (b"openai-version", _OPENAI_VERSION),
            ]
            if self._usage is not None:
                message["headers"] += self._usage.headers()
            if self._life.ending:  # the client's next request shall go elsewhere
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def fail(self, error: ApiError, receive: Receive) -> None:
        self._error = error
        if error.status >= 500 and self._scope["path"] not in _FOR_WATCHERS:
            log.error("request %s: %s", self.request_id, error.message)
        if not self.status:
            if isinstance(error, RateLimited | DeadlineExceeded):
                metrics.REJECTED.labels(error.code).inc()
            await error_response(error)(self._scope, receive, self.send)
        elif self._streaming:
            await self._send({"type": "http.response.body", "body": error_event(error), "more_body": False})
        else:
            raise error  # the body was begun and cannot be saved: the server closes the connection

    def end(self) -> None:
        """Nothing more is sent: what there is to tell of it is told."""
        now = time.monotonic()
        observation: metrics.Observation | None = self._state["observation"]
        if observation is not None:
            observation.close(now, aborted=self.status == 499, error=self._error)
        path = getattr(self._scope.get("route"), "path", "other")
        metrics.HTTP_REQUESTS.labels(path, str(self.status), "true" if self._streaming else "false").inc()
        watched = path in _WATCHES and self.status == 200
        level = logging.DEBUG if watched else logging.INFO
        span: tracing.Span | None = self._state["span"]
        logged = requests_log.isEnabledFor(level)
        if span is None and not logged:
            return
        facts = self._facts(path, now)
        if logged:
            requests_log.log(level, "request", extra={"request": facts})
        if span is not None:
            span.end(facts)

    def _facts(self, path: str, now: float) -> dict[str, Any]:
        """Of the whole request: numbers, names and codes, nothing that a client or a model wrote."""
        facts: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self._scope["method"],
            "route": path,
            "status": self.status,
            "duration_ms": round((now - self._begin) * 1000, 1),
        }
        if (key := self._state.get("key_name")) is not None:
            facts["key"] = key
        if self._error is not None:
            facts["error"] = self._error.code or self._error.type
        observation: metrics.Observation | None = self._state["observation"]
        return facts if observation is None else facts | observation.facts()
