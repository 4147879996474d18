"""serve.py told to stop while it is busy, as a process with the replay engine: who is refused, cut, or let finish."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.test_serve import pasted, serving

STREAMS = 32
BEYOND_S = 5  # from the end of the drain to that of the process
PATH = "/v1/chat/completions"


@pytest.fixture
def replay(tmp_path: Path, base_model: Path) -> list[str]:
    """`short` takes 2 s, `long` more than any test waits."""
    steps = {"short": 20, "long": 4000}
    recordings = [{"id": name, "text": "word " * count, "interval_ms": 100} for name, count in steps.items()]
    file = tmp_path / "recordings.jsonl"
    file.write_text("".join(json.dumps(recording) + "\n" for recording in recordings))
    flags = ["--engine", "replay", "--recordings", str(file), "--tokenizer", str(base_model), "--format", "hermes"]
    return [*flags, "--port", "0"]


def asked(recording: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}], "metadata": {"recording": recording}}


async def streamed(client: httpx.AsyncClient, begun: asyncio.Semaphore, body: dict[str, Any]) -> list[str]:
    """The events of one stream; `begun` is released with the first."""
    events: list[str] = []
    async with client.stream("POST", PATH, json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                if not events:
                    begun.release()
                events.append(line.removeprefix("data: "))
    return events


async def busy(
    base: str, body: dict[str, Any], then: Callable[[httpx.AsyncClient], Awaitable[object]]
) -> tuple[list[list[str]], httpx.Response]:
    """Streams and a whole answer under way, `then` something happens; what they were told."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:
        begun = asyncio.Semaphore(0)
        streams = [asyncio.create_task(streamed(client, begun, body)) for _ in range(STREAMS)]
        whole = asyncio.create_task(client.post(PATH, json=body))
        for _ in streams:
            await begun.acquire()
        await then(client)
        return await asyncio.gather(*streams), await whole


def signals(process: subprocess.Popen[str], *numbers: int) -> Callable[[httpx.AsyncClient], Awaitable[object]]:
    async def send(client: httpx.AsyncClient) -> None:
        process.send_signal(numbers[0])
        while (await client.get("/ready")).status_code != 503:  # noqa: ASYNC110 - polled, as others do
            await asyncio.sleep(0.02)
        for number in numbers[1:]:
            process.send_signal(number)

    return send


def error_of(events: list[str]) -> dict[str, Any]:
    assert events[-1] == "[DONE]"
    error: dict[str, Any] = json.loads(events[-2])["error"]
    return error


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_under_way_finishes_and_what_comes_is_refused(replay: list[str], workers: str) -> None:
    with serving(*replay, "--api-workers", workers) as (process, printed):
        base, _ = pasted(printed)
        told: list[httpx.Response] = []

        async def then(client: httpx.AsyncClient) -> None:
            await signals(process, signal.SIGTERM)(client)
            told.extend([await client.get("/health"), await client.post(PATH, json=asked("short"))])

        streams, whole = asyncio.run(busy(base, asked("short"), then))
        assert process.wait(BEYOND_S) == 0
        for events in streams:
            assert events[-1] == "[DONE]"
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "stop"
        assert whole.json()["choices"][0]["finish_reason"] == "stop"
        assert whole.headers["connection"] == "close"
        health, refused = told
        assert health.status_code == 200
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("drain_s", "numbers"), [(1, [signal.SIGINT]), (60, [signal.SIGTERM, signal.SIGTERM])], ids=["late", "forced"]
)
def test_what_takes_longer_is_cut_and_told(
    replay: list[str], workers: str, drain_s: int, numbers: list[signal.Signals]
) -> None:
    with serving(*replay, "--api-workers", workers, "--drain-seconds", str(drain_s)) as (process, printed):
        base, _ = pasted(printed)
        streams, whole = asyncio.run(busy(base, asked("long"), signals(process, *numbers)))
        rest, _ = process.communicate(timeout=BEYOND_S)
        assert process.returncode == 0
        assert "Traceback" not in rest
        assert [error_of(events)["code"] for events in streams] == ["engine_unavailable"] * STREAMS
        assert whole.status_code == 503
        assert whole.headers["retry-after"]
