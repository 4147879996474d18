"""uvicorn's HTTP protocol, which lends its connection to responses that stream.

In: requests, as uvicorn parses them. Out: the same ASGI application calls, with one extension in their scope: a
function that writes a piece of the body to the connection as one chunk of HTTP, without the coroutines that an ASGI
`send` goes through. The response begins and ends by `send`, so that headers, logs and middleware are as for any
other; where a server has no such extension, `send` is all there is. It also tells when it is the client's turn, for
whoever looks after clients that stand still (`lifecycle.py`). Refuses to know what is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class LendingProtocol(HttpToolsProtocol):
    _heard = 0

    def data_received(self, data: bytes) -> None:
        self._heard += 1
        super().data_received(data)

    def awaited(self) -> tuple[int, int] | None:
        """While it is the client's turn: how many bytes it has not taken, and how often it has sent some; else None."""
        untaken = self.transport.get_write_buffer_size()
        cycle = self.cycle
        if untaken or cycle is None or (cycle.more_body and not cycle.response_complete):
            return untaken, self._heard
        return None

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # The application's task has been made, and has not run yet.
        self.scope["extensions"] = {"functionary.stream": {"write": writer_to(self.cycle)}}


def writer_to(cycle: Any) -> Callable[[bytes], Awaitable[None] | None]:
    """Writes pieces of the body of `cycle`, a response that was begun without a content-length.

    None: it is written, or nobody is there to read it. Otherwise the client lags, and what is returned writes it when
    awaited.
    """
    flow, transport = cycle.flow, cycle.transport

    def write(body: bytes) -> Awaitable[None] | None:
        if cycle.disconnected:
            return None
        if flow.write_paused:
            return write_later(body)
        transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return None

    async def write_later(body: bytes) -> None:
        while flow.write_paused:
            await flow.drain()
        write(body)

    return write
