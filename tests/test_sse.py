"""The event stream as an ASGI app of its own: when the status goes out, how it ends, what a leaving client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from functionary_vllm.api.connection import ClientLeft, while_connected
from functionary_vllm.api.sse import DONE, EventStream, error_event
from functionary_vllm.errors import EngineFailure, InvalidRequest

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


class Client:
    """The other side of an ASGI app. `leave` disconnects."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self._left = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Any:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


class Source:
    """A stream of writes that remembers whether it was closed early; None waits for ever."""

    def __init__(self, *items: bytes | Exception | None) -> None:
        self._items = items
        self.left = False

    async def writes(self) -> AsyncGenerator[bytes]:
        try:
            for item in self._items:
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.left = True
            raise


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on in what is observed
            await asyncio.sleep(0)


async def test_one_send_a_write_and_done_at_the_end() -> None:
    client = Client()
    await EventStream(Source(b"a", b"", b"b").writes(), {"x-a": "b"})(SCOPE, client.receive, client.send)
    start, *_ = client.sent
    assert start["type"] == "http.response.start"
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-a"] == b"b"
    assert b"content-length" not in headers
    assert client.bodies == [b"a", b"b", DONE]
    assert [m["more_body"] for m in client.sent[1:]] == [True, True, False]


async def test_status_waits_for_the_first_write() -> None:
    client = Client()
    with pytest.raises(InvalidRequest):
        await EventStream(Source(InvalidRequest("no")).writes())(SCOPE, client.receive, client.send)
    assert client.sent == []


async def test_a_silent_first_step_sends_the_status() -> None:
    client, source = Client(), Source(b"", None)
    task = asyncio.create_task(EventStream(source.writes())(SCOPE, client.receive, client.send))
    await until(lambda: client.sent)
    assert client.bodies == []
    client.leave()
    with pytest.raises(ClientLeft):
        await task


@pytest.mark.parametrize("items", [(None,), (b"a", None)], ids=["before the first step", "in the middle"])
async def test_a_client_that_leaves_closes_the_source(items: tuple[bytes | None, ...]) -> None:
    client, source = Client(), Source(*items)
    task = asyncio.create_task(EventStream(source.writes())(SCOPE, client.receive, client.send))
    await until(lambda: len(client.bodies) == len(items) - 1)
    client.leave()
    with pytest.raises(ClientLeft):
        await task
    assert source.left
    assert DONE not in client.bodies


async def test_a_client_that_leaves_during_a_blocked_send_closes_the_source() -> None:
    client, source = Client(), Source(b"a", b"b")

    async def send(message: Any) -> None:
        await client.send(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    task = asyncio.create_task(EventStream(source.writes())(SCOPE, client.receive, send))
    await until(lambda: client.bodies)
    client.leave()
    with pytest.raises(ClientLeft):
        await task
    assert source.left


async def test_a_cancellation_from_outside_stays_one() -> None:
    client, source = Client(), Source(None)
    task = asyncio.create_task(EventStream(source.writes())(SCOPE, client.receive, client.send))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.left


async def test_leaving_is_over_when_it_was_told() -> None:
    client = Client()
    client.leave()
    with pytest.raises(ClientLeft):
        async with while_connected(client.receive):
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


def test_error_event() -> None:
    assert error_event(EngineFailure("broken", param="x")) == (
        b'data: {"error":{"message":"broken","type":"server_error","param":"x","code":"engine_failure"}}\n\n'
        b"data: [DONE]\n\n"
    )
