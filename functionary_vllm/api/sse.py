"""Server-sent events as an ASGI response: one write an engine step, one task a request.

In: a coroutine that calls `write` with byte strings, each whole events. Out: the status is sent only when the first
of them is there, so that a refusal keeps its HTTP code; every stream ends in `data: [DONE]`. A write reaches the
server before it returns; only where that waits, because the client lags, is there something to await. An error leaves
this module as an exception, before or after the first byte: `api/border.py` decides in one place how it is told. A
client that leaves cancels the coroutine. A stream that has nothing to say for a while sends a comment, so that nobody
on its way takes it for dead: one timer a stream, which a write does not touch. Refuses to know what the events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functionary_vllm.api.connection import while_connected
from functionary_vllm.api.wire import dumps
from functionary_vllm.errors import ApiError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip
_LOOKS = 4  # so many times in the time without a write that calls for a comment
Write = Callable[[bytes], Awaitable[None] | None]
MEDIA_TYPE = "text/event-stream"


def error_event(error: ApiError) -> bytes:
    """The end of a stream that failed after its first byte."""
    return b"data: %b\n\n%b" % (dumps(error.envelope()), DONE)


class EventStream(Response):
    """Sends what `answer` writes, each write as it comes; an empty one only counts as a sign of life.

    `keep_alive`: seconds without a write after which a comment goes out, and with it the status; 0 for none. None does
    before the request is `admitted`, since it may still be refused.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        answer: Callable[[Write], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
        keep_alive: float = 0,
        admitted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._admitted = admitted
        self._answer = answer
        self._keep_alive = keep_alive
        self.status_code = 200
        self.background = None
        # A proxy that buffers or caches would undo the streaming.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        channel = _Channel(scope, send, self.raw_headers, self._admitted)
        if self._keep_alive:
            channel.keep_alive(self._keep_alive)
        try:
            async with while_connected(receive):
                await self._answer(channel.write)
        finally:
            channel.close()
        await send({"type": "http.response.body", "body": DONE, "more_body": False})


class _Channel:
    """One response's way to the client."""

    __slots__ = ("_admitted", "_begun", "_comment", "_headers", "_quiet", "_send", "_timer", "_write")

    def __init__(self, scope: Scope, send: Send, headers: Any, admitted: Callable[[], bool]) -> None:
        self._admitted = admitted
        self._send = send
        self._headers = headers
        self._begun = False
        self._quiet = True  # since the last look
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Future[None] | None = None
        # What our own server lends (serving/protocol.py): a plain function in the place of ASGI's coroutines.
        lent = (scope.get("extensions") or {}).get("functionary.stream", {})
        self._write: Write = lent.get("write", self._send_body)

    def write(self, data: bytes) -> Awaitable[None] | None:
        self._quiet = False
        if self._begun:
            return self._write(data) if data else None
        self._begun = True
        return at_once(self._begin(data))

    def keep_alive(self, after: float, looks: int = 0) -> None:
        """Look now and then, until `close`; `looks` is how often nothing had been written."""
        if looks >= _LOOKS and self._admitted():
            looks = 0
            if self._comment is None or self._comment.done():
                lag = self.write(KEEP_ALIVE)
                self._comment = None if lag is None else asyncio.ensure_future(lag)
        self._quiet = True
        self._timer = asyncio.get_running_loop().call_later(after / _LOOKS, self._look, after, looks)

    def _look(self, after: float, looks: int) -> None:
        self.keep_alive(after, looks + 1 if self._quiet else 0)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    async def _begin(self, data: bytes) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _send_body(self, data: bytes) -> Awaitable[None] | None:
        return at_once(self._send({"type": "http.response.body", "body": data, "more_body": True}))


def at_once(sending: Awaitable[None]) -> Awaitable[None] | None:
    """Run an awaitable up to where it waits. None when it did not: an ASGI send waits only for a client that lags.

    What is returned is its rest, to be awaited.
    """
    begun: Any = sending.__await__()
    try:
        waits_for = next(begun)
    except StopIteration:
        return None
    return _Rest(begun, waits_for)


class _Rest:
    """The rest of an awaitable that waits: it is told how that ended, and what it waits for next is passed on."""

    def __init__(self, begun: Any, waits_for: Any) -> None:
        self._begun = begun
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    told = yield waits_for
                except BaseException as error:
                    waits_for = self._begun.throw(error)
                else:
                    waits_for = self._begun.send(told)
            except StopIteration:
                return
