"""What benchmarks/endtoend.py compares: our server, vLLM's, and AsyncLLM without a server, under one interface.

In: a command, then Work: prompts, the number of tokens each is continued by, and the function that is called if any.
Out: for each Work a Result: when each stream had its first token, how long all took, CPU time of the process that
answers. A stream that has not exactly the tokens that were asked for ends the run: all contenders do the same work
or there is no figure. Refuses to know rounds, ratios and files.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.rig.servers import Program, Server, StartFailed, cpu_seconds, descendants

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 900  # a GPU that compiles and captures graphs takes its time
_MODEL = "model"
_URL = "http://127.0.0.1:{}{}"
# So long a string that no answer gets to its end, where it could stop.
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 4000}},
    "required": ["text"],
}
_TOOLS = {
    "tools": [{"type": "function", "function": {"name": "write", "description": "Keep a text", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "write"}},
}

Message = dict[str, str]


class UnequalWork(RuntimeError):
    """A contender had other prompts or other tokens than it was asked for."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every contender is given at once: `messages` for our server, `shown` for vLLM's, `ids` for the engine.

    `shown` differs where there is a tool: it holds as text what our server makes of the tool, since the built-in
    model's own chat template leaves tools out.
    """

    tool: bool
    tokens: int
    messages: Sequence[list[Message]]
    shown: Sequence[list[Message]]
    ids: Sequence[list[int]]


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds each; `cpu` is what the process that answers took of the CPU, `all_cpu` what the engine took as well."""

    tokens: int
    seconds: float
    first: list[float]
    cpu: float
    all_cpu: float


class HttpContender(Server):
    """An OpenAI-compatible server and its clients."""

    def __init__(self, program: Program, log: Path) -> None:
        super().__init__(program, log)
        self.name = program.name
        self._begin = time.perf_counter()
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
        )

    async def first_token(self) -> float:
        """Seconds from the start of the process to the first streamed token of an answer."""
        body = self._body([{"role": "user", "content": "Hello"}], 2, tool=False)
        while time.perf_counter() - self._begin < START_SECONDS:
            with suppress(aiohttp.ClientConnectionError):
                return (await self._stream(body))[0] - self._begin
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        lines = self._log.read_text(errors="replace").splitlines()
        raise StartFailed(f"{self.name} did not start:\n" + "\n".join(lines[-15:]))

    async def do(self, work: Work) -> Result:
        prompts = work.messages if self.name == "ours" else work.shown
        cpu, all_cpu, begin = self.cpu(), self.all_cpu(), time.perf_counter()
        done = await asyncio.gather(*(self._stream(self._body(p, work.tokens, tool=work.tool)) for p in prompts))
        end = time.perf_counter()
        cpu, all_cpu = self.cpu() - cpu, self.all_cpu() - all_cpu
        if wrong := [tokens for _, tokens in done if tokens != work.tokens]:
            raise UnequalWork(f"{self.name} sent {wrong[0]} tokens where {work.tokens} were asked for")
        return Result(sum(t for _, t in done), end - begin, [first - begin for first, _ in done], cpu, all_cpu)

    async def prompt_ids(self, messages: list[Message], *, tool: bool) -> list[int]:
        body = {"model": _MODEL, "messages": messages, **(_TOOLS if tool and self.name == "ours" else {})}
        return list((await self._post("/tokenize", body))["tokens"])

    async def text_of(self, ids: Sequence[int]) -> str:
        return str((await self._post("/detokenize", {"model": _MODEL, "tokens": list(ids)}))["prompt"])

    def all_cpu(self) -> float:
        return self.cpu() + self.rest_cpu()

    async def close(self) -> None:
        await self._client.close()
        if self._process.poll() is None:
            await asyncio.to_thread(self.stop)

    def _body(self, messages: list[Message], tokens: int, *, tool: bool) -> dict[str, Any]:
        return {
            "model": _MODEL,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **(_TOOLS if tool else {}),
        }

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._client.post(_URL.format(self.port, path), json=body) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def _stream(self, body: dict[str, Any]) -> tuple[float, int]:
        """When the first token came, and how many tokens there were as the server counts them."""
        first = 0.0
        async with self._client.post(_URL.format(self.port, "/v1/chat/completions"), json=body) as response:
            if response.status != 200:
                raise UnequalWork(f"{self.name} answered {response.status}: {(await response.text())[:300]}")
            async for line in response.content:
                if not first and carries_token(line):
                    first = time.perf_counter()
                elif b'"usage":{' in line:
                    return first, int(json.loads(line[6:])["usage"]["completion_tokens"])
        raise UnequalWork(f"{self.name} ended a stream without its usage")


def carries_token(line: bytes) -> bool:
    """Whether a line of an event stream holds something of the answer, beyond the role."""
    if not line.startswith(b"data: {"):
        return False
    return any(
        choice["delta"].get(part)
        for choice in json.loads(line[6:]).get("choices", ())
        for part in ("content", "reasoning", "reasoning_content", "tool_calls")
    )


class OfflineContender:
    """benchmarks/rig/offline.py as a process. `detokenize` is what the next Work is done with."""

    name = "offline"

    def __init__(self, flags: Sequence[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        self._begin = time.perf_counter()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.rig.offline", *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env={**os.environ, **env},
                start_new_session=True,
            )

    async def first_token(self) -> float:
        await self._answer()
        return time.perf_counter() - self._begin

    async def do(self, work: Work, *, detokenize: bool = False) -> Result:
        job = {"prompts": list(work.ids), "tokens": work.tokens, "detokenize": detokenize}
        assert self._process.stdin
        before = self.all_cpu()
        self._process.stdin.write(json.dumps({**job, "schema": SCHEMA if work.tool else None}).encode() + b"\n")
        self._process.stdin.flush()
        answer = await self._answer()
        if wrong := [tokens for tokens in answer["tokens"] if tokens != work.tokens]:
            raise UnequalWork(f"offline made {wrong[0]} tokens where {work.tokens} were asked for")
        all_cpu = self.all_cpu() - before
        return Result(sum(answer["tokens"]), answer["seconds"], answer["first"], answer["cpu"], all_cpu)

    def all_cpu(self) -> float:
        return sum(map(cpu_seconds, (self._process.pid, *descendants(self._process.pid))))

    async def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, 20)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            lines = self._log.read_text(errors="replace").splitlines()
            raise StartFailed("offline ended:\n" + "\n".join(lines[-15:]))
        answer: dict[str, Any] = json.loads(line)
        return answer


Contender = HttpContender | OfflineContender
