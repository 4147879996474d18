"""The event stream as an ASGI app of its own: when the status goes out, how it ends, what a leaving client does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from functionary_vllm.api.connection import ClientLeft, while_connected
from functionary_vllm.api.sse import DONE, KEEP_ALIVE, EventStream, Write, at_once, error_event
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
    """An answer that writes these, and remembers whether it was left early; None waits for ever."""

    def __init__(self, *items: bytes | Exception | None) -> None:
        self._items = items
        self.left = False

    async def answer(self, write: Write) -> None:
        try:
            for item in self._items:
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                elif (lag := write(item)) is not None:
                    await lag
        except asyncio.CancelledError:
            self.left = True
            raise


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on in what is observed
            await asyncio.sleep(0)


async def test_one_send_a_write_and_done_at_the_end() -> None:
    client = Client()
    await EventStream(Source(b"a", b"", b"b").answer, {"x-a": "b"})(SCOPE, client.receive, client.send)
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
        await EventStream(Source(InvalidRequest("no")).answer)(SCOPE, client.receive, client.send)
    assert client.sent == []


async def test_a_silent_first_step_sends_the_status() -> None:
    client, source = Client(), Source(b"", None)
    task = asyncio.create_task(EventStream(source.answer)(SCOPE, client.receive, client.send))
    await until(lambda: client.sent)
    assert client.bodies == []
    client.leave()
    with pytest.raises(ClientLeft):
        await task


@pytest.mark.parametrize("items", [(None,), (b"a", None)], ids=["before the first step", "in the middle"])
async def test_a_client_that_leaves_closes_the_source(items: tuple[bytes | None, ...]) -> None:
    client, source = Client(), Source(*items)
    task = asyncio.create_task(EventStream(source.answer)(SCOPE, client.receive, client.send))
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

    task = asyncio.create_task(EventStream(source.answer)(SCOPE, client.receive, send))
    await until(lambda: client.bodies)
    client.leave()
    with pytest.raises(ClientLeft):
        await task
    assert source.left


async def test_a_write_is_sent_before_it_returns_and_says_when_the_client_lags() -> None:
    client, again = Client(), asyncio.Event()
    lags: list[Awaitable[None] | None] = []

    async def send(message: Any) -> None:
        if message.get("body") == b"b":
            await again.wait()
            await again.wait()
        await client.send(message)

    async def answer(write: Write) -> None:
        lags.extend(map(write, (b"a", b"b")))
        assert client.bodies == [b"a"]
        again.set()
        assert lags[1] is not None
        await lags[1]

    await EventStream(answer)(SCOPE, client.receive, send)
    assert lags[0] is None
    assert client.bodies == [b"a", b"b", DONE]


async def test_what_a_send_waits_for_may_fail() -> None:
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send() -> None:
        try:
            await failing
        except OSError:
            await asyncio.sleep(0)
            raise

    rest = at_once(send())
    assert rest is not None
    failing.set_exception(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await rest


async def test_a_stream_without_a_word_gets_comments_and_with_the_first_its_status() -> None:
    client = Client()

    async def answer(write: Write) -> None:
        await until(lambda: client.bodies.count(KEEP_ALIVE) == 2)
        write(b"a")

    await EventStream(answer, keep_alive=0.02)(SCOPE, client.receive, client.send)
    assert [message["type"] for message in client.sent].count("http.response.start") == 1
    assert client.bodies == [KEEP_ALIVE, KEEP_ALIVE, b"a", DONE]


async def test_a_stream_that_speaks_gets_no_comment() -> None:
    client = Client()

    async def answer(write: Write) -> None:
        for _ in range(100):
            write(b"a")
            await asyncio.sleep(0.001)

    await EventStream(answer, keep_alive=0.04)(SCOPE, client.receive, client.send)
    assert KEEP_ALIVE not in client.bodies


async def test_a_client_that_lags_gets_one_comment_at_most() -> None:
    client, again = Client(), asyncio.Event()

    async def send(message: Any) -> None:
        if message.get("body") == KEEP_ALIVE:
            comments.append(message)
            await again.wait()
        await client.send(message)

    comments: list[Any] = []

    async def answer(write: Write) -> None:
        await until(lambda: comments)
        await asyncio.sleep(0.05)
        assert len(comments) == 1
        again.set()
        await until(lambda: client.bodies)

    await EventStream(answer, keep_alive=0.004)(SCOPE, client.receive, send)
    assert client.bodies[0] == KEEP_ALIVE


async def test_a_cancellation_from_outside_stays_one() -> None:
    client, source = Client(), Source(None)
    task = asyncio.create_task(EventStream(source.answer)(SCOPE, client.receive, client.send))
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
