"""What happens when things go wrong: too many arrivals, clients that are killed or never read, the end, a lost engine.

In: nothing but flags. Out: a row for each, with its figures and whether they are as promised (docs/operations.md), and
benchmarks/results/chaos.json. The engine plays recordings, but for the rows of a lost engine, which need vLLM and the
built-in model. The load shares the machine with the server: times are those of the clients, and longer than its own.

    python -m benchmarks.chaos                           # every row
    python -m benchmarks.chaos --rows capacity drain
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.rig.asking import (
    WORDS,
    Answer,
    all_of,
    ask,
    body,
    metric,
    percentile,
    replay,
    unread,
    until_idle,
)
from benchmarks.rig.servers import Program, Server, descendants, name_of
from benchmarks.soak import rss_anon_mib

RESULT = Path(__file__).parent / "results" / "chaos.json"
STREAMS = 32
DRAIN_S = 2
STALL_S = 4
LOOK_S = 0.5  # how often the engine is looked at
ENDED_S = 5.0

Figures = dict[str, Any]


def recorded(id: str, tokens: int, interval_ms: float, **fields: Any) -> dict[str, Any]:
    return {"id": id, "text": (WORDS * (tokens // 8 + 1)), "interval_ms": interval_ms, **fields}


# ------------------------------------------------------------------------------------------------- too many


UNREAD_S = 45.0  # all that is asked for has been said by then
ARRIVALS, SEATS, ARRIVE_IN_S = 1000, 100, 2.5


async def capacity(server: Server) -> Figures:
    """1,000 arrivals at 400 a second, each of which has its seat for a second: four times what 100 seats take."""

    async def arrive(at: float) -> Answer:
        await asyncio.sleep(at - time.monotonic())
        return await ask(server.port, body("one", stream=True))

    await ask(server.port, body("short"))
    begin = time.monotonic() + 0.5
    answers = await all_of([arrive(begin + i * ARRIVE_IN_S / ARRIVALS) for i in range(ARRIVALS)])
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    first = [answer.times[0] * 1000 for answer in accepted]
    told = [answer.times[-1] * 1000 for answer in refused if answer.times]
    right = [answer.status == 429 and "retry-after" in answer.headers for answer in refused]
    inside = [float(answer.headers.get("openai-processing-ms", "inf")) for answer in refused]
    return {
        "accepted": len(accepted),
        "refused": len(refused),
        "refused_otherwise_than_429_with_retry_after": right.count(False),
        "broken": sum(not answer.whole or answer.error for answer in accepted),
        "end_of_broken": sorted({repr(answer.body[-150:]) for answer in accepted if not answer.whole or answer.error}),
        "first_byte_ms": {"p50": percentile(first, 0.5), "p99": percentile(first, 0.99), "max": max(first)},
        "refusal_ms": {"p50": percentile(told, 0.5), "p99": percentile(told, 0.99), "max": max(told)},
        "refusal_ms_inside": {"p99": percentile(inside, 0.99), "max": max(inside)},
        "holds": all(right) and bool(refused) and percentile(inside, 0.99) < 20,
    }


# ------------------------------------------------------------------------------------------------- clients


async def killed(server: Server) -> Figures:
    """32 clients at once are gone, in each state; how long until nothing of them is left."""
    worst: dict[str, float] = {}
    for n in (1, 4):
        for stream in (True, False):
            for state in ("queued", "decode"):
                asked = body("endless", stream=stream, n=n)
                tasks = [asyncio.create_task(ask(server.port, asked, 10**9)) for _ in range(STREAMS)]
                wanted = SEATS // n if state == "queued" else 1
                others = [asyncio.create_task(ask(server.port, body("endless", n=n), 10**9)) for _ in range(wanted)]
                while await metric(server.port, "functionary_requests_running") < min(SEATS // n, STREAMS):  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
                for task in (*tasks, *others):
                    task.cancel()
                await asyncio.gather(*tasks, *others, return_exceptions=True)
                took = await until_idle(server.port, 30)
                worst[f"{state}, {'stream' if stream else 'whole'}, n={n}"] = round(took, 3)
    return {"seconds_until_nothing_is_left": worst, "holds": max(worst.values()) < 1}


async def beside(server: Server, asked: Figures) -> Figures:
    """The gaps of 8 streams that are read, alone and beside 100 clients that ask this and never read."""

    async def gap_p99() -> float:
        answers = await all_of([ask(server.port, body("paced", stream=True)) for _ in range(8)])
        pairs = [pair for answer in answers for pair in itertools.pairwise(answer.times[2:])]
        return percentile([(after - before) * 1000 for before, after in pairs], 0.99)

    await gap_p99()
    alone, before = await gap_p99(), rss_anon_mib(server.pid)
    clients = [unread(server.port, asked) for _ in range(100)]
    await asyncio.sleep(1)
    meanwhile = await gap_p99()
    most, until = 0.0, time.monotonic() + UNREAD_S
    while time.monotonic() < until:
        most = max(most, rss_anon_mib(server.pid) - before)
        await asyncio.sleep(0.2)
    for client in clients:
        client.close()
    return {"gap_p99_ms": {"alone": alone, "beside": meanwhile}, "ratio": meanwhile / alone, "mib": most}


async def never_read(server: Server) -> Figures:
    """100 answers of 8,000 tokens, 250 a second each."""
    figures = await beside(server, body("wide", stream=True))
    return {**figures, "holds": figures["ratio"] < 1.2 and figures["mib"] < 200}


async def never_read_logprobs(server: Server) -> Figures:
    """100 answers of 4,000 tokens with 20 logprobs each: the largest thing that can be kept for a client."""
    figures = await beside(server, body("logprobs", stream=True, logprobs=True, top_logprobs=20))
    return {**figures, "holds": figures["mib"] < 1024}


# --------------------------------------------------------------------------------------------- the end


async def told_to_stop(server: Server, recording: str) -> tuple[list[Answer], float]:
    """32 streams under way, then SIGTERM; how long the process lives on."""
    tasks = [asyncio.create_task(ask(server.port, body(recording, stream=True))) for _ in range(STREAMS)]
    while await metric(server.port, "functionary_requests_running") < STREAMS:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    os.kill(server.pid, signal.SIGTERM)
    begin = time.monotonic()
    status = await asyncio.to_thread(server.ended, DRAIN_S + 30)
    took = time.monotonic() - begin
    assert status == 0
    return await all_of(tasks), took


async def drain(server: Server) -> Figures:
    """SIGTERM under 32 streams that need less than the drain."""
    answers, took = await told_to_stop(server, "one")
    broken = sum(not answer.whole or answer.error for answer in answers)
    return {"streams": STREAMS, "broken": broken, "exit_s": took, "holds": not broken and took < DRAIN_S + 5}


async def cut(server: Server) -> Figures:
    """The same with streams that need more: each is told."""
    answers, took = await told_to_stop(server, "endless")
    untold = sum(not (answer.whole and answer.error) for answer in answers)
    return {"streams": STREAMS, "untold": untold, "exit_s": took, "holds": not untold and took < DRAIN_S + 5}


# --------------------------------------------------------------------------------------------- the engine


async def lost(server: Server, how: signal.Signals, notice_s: float) -> Figures:
    core = next(pid for pid in descendants(server.pid) if name_of(pid).startswith("VLLM::Engine"))
    asked = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "ignore_eos": True}
    ends: list[float] = []

    async def stream() -> Answer:
        answer = await ask(server.port, {**asked, "stream": True})
        ends.append(time.monotonic())
        return answer

    tasks = [asyncio.create_task(stream()) for _ in range(STREAMS)]
    while await metric(server.port, "vllm:num_requests_running") < STREAMS:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    os.kill(core, how)
    begin = time.monotonic()
    answers = await all_of(tasks)
    status = await asyncio.to_thread(server.ended, 60)
    untold = sum(not (answer.whole and answer.error) for answer in answers)
    last = max(ends) - begin
    holds = not untold and status != 0 and last < notice_s + 2 * LOOK_S + ENDED_S
    return {"streams": STREAMS, "untold": untold, "last_end_s": last, "exit_status": status, "holds": holds}


async def engine_killed(server: Server) -> Figures:
    """kill -9 of the engine's process under 32 streams."""
    return await lost(server, signal.SIGKILL, 0)


