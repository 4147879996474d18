"""Server-sent events as an ASGI response: one write an engine step, one task a request.

In: an async iterator of byte strings, each whole events. Out: the status is sent only when the first of them is
there, so that a refusal keeps its HTTP code; every stream ends in `data: [DONE]`. An error leaves this module as an
exception, before or after the first byte: `api/border.py` decides in one place how it is told. A client that leaves
closes the iterator. Refuses to know what the events say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functionary_vllm.api.connection import while_connected
from functionary_vllm.api.wire import dumps
from functionary_vllm.errors import ApiError

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"


def error_event(error: ApiError) -> bytes:
    """The end of a stream that failed after its first byte."""
    return b"data: %b\n\n%b" % (dumps(error.envelope()), DONE)


class EventStream(Response):
    """Sends what `writes` yields as it comes; an empty write only counts as a sign of life."""

    media_type = MEDIA_TYPE

    def __init__(self, writes: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None) -> None:
        self._writes = writes
        self.status_code = 200
        self.background = None
        # A proxy that buffers or caches would undo the streaming.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        async with while_connected(receive), aclosing(self._writes):
            async for data in self._writes:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})
