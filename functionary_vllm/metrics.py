"""Counters and histograms of ours, beside vLLM's own in prometheus_client's default registry.

In: what was counted of each completion, and the outcome of each HTTP request. Out: what `/metrics` shows under
`functionary_`. A completion's own numbers are plain integers while it runs; the registry's locks are taken at its
beginning and its end. Refuses to know OpenAI's shapes. The collectors belong to the module, not to
an app, so that several apps in one process share them.
"""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from functionary_vllm.formats.base import Format

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# prometheus_client keeps its values in this folder, if it is set when that is imported.
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

HTTP_REQUESTS = Counter(
    "functionary_http_requests", "HTTP requests answered, by route, status and kind.", ["route", "status", "stream"]
)
RUNNING = Gauge(
    "functionary_requests_running", "Completions that are being generated now.", multiprocess_mode="livesum"
)
ABORTED = Counter("functionary_requests_aborted", "Completions whose client left before the end.")
CHUNKS = Counter("functionary_stream_chunks", "Writes of streamed completions, one an engine step and choice.")
TOKENS = Counter("functionary_completion_tokens", "Tokens generated for clients.", ["stream"])
FINISHES = Counter("functionary_finish_reasons", "Choices by the finish_reason they were given.", ["reason"])
CALLS = Counter("functionary_calls", "Function calls begun, by how they ended.", ["outcome"])
UNKNOWN = Counter("functionary_unknown_function_calls", "Function calls begun whose function was not on offer.")
FORMAT = Gauge(
    "functionary_format_info",
    "The format that is served, and whose parser reads it.",
    ["format", "parser"],
    multiprocess_mode="max",
)
PARSER_FAILURES = Counter(
    "functionary_parser_failures", "Answers on which a parser that is not ours failed; the rest was text.", ["format"]
)
FIRST_TOKEN = Histogram(
    "functionary_time_to_first_token_seconds", "From the request to its first engine step.", buckets=_LATENCY
)
FIRST_NAME = Histogram(
    "functionary_time_to_function_name_seconds", "From the request to its first function name.", buckets=_LATENCY
)
LOOP_LAG = Histogram(
    "functionary_event_loop_lag_seconds",
    "How late the event loop came to what was due; looked at ten times a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
_LOOK_EVERY_S = 0.1


async def watch_loop() -> None:
    """Observe how late this loop is, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LOOK_EVERY_S
        await asyncio.sleep(_LOOK_EVERY_S)
        LOOP_LAG.observe(max(0.0, loop.time() - due))


def exposition() -> bytes:
    """What `/metrics` shows: of this process, or of all API workers, which write into one folder."""
    if MULTIPROCESS not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def watch_format(fmt: Format) -> None:
    """Say which format is served, and count where a parser that is not ours fails."""
    FORMAT.labels(fmt.name, fmt.parser).set(1)
    if fmt.parser != Format.parser:
        fmt.on_failure = PARSER_FAILURES.labels(fmt.name).inc


class Counts(Protocol):
    """What a writer has counted of one completion. Times are monotonic; sequences have a slot a choice."""

    writes: int
    first_token: float | None
    first_name: float | None
    completion: list[int]
    begun: int  # calls
    calls: list[int]  # complete ones
    unknown: list[int]
    finish: list[str | None]


class Observation:
    """One completion, from `started` (a monotonic time) to `close`, which tells what was counted meanwhile."""

    __slots__ = ("_started", "_stream")

    def __init__(self, started: float, *, stream: bool) -> None:
        self._started = started
        self._stream = stream
        RUNNING.inc()

    def close(self, counts: Counts, *, aborted: bool = False) -> None:
        RUNNING.dec()
        TOKENS.labels("true" if self._stream else "false").inc(sum(counts.completion))
        if self._stream:
            CHUNKS.inc(counts.writes)
        if aborted:
            ABORTED.inc()
        if counts.first_token is not None:
            FIRST_TOKEN.observe(counts.first_token - self._started)
        if counts.first_name is not None:
            FIRST_NAME.observe(counts.first_name - self._started)
        if unknown := sum(counts.unknown):
            UNKNOWN.inc(unknown)
        for reason in counts.finish:
            if reason is not None:
                FINISHES.labels(reason).inc()
        complete = sum(counts.calls)
        if complete:
            CALLS.labels("complete").inc(complete)
        if counts.begun > complete:
            CALLS.labels("truncated").inc(counts.begun - complete)
