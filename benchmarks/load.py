"""Load on any OpenAI-compatible endpoint, function calling above all; what it did is written as it goes.

In: an address, a profile or a file of requests, a rate. Out: a JSON Lines file (the run, a line a request, its end) and
the table of benchmarks.report. The loop is open: when each session begins is planned from the seed before the run, a
slow server gets no fewer requests, and latency counts from the planned time. A send that could not be made on time is
counted as late, one that was never made as missed. The other mode, closed, keeps so many sessions under way.

    python -m benchmarks.load --url http://127.0.0.1:8000 --profile tools --rate 20 --duration 60
    python -m benchmarks.load --url http://127.0.0.1:8000 --profile agent --concurrency 64 --requests 500
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import aiohttp
import orjson
import uvloop

from benchmarks.loadgen.client import Client, Record, endpoint
from benchmarks.loadgen.figures import parse_slo, percentile, read_run
from benchmarks.loadgen.folding import Answer
from benchmarks.report import table
from benchmarks.workload import ARRIVALS, PROFILES, Form, Mix, Range, Session, Workload, WorkloadError, arrivals

PAUSE_AFTER_FAILURE_S = 0.1  # of a closed loop's worker: a server that is down is not to be hammered
LAG_INTERVAL_S = 0.01


class EndpointError(RuntimeError):
    """The server cannot be asked for its models; the message is for the person who named it."""


class Load:
    """A run: sends what is planned, writes a line for each request, and knows how far it is."""

    def __init__(self, options: argparse.Namespace, workload: Workload, client: Client, sink: BinaryIO) -> None:
        self.sent = self.running = self.failed = self.done = 0
        self.ttft: deque[float] = deque(maxlen=1000)  # milliseconds, of late
        self.lag: list[float] = []
        self._options = options
        self._workload = workload
        self._client = client
        self._sink = sink
        self._planned = self._unreached = 0
        slots = options.concurrency if options.arrival != "closed" else None
        self._slots = asyncio.Semaphore(slots) if slots else contextlib.nullcontext()

    def write(self, kind: str, content: dict[str, Any]) -> None:
        self._sink.write(orjson.dumps({"type": kind, **content}) + b"\n")

    async def open_loop(self) -> None:
        options = self._options
        async with asyncio.TaskGroup() as sessions:
            for planned in arrivals(options.arrival, options.rate, options.seed, options.burst):
                if planned >= options.duration or self._planned >= options.requests:
                    break
                session = self._workload.session(self._planned)  # made ahead, so that it costs no time at the send
                await asyncio.sleep(max(0.0, planned - self._client.now()))
                sessions.create_task(self._in_a_slot(self._planned, session, planned))
                self._planned += 1

    async def closed_loop(self) -> None:
        async def worker() -> None:
            while self._planned < self._options.requests and self._client.now() < self._options.duration:
                number = self._planned
                self._planned += 1
                session = self._workload.session(number)
                if not await self._converse(number, session, self._client.now()):
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

        async with asyncio.TaskGroup() as workers:
            for _ in range(self._options.concurrency):
                workers.create_task(worker())

    async def _in_a_slot(self, number: int, session: Session, planned: float) -> None:
        """Waits while all of --concurrency is taken; not longer than an answer would be waited for."""
        record = Record(number, 0, planned)
        try:
            async with asyncio.timeout(planned + self._options.timeout - self._client.now()) as wait, self._slots:
                wait.reschedule(None)
                await self._converse(number, session, planned)
        except TimeoutError:
            record.fail("missed")
            self._keep(record, session)

    async def _converse(self, number: int, session: Session, planned: float) -> bool:
        """The turns of a session, each sent when the former was answered; False if one failed."""
        for turn in range(session.turns):
            record = Record(number, turn, planned)
            answers: list[Answer] = []
            self.sent += 1
            self.running += 1
            try:
                body = self._workload.form.body(session.body)
                answers = await self._client.ask(body, record)
            except Exception as error:
                record.fail("generator", repr(error))
            finally:
                self.running -= 1
                self._keep(record, session)
            if record.error or not answers:
                return False
            if self._is_verified(record):
                await self._verify(body, record, answers)
            session.proceed(answers[0])
            planned = self._client.now()
        return True

    def _keep(self, record: Record, session: Session) -> None:
        self.write("request", asdict(record))
        if record.error is None:
            self.done += 1
        elif record.error != "interrupted":
            self.failed += 1
        if record.error:
            self._unreached += session.turns - record.turn - 1
        if record.first_token is not None:
            self.ttft.append((record.first_token - record.planned) * 1000)

    def _is_verified(self, record: Record) -> bool:
        drawn = Random(f"verify {self._options.seed} {record.session} {record.turn}").random()
        return bool(drawn < self._options.verify_whole)

    async def _verify(self, body: dict[str, Any], record: Record, streamed: list[Answer]) -> None:
        """The same request once more, not streamed: it must give the same."""
        again = Record(record.session, record.turn, self._client.now())
        body = {key: value for key, value in body.items() if key != "stream_options"} | {"stream": False}
        whole = await self._client.ask(body, again)
        outcome = "failed" if again.error else "same" if whole == streamed else "differs"
        line: dict[str, Any] = {"session": record.session, "turn": record.turn, "outcome": outcome}
        if again.error:
            line |= {"error": again.error, "message": again.message}
        elif outcome == "differs":
            line |= {"streamed": [asdict(a) for a in streamed], "whole": [asdict(a) for a in whole]}
        self.write("verify", line)

    async def watch_lag(self) -> None:
        """How much later than asked for this loop runs what is due: the error of each time that it takes."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(LAG_INTERVAL_S)
            self.lag.append((time.perf_counter() - begin - LAG_INTERVAL_S) * 1000)

    def end(self, interrupted: bool, cpu_s: float) -> dict[str, Any]:
        lag = sorted(self.lag) or [0.0]
        return {
            "seconds": self._client.now(),
            "interrupted": interrupted,
            "sessions": self._planned,
            "turns_unreached": self._unreached,
            "generator": {
                "lag_p50_ms": percentile(lag, 50),
                "lag_p99_ms": percentile(lag, 99),
                "lag_max_ms": lag[-1],
                "cpu_share": cpu_s / self._client.now(),
            },
        }


