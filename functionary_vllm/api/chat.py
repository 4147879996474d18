"""POST /v1/chat/completions, and /render: the prompt that a request would become.

In: a body. Out: an answer, streamed or whole, from the same Deltas; refusals are raised before anything is sent.
What the fields mean is in `chat_task.py`, how answers look in `chat_writer.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from functionary_vllm.api.admission import Ticket
from functionary_vllm.api.auth import Key
from functionary_vllm.api.body import check_media_type, parse, read, read_body, validate
from functionary_vllm.api.border import Json
from functionary_vllm.api.chat_request import ChatRequest
from functionary_vllm.api.chat_task import answer_shape, chat_task
from functionary_vllm.api.chat_writer import ChatAnswer, ChatChunks
from functionary_vllm.api.connection import while_connected
from functionary_vllm.api.described import described_body
from functionary_vllm.api.limits import Usage
from functionary_vllm.api.service import Service
from functionary_vllm.api.sse import EventStream, Write
from functionary_vllm.engine.base import Capacity
from functionary_vllm.errors import DeadlineExceeded, InvalidRequest
from functionary_vllm.metrics import Observation
from functionary_vllm.outcome import outcomes
from functionary_vllm.pipeline import Delta, Pipeline, Prepared, Task
from functionary_vllm.tracing import Span, carried

log = logging.getLogger(__name__)

_SHORT_BODY = 4096  # bytes; 0.2 to 2 ms of work
_DEADLINE = "x-request-deadline-ms"


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
        with service.admission.arriving(request.state.key.name):
            _, prepared = await service.aside(lambda: _prepare(chat, service))
        return Json(_rendered(prepared), headers=headers)

    return router


async def _create(service: Service, request: Request) -> Response:
    key: Key = request.state.key
    check_media_type(request)
    body = await read(request, service.settings.max_body_bytes)
    seconds = _deadline(request)
    # Whom there is no room for is told before any work is done for it.
    with service.admission.arriving(key.name):
        chat = validate(parse(body), ChatRequest)
        headers = _unsupported(chat, service, request.state.request_id)
        # Checking schemas and tokenising a long prompt takes milliseconds: other streams must not wait for it. A short
        # one is done sooner than a thread is asked, and need not wait for a long one.
        if len(body) <= _SHORT_BODY:
            task, prepared = _prepare(chat, service, key.priority)
        else:
            task, prepared = await service.aside(lambda: _prepare(chat, service, key.priority))
    shape = answer_shape(chat, service, task, len(prepared.generation.prompt_ids))
    prepared = _traced(request, prepared, shape.model)
    writer = ChatChunks(shape) if chat.stream else ChatAnswer(shape)
    observation = _observe(service, request, task, writer)
    size = Capacity(task.sampling.n, len(prepared.generation.prompt_ids))
    ticket = Ticket(service.admission, key.name, size, task.priority, observation.begin)
    completion = _Completion(service.pipeline, prepared, writer, ticket, key.usage)
    answer = completion.write_to if seconds is None else partial(_within, request.state.begin + seconds, completion)
    if chat.stream:
        return EventStream(answer, headers, service.settings.keep_alive_seconds, lambda: ticket.seated)
    whole: list[bytes] = []
    async with while_connected(request.receive):
        await answer(whole.append)
    return Response(b"".join(whole), headers=headers, media_type="application/json")


def _deadline(request: Request) -> float | None:
    """The seconds that the client gives its request."""
    given = request.headers.get(_DEADLINE)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and 0 < len(given) < 10):
        raise InvalidRequest(f"Invalid value for the header {_DEADLINE}: a whole number of milliseconds is needed.")
    return int(given) / 1000


def _prepare(chat: ChatRequest, service: Service, most_urgent: int | None = None) -> tuple[Task, Prepared]:
    task = chat_task(chat, service)
    if most_urgent is not None and task.priority < most_urgent:
        task = replace(task, priority=most_urgent)
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


@dataclass(frozen=True, slots=True)
class _Completion:
    """One answer, ready to be asked for. `usage`: whose tokens it takes."""

    pipeline: Pipeline
    prepared: Prepared
    writer: ChatChunks | ChatAnswer
    ticket: Ticket
    usage: Usage | None

    async def write_to(self, write: Write) -> None:
        """Write what the writer makes of the pipeline's Deltas, once there is a seat for the request."""
        writer, ticket = self.writer, self.ticket

        def take(delta: Delta) -> Awaitable[None] | None:
            if ticket.prefilling:
                ticket.begun()
            return write(writer.write(delta))

        self._spend()
        try:
            await self.pipeline.run(self.prepared, take, whole=isinstance(writer, ChatAnswer), seat=ticket)
        finally:
            self._charge()
        if (lag := write(writer.end())) is not None:
            await lag

    def _spend(self) -> None:
        if self.usage is not None:
            self.usage.spend(self.ticket.tokens)

    def _charge(self) -> None:
        if self.usage is not None:
            self.usage.charge(sum(self.writer.tally.completion) if self.ticket.seated else -self.ticket.tokens)


async def _within(until: float, completion: _Completion, write: Write) -> None:
    """Until a monotonic time, at which the request is given up: while it waits for a seat, or while it runs."""
    try:
        async with asyncio.timeout(until - time.monotonic()) as limit:
            await completion.write_to(write)
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded("The request was not done by its deadline.") from None
        raise


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
