"""How late a server is for small things: GET /health at fixed times, while a large request arrives each second.

    python -m benchmarks.rig.lag --port PORT --seconds 10 --seed 3 --tools 100

In: a server under load. Out: one line of JSON: lateness in milliseconds from the planned time of each probe to its
answer (a probe that could not be sent in time counts from its plan), and how many large requests were answered 200. A
process of its own, so that whoever makes the load does not delay the probe. Refuses to know what the load is.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import time
from typing import Any

from benchmarks.rig.drain import post

_PERIOD = 0.01
_PROBE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def large_body(seed: int, tools: int, turn: int) -> bytes:
    """A request with so many tools, other ones each time, so that no cache knows them."""

    def tool(number: int) -> dict[str, Any]:
        properties: dict[str, Any] = {
            name: {"type": kind, "description": f"The {name} of entry {turn}-{number}."}
            for name, kind in (("title", "string"), ("count", "integer"), ("price", "number"), ("urgent", "boolean"))
        }
        properties["state"] = {"type": "string", "enum": ["open", "closed", f"s{turn}"]}
        parameters = {"type": "object", "properties": properties, "required": ["title", "count"]}
        return {"type": "function", "function": {"name": f"entry_{turn}_{number}", "parameters": parameters}}

    asked = {
        "model": "model",
        "messages": [{"role": "user", "content": "Enter it."}],
        "stream": True,
        "seed": seed,
        "max_tokens": 600,
        "tools": [tool(number) for number in range(tools)],
    }
    return json.dumps(asked).encode()


def read_answer(connection: socket.socket) -> None:
    """One answer of a connection that stays open. Raises ConnectionError unless it is a 200."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        if not (data := connection.recv(4096)):
            raise ConnectionError("the connection was closed")
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(f"GET /health: {head[:40]!r}")
    length = re.search(rb"content-length: *(\d+)", head.lower())
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        missing -= len(connection.recv(missing))


def probe(options: argparse.Namespace) -> dict[str, Any]:
    large = [post(large_body(options.seed, options.tools, turn)) for turn in range(int(options.seconds))]
    time.sleep(options.after)
    address = ("127.0.0.1", options.port)
    health = socket.create_connection(address, 10)
    late: list[float] = []
    heads: dict[Any, bytes] = {}
    with selectors.DefaultSelector() as selector:
        begin = time.monotonic()
        while (planned := begin + len(late) * _PERIOD) < begin + options.seconds:
            time.sleep(max(0.0, planned - time.monotonic()))
            if large and planned - begin > options.seconds - len(large):
                connection = socket.create_connection(address, 10)
                connection.sendall(large.pop())
                selector.register(connection, selectors.EVENT_READ)
                heads[connection] = b""
            health.sendall(_PROBE)
            read_answer(health)
            late.append((time.monotonic() - planned) * 1000)
            for key, _ in selector.select(0):
                if not (data := key.fileobj.recv(1 << 16)):  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)
                heads[key.fileobj] = heads[key.fileobj] or data[:16]
    answered = sum(head.startswith(b"HTTP/1.1 200") for head in heads.values())
    return {"late_ms": late, "large": len(heads), "answered": answered}


def main() -> None:
    parser = argparse.ArgumentParser(description="Lateness of GET /health while large requests arrive.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--after", type=float, default=0, help="seconds to wait before the first probe")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="the recording that answers the large requests")
    parser.add_argument("--tools", type=int, default=100)
    print(json.dumps(probe(parser.parse_args())))


if __name__ == "__main__":
    main()
