"""serve.py with vLLM while things go wrong: its engine dies or hangs, its clients leave, it is told to stop.

Where only vLLM's processes matter, its engine core plays recordings (benchmarks/rig/replay_core.py). What is counted as
running and waiting are vLLM's own gauges; a stream that goes on all the while keeps them fresh.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.test_drain import BEYOND_S, PATH, STREAMS, busy, error_of, signals
from tests.test_serve import children, pasted, serving
from tests.test_slow_clients import connected, posted
from tests.test_workers import all_gone, counted

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc"),
]
ENDED_S = 5  # from when a loss is noticed to the last stream's end
STALL_S = 4
NOTICED_S = 2  # looks, and what they are late on a busy machine
PLAYED = ["--scheduler-cls", "benchmarks.rig.replay_core.ReplayScheduler", "--max-num-seqs", "64", "--port", "0"]
PLAYED += ["--distributed-executor-backend", "benchmarks.rig.replay_core.ReplayExecutor"]
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Count."}]}


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builtin_model: Path) -> list[str]:
    """An engine core that talks for five minutes, a token every 100 ms; with `"seed": 1` it says three tokens."""
    file = tmp_path / "recordings.jsonl"
    recordings = [{"token_ids": [400] * count, "interval_ms": 100} for count in (3000, 3)]
    file.write_text("".join(json.dumps(recording) + "\n" for recording in recordings))
    monkeypatch.setenv("REPLAY_RECORDINGS", str(file))
    return [*PLAYED, "--engine-stall-seconds", str(STALL_S)]


def core_of(pid: int) -> int:
    [core] = [child for child in children(pid) if Path(f"/proc/{child}/comm").read_text().startswith("VLLM::Engine")]
    return core


def all_end(base: str, pid: int, how: signal.Signals, within_s: float) -> None:
    """Streams and a whole answer, whose engine gets this signal, are told so."""
    lost_at = 0.0

    async def then(_: httpx.AsyncClient) -> None:
        nonlocal lost_at
        os.kill(core_of(pid), how)
        lost_at = time.monotonic()

    streams, whole = asyncio.run(busy(base, ASKED, then))
    took = time.monotonic() - lost_at
    print(f"{how.name}: {len(streams)} streams and an answer had ended {took:.2f} s later")
    assert [error_of(events)["code"] for events in streams] == ["engine_unavailable"] * STREAMS
    assert whole.status_code == 503
    assert took < within_s


def test_what_is_under_way_ends_with_an_engine_that_dies_and_it_is_started_again(played: list[str]) -> None:
    with serving(*played, "--engine-restarts", "1") as (process, printed):
        base, _ = pasted(printed)
        all_end(base, process.pid, signal.SIGKILL, NOTICED_S + ENDED_S)
        with httpx.Client(base_url=base, timeout=60) as client:
            deadline = time.monotonic() + 120
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < deadline
                assert client.get("/health").status_code == 200
                refused = client.post(PATH, json=ASKED)
                assert refused.status_code == 503
                assert refused.headers["retry-after"]
                time.sleep(1)
            answer = client.post(PATH, json={**ASKED, "seed": 1})
            assert answer.status_code == 200, answer.text
            assert "vllm:generation_tokens_total" in client.get("/metrics").text
        left = children(process.pid)
        # It hangs, and may not be started again.
        all_end(base, process.pid, signal.SIGSTOP, STALL_S + NOTICED_S + ENDED_S)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 1
        assert rest.strip().splitlines()[-1].startswith("serve.py: The engine has work and has said nothing for 4 s")
        assert "Traceback" not in rest
        assert all_gone(left)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_several_workers_end_with_their_engine(played: list[str], how: signal.Signals) -> None:
    with serving(*played, "--api-workers", "2") as (process, printed):
        started = children(process.pid)
        all_end(pasted(printed)[0], process.pid, how, STALL_S + NOTICED_S + ENDED_S)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 1
        assert rest.strip().splitlines()[-1].startswith("serve.py: The engine has died, or hangs")
        assert all_gone(started)


class Server:
    """One whose engine is never quite idle."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._client = httpx.Client(base_url=base, timeout=60)

    def close(self) -> None:
        self._client.close()

    def counts(self) -> tuple[float, float]:
        text = self._client.get("/metrics").text
        waiting = counted(text, "vllm:num_requests_waiting") + counted(text, "functionary_requests_waiting")
        return counted(text, "vllm:num_requests_running"), waiting

    def until(self, condition: Callable[[float, float], bool], within_s: float = 120) -> float:
        """How long it took."""
        began = time.monotonic()
        while not condition(*self.counts()):
            assert time.monotonic() - began < within_s, self.counts()
            time.sleep(0.02)
        return time.monotonic() - began


ENDLESS = {**ASKED, "max_tokens": 4000, "ignore_eos": True}
ENGINE = ["--port", "0", "--kv-cache-memory-bytes", str(1 << 30), "--max-num-seqs", str(STREAMS + 1)]


@contextmanager
def asking(base: str, **fields: Any) -> Iterator[socket.socket]:
    with connected(base, 1 << 20) as client:
        client.sendall(posted({**ENDLESS, **fields}))
        yield client


@pytest.fixture(scope="module")
def server(builtin_model: Path) -> Iterator[Server]:
    """Prefills in small parts: an engine hears of nothing while it is in a step."""
    parts = ["--enable-chunked-prefill", "--max-num-batched-tokens", "64", "--no-enable-prefix-caching"]
    with serving(*ENGINE, *parts, "--drain-seconds", "20") as (process, printed):
        running = Server(pasted(printed)[0])
        with asking(running.base, stream=True, max_tokens=8000):
            running.until(lambda running, _: running == 1)
            yield running
        running.until(lambda running, waiting: running + waiting == 0)
        told = asyncio.run(busy(running.base, {**ENDLESS, "max_tokens": 60}, signals(process, signal.SIGTERM)))
        for events in told[0]:
            assert events[-1] == "[DONE]"
            assert "error" not in json.loads(events[-2])
        assert told[1].status_code == 200
        assert process.wait(BEYOND_S) == 0
        running.close()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("state", ["queued", "prefill", "decode"])
def test_nothing_is_left_of_a_client_that_is_killed(server: Server, state: str, stream: bool, n: int) -> None:
    with ExitStack() as stack:
        others = 1.0
        if state == "queued":
            for _ in range(STREAMS // 4):
                stack.enter_context(asking(server.base, n=4))
            others += STREAMS
            server.until(lambda running, _: running == others)
        words = 800 if state == "prefill" else 1
        asked = {"messages": [{"role": "user", "content": "word " * words}], "stream": stream, "n": n}
        with asking(server.base, **asked) as client:
            if state == "queued":
                server.until(lambda _, waiting: waiting > 0)
            else:
                server.until(lambda running, _: running > others)
            if state == "decode":
                server.until(lambda running, _: running == others + n)
                if stream:
                    client.recv(1000)
            client.close()
            took = server.until(lambda running, waiting: (running, waiting) == (others, 0), within_s=1)
            print(f"{state}, {'stream' if stream else 'whole'}, n={n}: nothing left after {took:.2f} s")
    server.until(lambda running, waiting: (running, waiting) == (1, 0))
