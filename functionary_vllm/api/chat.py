"""POST /v1/chat/completions, and /render: the prompt that a request would become.

In: a body. Out: an answer, streamed or whole, from the same Deltas; refusals are raised before anything is sent.
What the fields mean is in `chat_task.py`, how answers look in `chat_writer.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from functionary_vllm.api.body import read_body
from functionary_vllm.api.border import Json
from functionary_vllm.api.chat_request import ChatRequest
from functionary_vllm.api.chat_task import answer_shape, chat_task
from functionary_vllm.api.chat_writer import ChatAnswer, ChatChunks
from functionary_vllm.api.connection import while_connected
from functionary_vllm.api.described import described_body
from functionary_vllm.api.service import Service
from functionary_vllm.api.sse import EventStream, Write
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.metrics import Observation
from functionary_vllm.outcome import outcomes
from functionary_vllm.pipeline import Delta, Prepared, Task
from functionary_vllm.tracing import Span, carried

log = logging.getLogger(__name__)

_SHORT_BODY = 4096  # bytes; 0.2 to 2 ms of work


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["chat"])
    body = described_body(ChatRequest)

    @router.post("/v1/chat/completions", summary="Create a chat completion", openapi_extra=body)
    async def create(request: Request) -> Response:
        return await _create(service, request)

    @router.post("/v1/chat/completions/render", summary="Show the prompt a request would become", openapi_extra=body)
    async def render(request: Request) -> Response:
        chat = await read_body(request, ChatRequest, service.settings.max_body_bytes)
        headers = _unsupported(chat, service, request.state.request_id)
        _, prepared = await service.aside(lambda: _prepare(chat, service))
        return Json(_rendered(prepared), headers=headers)

    return router


async def _create(service: Service, request: Request) -> Response:
    chat = await read_body(request, ChatRequest, service.settings.max_body_bytes)
    headers = _unsupported(chat, service, request.state.request_id)
    # Checking schemas and tokenising a long prompt takes milliseconds: other streams must not wait for it. A short one
    # is done sooner than a thread is asked, and need not wait for a long one.
    if _is_short(request):
        task, prepared = _prepare(chat, service)
    else:
        task, prepared = await service.aside(lambda: _prepare(chat, service))
    shape = answer_shape(chat, service, task, len(prepared.generation.prompt_ids))
    prepared = _traced(request, prepared, shape.model)
    if chat.stream:
        chunks = ChatChunks(shape)
        observation = _observe(service, request, task, chunks)
        keep_alive = service.settings.keep_alive_seconds
        return EventStream(lambda write: _answer(service, prepared, chunks, write, observation), headers, keep_alive)
    whole = ChatAnswer(shape)
    observation = _observe(service, request, task, whole)
    body: list[bytes] = []
    async with while_connected(request.receive):
        await _answer(service, prepared, whole, body.append, observation)
    return Response(b"".join(body), headers=headers, media_type="application/json")


def _is_short(request: Request) -> bool:
    declared = request.headers.get("content-length", "")  # which the server has held the client to
    return declared.isascii() and declared.isdigit() and int(declared) <= _SHORT_BODY


def _prepare(chat: ChatRequest, service: Service) -> tuple[Task, Prepared]:
    task = chat_task(chat, service)
    return task, service.pipeline.prepare(task)


def _traced(request: Request, prepared: Prepared, model: str) -> Prepared:
    """The engine is told of the trace that this request belongs to."""
    span: Span | None = request.state.span
    if span is not None:
        span.ask(prepared.generation, model)
    trace = span.headers() if span is not None else carried(request.scope["headers"])
    return replace(prepared, generation=replace(prepared.generation, trace=trace)) if trace else prepared


def _observe(service: Service, request: Request, task: Task, writer: ChatChunks | ChatAnswer) -> Observation:
    """What the border closes after the last byte."""
    shown = service.pipeline.shown(task.conversation)
    observation = Observation(
        request.state.begin,
        writer.tally,
        partial(outcomes, shown, raw_code=task.python_arguments == "raw"),
        stream=isinstance(writer, ChatChunks),
    )
    request.state.observation = observation
    return observation


async def _answer(
    service: Service, prepared: Prepared, writer: ChatChunks | ChatAnswer, write: Write, observation: Observation
) -> None:
    """Write what the writer makes of the pipeline's Deltas."""

    def take(delta: Delta) -> Awaitable[None] | None:
        return write(writer.write(delta))

    observation.begin()
    await service.pipeline.run(prepared, take, whole=not observation.stream)
    if (lag := write(writer.end())) is not None:
        await lag


def _unsupported(chat: ChatRequest, service: Service, request_id: str) -> dict[str, str]:
    """The response headers that tell of fields which are not honoured; or the refusal."""
    policy = service.settings.unknown_fields
    if policy == "ignore" or not (fields := chat.unsupported()):
        return {}
    if policy == "reject":
        raise InvalidRequest(
            f"Unsupported parameter: '{fields[0]}' is not supported here.",
            param=fields[0],
            code="unsupported_parameter",
        )
    named = ", ".join(quote(field, safe="[]$") for field in fields)
    log.warning("request %s: fields that are not honoured: %s", request_id, named)
    return {"x-unsupported-fields": named}


def _rendered(prepared: Prepared) -> dict[str, Any]:
    generation = prepared.generation
    return {
        "prompt": prepared.prompt.text,
        "token_ids": list(generation.prompt_ids),
        "opened": prepared.prompt.opened,
        "stop": [*prepared.prompt.stop, *generation.sampling.stop],
        "constraint": None if generation.constraint is None else json.loads(generation.constraint),
        "max_tokens": generation.sampling.max_tokens,
    }
