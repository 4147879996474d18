"""A load client that costs next to nothing: raw sockets, bytes kept as they come, understood after the clock stops.

In: a request body, and how many streams of it. Out: every answer's bytes, and the server's CPU clock before them, when
all streams had begun, and after them. `fold` then says what an answer held, so that a figure of wrong answers can
be thrown away. Refuses to know about servers.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_BREAK = 0.0005  # between two looks at the sockets: the load leaves the engine its core, and reads in larger pieces


@dataclass(frozen=True, slots=True)
class Load:
    """The same request so many times at once."""

    port: int
    body: bytes
    streams: int
    timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class Mark:
    """Where things stood at one moment: the clock on the wall, the server's CPU, events received."""

    time: float
    cpu: float
    events: int


@dataclass(slots=True)
class Drained:
    """What came back. `begun`: each stream had its first event, `moved`: one had its second; None when answers ended
    before that."""

    begin: Mark
    end: Mark
    begun: Mark | None = None
    moved: float | None = None
    answers: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Stream:
    parts: list[bytes] = field(default_factory=list)
    events: int = 0


def drain(load: Load, cpu: Callable[[], float]) -> Drained:
    """Run the load. Raises TimeoutError, ConnectionError."""
    events = 0

    def mark() -> Mark:
        return Mark(time.monotonic(), cpu(), events)

    start = mark()
    result = Drained(start, start)
    begun = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(load.streams):
            connection = socket.create_connection(("127.0.0.1", load.port), 10)
            connection.sendall(post(load.body))
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, _Stream())
        while len(result.answers) < load.streams:
            for key, _ in selector.select(1.0):
                connection, stream = key.fileobj, key.data  # type: ignore[assignment]
                if data := connection.recv(1 << 18):
                    stream.parts.append(data)
                    count = data.count(b"\n\n")
                    begun += stream.events == 0 < count
                    stream.events += count
                    events += count
                else:
                    selector.unregister(connection)
                    connection.close()
                    result.answers.append(b"".join(stream.parts))
            if begun == load.streams and result.begun is None and not result.answers:
                result.begun = mark()
            if result.begun and result.moved is None and events > load.streams:
                result.moved = time.monotonic()
            if time.monotonic() - start.time > load.timeout:
                raise TimeoutError(f"{len(result.answers)} of {load.streams} answers after {load.timeout:.0f} s")
            time.sleep(_BREAK)
    result.end = mark()
    return result


def post(body: bytes) -> bytes:
    """A request whose connection ends with its answer."""
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + b"\r\n\r\n" + body


@dataclass(slots=True)
class Folded:
    """An answer put together: `done` when the stream ended as it must, `deltas` the events that carried something."""

    text: str = ""
    name: str = ""
    arguments: str = ""
    finish: str = ""
    deltas: int = 0
    done: bool = False


def fold(answer: bytes) -> Folded:
    """A streamed or a whole answer. Raises ValueError for what is neither."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"{head[:40]!r} {rest[:200]!r}")
    body = _unchunked(rest) if b"transfer-encoding: chunked" in head.lower() else rest
    folded = Folded()
    if b"text/event-stream" not in head.lower():
        _add(folded, json.loads(body)["choices"][0], "message")
        folded.done = True
        return folded
    for event in body.decode().split("\n\n"):
        if event == "data: [DONE]":
            folded.done = True
        elif event.startswith("data: ") and (choices := json.loads(event[6:])["choices"]):
            _add(folded, choices[0], "delta")
    return folded


def _add(folded: Folded, choice: dict[str, Any], key: str) -> None:
    delta = choice[key]
    text = delta.get("content") or ""
    calls = delta.get("tool_calls") or []
    folded.text += text
    folded.deltas += bool(text or calls)
    for call in calls:
        folded.name += call["function"].get("name") or ""
        folded.arguments += call["function"].get("arguments") or ""
    folded.finish = choice.get("finish_reason") or folded.finish


def _unchunked(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        line = body.index(b"\r\n", at)
        size = int(body[at:line], 16)
        pieces.append(body[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return b"".join(pieces)