async def show_progress(load: Load, client: Client) -> None:
    """One line that is written over on a terminal; a line every few seconds elsewhere."""
    terminal = sys.stderr.isatty()
    every, begin, end = (1.0, "\r\x1b[K", "") if terminal else (5.0, "", "\n")
    tokens = 0
    while True:
        await asyncio.sleep(every)
        rate, tokens = (client.tokens - tokens) / every, client.tokens
        ttft = sorted(load.ttft)
        first = f"  TTFT p50 {percentile(ttft, 50):.0f} p99 {percentile(ttft, 99):.0f} ms" if ttft else ""
        counts = f"sent {load.sent}  running {load.running}  done {load.done}  failed {load.failed}"
        print(f"{begin}{client.now():6.0f} s  {counts}  {rate:.0f} tok/s{first}", end=end, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def beside(*coroutines: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_stopped(drive: Any) -> bool:
    """True if Ctrl-C or SIGTERM ended it; what was under way has been written then."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(drive)
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, task.cancel)
    try:
        await asyncio.wait([task])
        if task.cancelled():
            return True
        task.result()  # raises what it raised
        return False
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)


async def find_model(http: aiohttp.ClientSession, url: str) -> str:
    address = endpoint(url, "/models")
    try:
        async with http.get(address, timeout=aiohttp.ClientTimeout(total=10)) as response:
            if response.status != 200:
                raise EndpointError(f"{address}: status {response.status}: {(await response.text())[:200]}")
            return str((await response.json())["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError) as error:
        raise EndpointError(f"{address}: {error or repr(error)}; --model names the model without asking") from None


async def run_load(options: argparse.Namespace) -> Path:
    """Runs what the options say; gives the file that was written. Raises EndpointError and WorkloadError."""
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    # Servers close idle connections, uvicorn after 5 s; one that is just being closed would look like a failure.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    wait = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=wait) as http:
        form = form_of(options, options.model or await find_model(http, options.url))
        workload = Workload(mix_of(options), form)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("wb", buffering=0) as sink:  # each line is safe when it is written
            await warm_up(http, options, workload)
            client = Client(http, options.url, options.timeout)
            load = Load(options, workload, client, sink)
            load.write("run", about(options, form))
            cpu, client.begin = time.process_time(), time.perf_counter()
            async with beside(load.watch_lag(), show_progress(load, client)):
                drive = load.closed_loop() if options.arrival == "closed" else load.open_loop()
                interrupted = await until_stopped(drive)
            load.write("end", load.end(interrupted, time.process_time() - cpu))
    return Path(options.output)


async def warm_up(http: aiohttp.ClientSession, options: argparse.Namespace, workload: Workload) -> None:
    """One after the other, in no figure; of numbers that the run does not reach, so that no prefix is known."""
    client = Client(http, options.url, options.timeout)
    for number in range(options.warmup):
        session = workload.session(10**9 + number)
        await client.ask(workload.form.body(session.body), Record(number, 0, client.now()))


def form_of(options: argparse.Namespace, model: str) -> Form:
    return Form(
        model=model,
        stream=options.stream,
        usage=options.usage,
        tool_choice=options.tool_choice,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        legacy=options.legacy_functions,
        extra=options.extra_body,
    )


def mix_of(options: argparse.Namespace) -> Mix:
    return Mix(
        profile=options.profile,
        seed=options.seed,
        words=options.words,
        tools=options.tools,
        turns=options.turns,
        shared_prefix=options.shared_prefix,
        dataset=options.dataset,
    )


def about(options: argparse.Namespace, form: Form) -> dict[str, Any]:
    told = {
        key: str(value) if isinstance(value, Path) else None if value == math.inf else value
        for key, value in vars(options).items()
        if key != "api_key"
    }
    return {**told, "model": form.model, "started": datetime.now(UTC).isoformat(timespec="seconds")}


def span(text: str) -> Range:
    """`5` or `1:20`."""
    low, _, high = text.partition(":")
    found = int(low), int(high or low)
    if not 1 <= found[0] <= found[1]:
        raise ValueError(text)
    return found


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description="Load on an OpenAI-compatible server."
    )
    add = flags.add_argument
    add("--url", required=True, help="http://host:port, with or without /v1")
    add("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    add("--model", help="default: the first that the server lists")
    add("--profile", choices=[*PROFILES, "bfcl"], default="tools", help="what is asked (default: tools)")
    add("--dataset", type=Path, metavar="FILE", help="chat requests, one a line, in place of a profile's; or BFCL's")
    add("--arrival", choices=ARRIVALS, help="default: poisson with --rate, closed without")
    add("--rate", type=float, help="sessions a second")
    add("--burst", type=int, default=16, help="sessions that arrive at once, with --arrival burst")
    add("--concurrency", type=int, help="closed: sessions under way (default: 1); open: at most so many, others wait")
    add("--duration", type=float, help="seconds in which sessions begin (default: 60, without --requests)")
    add("--requests", type=int, help="sessions, at most")
    add("--warmup", type=int, default=0, metavar="N", help="requests before the run, in no figure")
    add("--timeout", type=float, default=300.0, help="seconds for an answer, from its planned time")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="default: runs/PROFILE-TIME.jsonl")
    add("--slo", type=parse_slo, default={}, metavar="ttft=500,itl=50", help="limits of goodput in milliseconds")
    add(
        "--verify-whole", type=float, default=0.0, metavar="SHARE", help="of the streams: asked for whole too, compared"
    )
    add("--tool-choice", choices=("auto", "required", "none"))
    add("--max-tokens", type=int, help="default: 256, or what the dataset says")
    add("--temperature", type=float, help="default: the server's; 0 with --verify-whole")
    add("--stream", action=argparse.BooleanOptionalAction, default=True)
    add("--usage", action=argparse.BooleanOptionalAction, default=True, help="ask streams for their usage")
    add("--legacy-functions", action="store_true", help="functions and function_call in place of tools")
    add("--extra-body", type=json.loads, default={}, metavar="JSON", help="fields for each request")
    add("--words", type=span, default=(20, 400), metavar="MIN:MAX", help="length of texts in prompts and tool results")
    add("--tools", type=span, default=(1, 20), metavar="MIN:MAX", help="tools in a request, at most 24")
    add("--turns", type=span, default=(2, 6), metavar="MIN:MAX", help="requests in an agent's session")
    add("--shared-prefix", type=int, default=0, metavar="WORDS", help="the sessions share a system prompt and tools")
    return flags


def parse(arguments: list[str]) -> argparse.Namespace:
    flags = parser()
    options = flags.parse_args(arguments)
    options.arrival = options.arrival or ("poisson" if options.rate else "closed")
    if options.arrival == "closed":
        options.concurrency = options.concurrency or 1
    elif not options.rate or options.rate <= 0:
        flags.error(f"--arrival {options.arrival} needs a --rate above 0")
    if options.legacy_functions and options.tool_choice == "required":
        flags.error("--legacy-functions has no --tool-choice required")
    if options.verify_whole and (options.temperature or not options.stream):
        flags.error("--verify-whole needs streams at --temperature 0")
    if options.verify_whole:
        options.temperature = 0.0
    if options.duration is None:
        options.duration = math.inf if options.requests else 60.0
    options.requests = options.requests or math.inf
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    options.output = options.output or Path("runs") / f"{options.profile}-{stamp}.jsonl"
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a connection is a file
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.freeze()  # what the imports made is not looked at again
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            path = runner.run(run_load(options))
    except (EndpointError, WorkloadError) as error:
        print(f"benchmarks.load: {error}", file=sys.stderr)
        return 2
    run = read_run(path)
    print(f"\n{table({path.stem: run}, options.slo)}\n\n{path}: python -m benchmarks.report {path} --html out.html")
    return 0 if run.records and any(record.error is None for record in run.records) else 1


if __name__ == "__main__":
    sys.exit(main())
