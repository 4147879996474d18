"""The application: routes, what surrounds them, and when the server counts as ready.

In: Settings, a running Engine, a Format. Out: a FastAPI app; the lifespan says when it is ready and closes the
engine at the end. Refuses to know how the engine was made.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from functionary_vllm import metrics, tracing
from functionary_vllm.api import chat, lora, models, tokenize
from functionary_vllm.api.auth import Keys
from functionary_vllm.api.border import Border, Json, http_exception
from functionary_vllm.api.chat_request import ChatRequest
from functionary_vllm.api.described import describe
from functionary_vllm.api.life import Life
from functionary_vllm.api.service import Service, versions
from functionary_vllm.engine.base import Engine
from functionary_vllm.formats.base import Format
from functionary_vllm.pipeline import Pipeline
from functionary_vllm.settings import Settings

_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": [
        *("x-request-id", "retry-after", "x-unsupported-fields"),
        *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
    ],
}


def create_app(settings: Settings, engine: Engine, fmt: Format) -> FastAPI:
    metrics.watch_format(fmt)
    service = Service(settings, engine, fmt, Pipeline(fmt, engine, settings.reading))
    if settings.engine == "replay":
        metrics.stand_in_for_vllm(service.models.names[0])
    traces = tracing.start(settings.otlp_endpoint, os.environ)
    app = FastAPI(
        title="functionary-vllm",
        version=versions().get("functionary-vllm", "0"),
        description="OpenAI's chat completions, both generations, for function-calling models.",
        lifespan=_lifespan(engine, service.keys, traces),
    )
    app.state.life = Life(settings.engine_restarts)
    app.state.engine = engine
    app.state.load_adapters = partial(lora.load_modules, service)
    app.include_router(chat.routes(service))
    app.include_router(models.routes(service.models))
    app.include_router(tokenize.routes(service))
    if settings.allow_runtime_lora_updating:
        app.include_router(lora.routes(service))
    app.include_router(_operation(app, engine))
    app.add_exception_handler(HTTPException, http_exception)
    app.add_middleware(Border, traces=traces, keys=service.keys, life=app.state.life)
    if settings.cors_origins:  # around the border: a browser asks first, and shows no key then
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
    bodies = (lora.LoadAdapterRequest, lora.UnloadAdapterRequest) if settings.allow_runtime_lora_updating else ()
    describe(app, ChatRequest, tokenize.TokenizeRequest, tokenize.DetokenizeRequest, *bodies)
    return app


def _lifespan(engine: Engine, keys: Keys, traces: tracing.Tracing | None) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watches = [asyncio.create_task(metrics.watch_loop()), asyncio.create_task(keys.watch())]
        app.state.life.serve()
        try:
            yield
        finally:
            app.state.life.drain()
            for watch in watches:
                watch.cancel()
            await engine.close()
            if traces is not None:
                await traces.close()

    return lifespan


def _operation(app: FastAPI, engine: Engine) -> APIRouter:
    """For those who run the server: supervisors, load balancers, Prometheus."""
    router = APIRouter(tags=["operation"])
    life: Life = app.state.life

    @router.get("/health", summary="Liveness: 503 when the engine is dead and only a restart helps")
    async def health() -> Response:
        if not life.mends:
            await engine.check_health()
        return Json({"status": "ok"})

    @router.get("/ready", summary="Readiness: 503 while starting, stopping, or without an engine")
    async def ready() -> Response:
        life.check_ready()
        await engine.check_health()
        return Json({"status": "ready"})

    @router.get("/version", summary="Installed versions")
    async def version() -> Response:
        return Json({"version": app.version, "versions": versions()})

    @router.get("/metrics", summary="Prometheus metrics: vLLM's own and ours", response_class=Response)
    async def exposition() -> Response:
        return Response(metrics.exposition(), headers={"content-type": metrics.CONTENT_TYPE})

    return router