async def engine_stopped(server: Server) -> Figures:
    """kill -STOP of it; it counts as dead after --engine-stall-seconds."""
    return await lost(server, signal.SIGSTOP, STALL_S)


# ------------------------------------------------------------------------------------------------- all


Row = Callable[[Server], Coroutine[Any, Any, Figures]]
REPLAYED: dict[str, Row] = {
    "capacity": capacity,
    "killed": killed,
    "never_read": never_read,
    "never_read_logprobs": never_read_logprobs,
    "drain": drain,
    "cut": cut,
}
REAL: dict[str, Callable[[Server], Coroutine[Any, Any, Figures]]] = {
    "engine_killed": engine_killed,
    "engine_stopped": engine_stopped,
}
RECORDINGS = [
    recorded("short", 8, 0),
    recorded("one", 16, 55),
    recorded("paced", 200, 20),
    recorded("endless", 8000, 100),
    recorded("wide", 8000, 80, step=20),
    recorded("logprobs", 4000, 200, step=20),
]


def program(row: str, port: int, folder: Path) -> Program:
    if row in REAL:
        flags = ["--max-num-seqs", str(STREAMS), "--kv-cache-memory-bytes", str(1 << 30)]
        command = [sys.executable, "serve.py", *flags, "--engine-stall-seconds", str(STALL_S)]
        return Program("vllm", command, port)
    flags = ["--drain-seconds", str(DRAIN_S), "--max-running", str(512 if row.startswith("never_read") else SEATS)]
    return replay(port, folder, RECORDINGS, *flags, "--log-level", "error")


def measured(row: str, port: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(program(row, port, Path(folder)), Path(folder) / "log")
        try:
            server.wait()
            return asyncio.run({**REPLAYED, **REAL}[row](server))
        except (TimeoutError, subprocess.TimeoutExpired, ConnectionError, AssertionError) as error:
            return {"holds": False, "failed": f"{type(error).__name__}: {error}"}
        finally:
            server.stop()


def shown(figures: Figures) -> Figures:
    return json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 3))  # type: ignore[no-any-return]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=(*REPLAYED, *REAL), default=[*REPLAYED, *REAL])
    parser.add_argument("--port", type=int, default=8640)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = json.loads(args.output.read_text())["rows"] if args.output.exists() else {}
    for place, row in enumerate(args.rows):
        rows[row] = shown(measured(row, args.port + place))
        print(f"{row}: {json.dumps(rows[row])}", flush=True)
    args.output.write_text(json.dumps({"command": "python -m benchmarks.chaos", "rows": rows}, indent=1) + "\n")
    return int(not all(rows[row]["holds"] for row in args.rows))


if __name__ == "__main__":
    sys.exit(main())
