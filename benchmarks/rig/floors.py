"""The floors: servers that do nothing but send chunks that are ready, one a token, at the ticks that were recorded.

    python -m benchmarks.rig.floors raw|asgi --port PORT --recordings FILE

`raw` is an asyncio protocol on uvloop, `asgi` a bare ASGI application on uvicorn with uvloop and httptools. In: the
recordings of the run; a request's `seed` is the number of its recording. Out: its `chunks`, each a write of its own,
as the streams of a server that has nothing to do. Refuses to look at the rest of the request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

_SEED = re.compile(rb'"seed": ?(\d+)')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Chunks:
    """The events of one answer, `data: …` each; `interval` in seconds."""

    events: list[bytes]
    interval: float


def read_chunks(path: Path) -> list[Chunks]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Chunks([chunk.encode() for chunk in line["chunks"]], line["interval_ms"] / 1000) for line in lines]


def wait(now: float, interval: float) -> float:
    """Seconds until the next tick. Rounded, as a timer may wake a little early."""
    return (round(now / interval) + 1) * interval - now if interval else 0.0


class Raw(asyncio.Protocol):
    """Answers its one request by timers, without a task."""

    def __init__(self, recorded: list[Chunks]) -> None:
        self._recorded = recorded
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._sent = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            self._transport.close()
        elif found := _SEED.search(self._received):
            chunks = self._recorded[int(found[1])]
            self._events = [b"%x\r\n%b\r\n" % (len(event), event) for event in chunks.events]
            self._interval = chunks.interval
            self._transport.write(_HEAD)
            self._next()

    def _next(self) -> None:
        if self._interval:
            now = self._loop.time()
            self._loop.call_at(now + wait(now, self._interval), self._write)
        else:
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._events[self._sent])
        self._sent += 1
        if self._sent < len(self._events):
            self._next()
        else:
            self._transport.write(b"0\r\n\r\n")
            self._transport.close()


class Application:
    """The same as an ASGI application."""

    def __init__(self, recorded: list[Chunks]) -> None:
        self._recorded = recorded

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "POST":
            await self._stream(receive, send)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        found = _SEED.search(body)
        chunks = self._recorded[int(found[1]) if found else 0]
        loop = asyncio.get_running_loop()
        for event in chunks.events:
            await asyncio.sleep(wait(loop.time(), chunks.interval))
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def serve_raw(recorded: list[Chunks], port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Raw(recorded), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A server that streams ready chunks.")
    parser.add_argument("kind", choices=["raw", "asgi"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--recordings", type=Path, required=True)
    options = parser.parse_args()
    recorded = read_chunks(options.recordings)
    if options.kind == "raw":
        uvloop.run(serve_raw(recorded, options.port))
    else:
        uvicorn.run(
            Application(recorded), port=options.port, loop="uvloop", http="httptools", lifespan="off",
            access_log=False, log_level="warning",
        )  # fmt: skip


if __name__ == "__main__":
    main()
