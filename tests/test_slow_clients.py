"""Clients that stand still, against serve.py as a process with the replay engine: closed, and nothing left of them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.test_serve import pasted, serving
from tests.test_workers import counted

STALL_S = 1
BODY = {
    "messages": [{"role": "user", "content": "?"}],
    "metadata": {"recording": "wide"},
    "logprobs": True,
    "top_logprobs": 20,
}


@pytest.fixture
def base(tmp_path: Path, base_model: Path) -> Iterator[str]:
    """Answers of some 8 MB: more than the system keeps for a client that does not read."""
    file = tmp_path / "recordings.jsonl"
    file.write_text(json.dumps({"id": "wide", "text": "word " * 6000, "step": 50, "interval_ms": 5}))
    flags = ["--engine", "replay", "--recordings", str(file), "--tokenizer", str(base_model), "--format", "hermes"]
    with serving(*flags, "--port", "0", "--client-stall-seconds", str(STALL_S)) as (_, printed):
        yield pasted(printed)[0]


def connected(base: str, buffer: int = 4096) -> socket.socket:
    address = urlsplit(base)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect((address.hostname, address.port))
    client.settimeout(30)
    return client


def posted(body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def closed(client: socket.socket) -> bool:
    """Whether the other side ends the connection within the socket's time; what was sent before is thrown away."""
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def running(base: str) -> float:
    return counted(httpx.get(f"{base}/metrics").text, "functionary_requests_running")


@pytest.mark.parametrize("stream", [True, False])
def test_who_never_reads_is_closed_and_the_answer_ended(base: str, stream: bool) -> None:
    with connected(base) as client:
        client.sendall(posted({**BODY, "stream": stream}))
        while not running(base):
            time.sleep(0.01)
        deadline = time.monotonic() + 60
        while running(base):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3 * STALL_S)  # not a byte was read until here
        assert closed(client)


@pytest.mark.parametrize("part", [b"", b"POST /v1/chat", posted({**BODY, "stream": True})[:-20]], ids=len)
def test_who_never_finishes_asking_is_closed(base: str, part: bytes) -> None:
    with connected(base) as client:
        client.sendall(part)
        assert closed(client)


def test_who_reads_slowly_gets_everything(base: str) -> None:
    with connected(base, 65536) as client:
        client.sendall(posted({**BODY, "stream": True}))
        tail = b""
        for _ in range(10):  # what the system keeps on the server's side does not get room for more by that
            time.sleep(STALL_S * 0.3)
            taken = 0
            while taken < 100_000:
                taken += len(client.recv(100_000 - taken))
        while b"[DONE]" not in tail and (more := client.recv(1 << 20)):
            tail = tail[-100:] + more
        assert b"data: [DONE]" in tail
