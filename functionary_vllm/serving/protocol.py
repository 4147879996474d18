"""uvicorn's HTTP protocol, which lends its connection to responses that stream.

In: requests, as uvicorn parses them. Out: the same ASGI application calls, with one extension in their scope: a
function that writes a piece of the body to the connection as one chunk of HTTP, without the coroutines that an ASGI
`send` goes through. The response begins and ends by `send`, so that headers, logs and middleware are as for any
other; where a server has no such extension, `send` is all there is. It also tells when it is the client's turn, for
whoever looks after clients that stand still (`lifecycle.py`). Refuses to know what is written.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TCP_INFO = getattr(socket, "TCP_INFO", -1)  # tcp(7): tcpi_bytes_acked are its bytes 120 to 127


class LendingProtocol(HttpToolsProtocol):
    _heard = 0

    def data_received(self, data: bytes) -> None:
        self._heard += 1
        super().data_received(data)

    def awaited(self) -> int | None:
        """While it is the client's turn: a number that rises with whatever it takes or sends. None: it is not."""
        untaken = self.transport.get_write_buffer_size()
        cycle = self.cycle
        if untaken or cycle is None or (cycle.more_body and not cycle.response_complete):
            return self._heard + self._taken(untaken)
        return None

    def _taken(self, untaken: int) -> int:
        """What the client has acknowledged. Where the system does not say: what lies here falls as it takes some."""
        try:
            info = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 128)
            return int.from_bytes(info[120:128], sys.byteorder)
        except (OSError, AttributeError, TypeError):  # a Unix socket, another system, a connection that has ended
            return -untaken


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
