"""Many requests of every kind, and what is left of them in the server: memory, tasks, objects, sockets.

In: how many. Out: the slope of the server's own memory (RssAnon) over requests, after a first fifth that fills caches,
and what is alive once all are gone that was not before; benchmarks/results/soak.json. The requests are streams, whole
answers and calls, clients that leave at any time, refusals, and more at once than there are seats; the engine plays
recordings, so the front end is all that there is.

    python -m benchmarks.soak --requests 50000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.rig.asking import WORDS, Answer, ask, body, replay, until_idle
from benchmarks.rig.servers import Server

RESULT = Path(__file__).parent / "results" / "soak.json"
AT_ONCE = 32
_BREAK_S = 0.1
SEATS = ("--max-running", "24", "--max-waiting", "6")  # fewer than ask at once
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Istanbul", "note": "%s"}}\n</tool_call>'
RECORDINGS: list[dict[str, Any]] = [
    {"id": "text", "text": WORDS * 6, "step": [1, 3]},
    {"id": "call", "text": "Let me see. " + CALL % (WORDS * 4) + "<|im_end|>"},
    {"id": "cut", "text": (CALL % WORDS)[:-40], "finish_reason": "length"},
    {"id": "slow", "text": WORDS * 2, "interval_ms": 5},
]


def request(chance: random.Random) -> tuple[str, dict[str, Any] | bytes, int | None]:
    """Its kind, its body, and when its client leaves."""
    recording = chance.choice([recording["id"] for recording in RECORDINGS])
    properties = {"city": {"type": "string"}, f"note{chance.randrange(2_000)}": {"type": "string"}}
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": properties}}
    asked = body(recording, tools=[{"type": "function", "function": tool}], user=str(chance.random()))
    asked["messages"][0]["content"] = f"Question {chance.random()}? " + WORDS * chance.choice([1, 1, 100])
    match chance.randrange(20):
        case 0:
            return "no JSON", json.dumps(asked).encode()[:-5], None
        case 1:
            return "no such recording", {**asked, "metadata": {"recording": "?"}}, None
        case 2:
            return "bad value", {**asked, "temperature": 9}, None
        case 3 | 4 | 5:
            return "left, stream", {**asked, "stream": True}, chance.randrange(8)
        case 6:
            return "left, whole", body("slow"), 0
        case 7:
            return "n=4", {**asked, "stream": True, "n": 4, "logprobs": True}, None
        case 8 | 9 | 10 | 11:
            return "whole", asked, None
        case _:
            return "stream", {**asked, "stream": True}, None


EXPECTED = {"no JSON": {400}, "no such recording": {400}, "bad value": {400}}  # of the others: 200


def outcome(kind: str, answer: Answer) -> str:
    """`wrong: …` for what must not be."""
    if answer.left:
        return "left"
    if answer.status == 429 and "retry-after" in answer.headers:
        return "429"
    if answer.status in EXPECTED.get(kind, {200}) and answer.whole and not answer.error:
        return str(answer.status)
    return f"wrong: {kind} {answer.status}"


def rss_anon_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def sockets(pid: int) -> int:
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    return sum(link.startswith("socket:") for link in links)


class Soak:
    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.memory: list[tuple[int, float]] = []  # requests so far, MiB

    async def run(self, count: int, every: int = 0) -> None:
        """So many requests; the memory is noted after each `every`."""
        left = count

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                kind, asked, leave_at = request(self._chance)
                told = outcome(kind, await ask(self._server.port, asked, leave_at))
                self.outcomes[told] += 1
                if told == "429":
                    await asyncio.sleep(_BREAK_S)  # else most requests would be refusals
                if every and self.outcomes.total() % every == 0:
                    self.memory.append((self.outcomes.total(), rss_anon_mib(self._server.pid)))

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))

    async def state(self) -> dict[str, Any]:
        """What is alive when nothing is under way."""
        await until_idle(self._server.port, 30)
        await asyncio.sleep(1.5)  # connections that were reset are closed by now
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._server.port}") as client:
            found: dict[str, Any] = (await client.get("/inside")).json()
            return {**found, "sockets": {"open": sockets(self._server.pid)}}


def more(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What there is more of."""
    found = {}
    for what, counts in after.items():
        for name, count in counts.items():
            if count > (was := before[what].get(name, 0)):
                found[f"{what}: {name}"] = count - was
    return found


async def soak(server: Server, requests: int, seed: int) -> dict[str, Any]:
    run = Soak(server, seed)
    await run.run(max(requests // 5, 200))
    before, begin = await run.state(), time.monotonic()
    warm = run.outcomes.total()
    await run.run(requests, every=max(requests // 50, 20))
    took = time.monotonic() - begin
    after = await run.state()
    slope = statistics.linear_regression([n / 1000 for n, _ in run.memory], [mib for _, mib in run.memory]).slope
    return {
        "requests": requests,
        "warm_up": warm,
        "seconds": round(took, 1),
        "outcomes": dict(run.outcomes.most_common()),
        "wrong": sum(count for name, count in run.outcomes.items() if name.startswith("wrong")),
        "rss_anon_mib": {"first": round(run.memory[0][1], 1), "last": round(run.memory[-1][1], 1)},
        "mib_per_1000_requests": round(slope, 3),
        "left_over": more(before, after),
        "memory": [[n, round(mib, 2)] for n, mib in run.memory],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8630)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = replay(
            args.port, Path(folder), RECORDINGS, *SEATS, "--log-level", "error", program=("-m", "benchmarks.rig.inside")
        )
        server = Server(program, Path(folder) / "log")
        try:
            server.wait()
            figures = asyncio.run(soak(server, args.requests, args.seed))
        finally:
            server.stop()
    command = f"python -m benchmarks.soak --requests {args.requests} --seed {args.seed}"
    args.output.write_text(json.dumps({"command": command, **figures}, indent=1) + "\n")
    shown = {name: value for name, value in figures.items() if name != "memory"}
    print(json.dumps(shown, indent=1))
    return int(bool(figures["wrong"] or figures["left_over"] or figures["mib_per_1000_requests"] >= 1))


if __name__ == "__main__":
    sys.exit(main())
