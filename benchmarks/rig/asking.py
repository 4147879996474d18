"""One request on a connection of its own, by asyncio: what came back and when; or a client that leaves in the middle.

In: a port, a body, where to leave. Out: an Answer, whatever happens: what the server told, or that it told nothing.
Refuses to know what is asked and why.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rig.drain import post
from benchmarks.rig.servers import Program
from functionary_vllm.models import ensure_base

_PATIENCE_S = 120.0
WORDS = "It rained all day, and nobody went out. "


@dataclass(slots=True)
class Answer:
    """`times` are those at which bytes came, from the request's begin. `status` 0: no answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    times: list[float] = field(default_factory=list)
    left: bool = False

    @property
    def whole(self) -> bool:
        """It was answered, and to the end: a stream to its [DONE]."""
        if "text/event-stream" in self.headers.get("content-type", ""):
            return b"data: [DONE]" in self.body
        return self.status > 0 and len(self.body) >= int(self.headers.get("content-length", 0))

    @property
    def error(self) -> bool:
        return b'data: {"error"' in self.body


async def ask(port: int, body: dict[str, Any] | bytes, leave_at: int | None = None) -> Answer:
    """`leave_at`: after so many pieces the client is gone, as if it had been killed; 0: at once."""
    answer = Answer()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    begin = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            writer.write(post(body if isinstance(body, bytes) else json.dumps(body).encode()))
            head = b""
            while leave_at is None or len(answer.times) < leave_at:
                if not (data := await reader.read(1 << 16)):
                    break
                answer.times.append(time.monotonic() - begin)
                if answer.status:
                    answer.body += data
                    continue
                head += data
                if b"\r\n\r\n" in head:
                    head, _, answer.body = head.partition(b"\r\n\r\n")
                    first, *lines = head.decode("latin-1").split("\r\n")
                    answer.status = int(first.split()[1])
                    answer.headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
            else:
                answer.left = True
                writer.transport.abort()  # a reset, as the system sends for a process that is gone
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()
    return answer


def unread(port: int, body: dict[str, Any]) -> socket.socket:
    """A client that asks, and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(post(json.dumps(body).encode()))
    return client


async def metric(port: int, *names: str) -> float:
    """The sum of these metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read(-1)).decode()
    writer.close()
    lines = [line.rpartition(" ") for line in text.split("\n") if line.startswith(names)]
    return sum(float(value) for name, _, value in lines if name.partition("{")[0] in names)


async def until_idle(port: int, within_s: float, others: float = 0) -> float:
    """Seconds until nothing runs or waits, but for `others`. Raises TimeoutError."""
    begin = time.monotonic()
    while await metric(port, "functionary_requests_running", "functionary_requests_waiting") > others:
        if time.monotonic() - begin > within_s:
            raise TimeoutError("requests of clients that left are still there")
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


def replay(
    port: int, folder: Path, recordings: Sequence[dict[str, Any]], *flags: str, program: Sequence[str] = ("serve.py",)
) -> Program:
    """A server that plays these."""
    file = folder / "recordings.jsonl"
    file.write_text("".join(json.dumps(recording) + "\n" for recording in recordings))
    command = [sys.executable, *program, "--engine", "replay", "--recordings", str(file), "--format", "hermes"]
    return Program(
        "replay", [*command, "--tokenizer", str(ensure_base()), "--served-model-name", "model", *flags], port
    )


def body(recording: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}], "metadata": {"recording": recording}, **fields}


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted copies, the nearest rank; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def all_of(asked: Sequence[Awaitable[Answer]]) -> list[Answer]:
    return list(await asyncio.gather(*asked))
