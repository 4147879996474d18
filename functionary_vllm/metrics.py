"""Counters and histograms of ours, beside vLLM's own in prometheus_client's default registry.

In: what was counted of each completion, and the outcome of each HTTP request. Out: what `/metrics` shows under
`functionary_`, with the replay engine some of vLLM's names too; and the facts of one completion for its log line and
its span. A completion's own numbers are plain integers while it runs; the registry's locks are taken at its beginning
and after its last byte, and only then are its calls held against their schemas. Refuses to know OpenAI's shapes. The
collectors belong to the module, not to an app, so that several apps in one process share them.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter as Tallied
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from functionary_vllm.errors import ApiError, UnknownFunctionCalled
from functionary_vllm.formats.base import Format
from functionary_vllm.outcome import OUTCOMES, Ended, Outcome

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
WAITING = Gauge(
    "functionary_requests_waiting", "Completions that wait to be let into the engine.", multiprocess_mode="livesum"
)
REJECTED = Counter("functionary_requests_rejected", "Requests that were not let in, by reason.", ["reason"])
ABORTED = Counter("functionary_requests_aborted", "Completions whose client left before the end.")
CHUNKS = Counter("functionary_stream_chunks", "Writes of streamed completions, one an engine step and choice.")
TOKENS = Counter("functionary_completion_tokens", "Tokens generated for clients.", ["stream"])
FINISHES = Counter("functionary_finish_reasons", "Choices by the finish_reason they were given.", ["reason"])
CALLS = Counter("functionary_calls", "Function calls that ended, by what became of them.", ["outcome"])
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
    "functionary_time_to_function_name_seconds", "From a streamed request to its first function name.", buckets=_LATENCY
)
FIRST_ARGUMENT = Histogram(
    "functionary_time_to_first_argument_seconds",
    "From a streamed request to the first byte of its first call's arguments.",
    buckets=_LATENCY,
)
DURATION = Histogram(
    "functionary_request_duration_seconds", "From a completion's request to its last byte.", buckets=_LATENCY
)
LOOP_LAG = Histogram(
    "functionary_event_loop_lag_seconds",
    "How late the event loop came to what was due; looked at ten times a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
_CALLS = {outcome: CALLS.labels(outcome) for outcome in OUTCOMES}  # shown from the start, so that rates have a base
_TOKENS = {stream: TOKENS.labels(str(stream).lower()) for stream in (False, True)}
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

    model: str
    writes: int
    first_token: float | None
    first_name: float | None
    first_argument: float | None
    prompt: int  # tokens
    cached: int  # of them
    completion: list[int]
    ended: list[Ended]  # complete calls
    truncated: int  # calls that were cut
    unknown: list[int]
    finish: list[str | None]


Judge = Callable[[Sequence[Ended]], list[Outcome]]


class Observation:
    """One completion: from its request, which was `started` at a monotonic time, to its last byte.

    `begin` when the engine is to be asked; `close` once there is nothing more to send. What was not begun counts not.
    """

    __slots__ = ("_judge", "_running", "calls", "counts", "started", "stream")

    def __init__(self, started: float, counts: Counts, judge: Judge, *, stream: bool) -> None:
        self.started = started
        self.counts = counts
        self.stream = stream
        self.calls: dict[Outcome, int] = {}
        self._judge = judge
        self._running = False

    def begin(self) -> None:
        self._running = True
        RUNNING.inc()
        if _stand_in is not None:
            _stand_in.running.inc()

    def close(self, now: float, *, aborted: bool = False, error: ApiError | None = None) -> None:
        if not self._running:
            return
        self._running = False
        RUNNING.dec()
        counts = self.counts
        unknown = sum(counts.unknown)
        ended = self._judge(counts.ended) if counts.ended else []
        ended += ["truncated"] * counts.truncated
        if isinstance(error, UnknownFunctionCalled):  # which no writer has seen
            ended.append("unknown_tool")
            unknown += 1
        self.calls = dict(Tallied(ended))
        for outcome, calls in self.calls.items():
            _CALLS[outcome].inc(calls)
        if unknown:
            UNKNOWN.inc(unknown)
        _TOKENS[self.stream].inc(sum(counts.completion))
        if aborted:
            ABORTED.inc()
        for reason in counts.finish:
            if reason is not None:
                FINISHES.labels(reason).inc()
        self._time(counts, now)
        if _stand_in is not None:
            _stand_in.close(counts, self.started, now)

    def _time(self, counts: Counts, now: float) -> None:
        DURATION.observe(now - self.started)
        if counts.first_token is not None:
            FIRST_TOKEN.observe(counts.first_token - self.started)
        if not self.stream:  # whole answers are read once, at the end: when a name came is not known
            return
        CHUNKS.inc(counts.writes)
        if counts.first_name is not None:
            FIRST_NAME.observe(counts.first_name - self.started)
        if counts.first_argument is not None:
            FIRST_ARGUMENT.observe(counts.first_argument - self.started)

    def facts(self) -> dict[str, Any]:
        """For a log line and a span: numbers and names, none of what was said."""
        counts = self.counts
        times = {"first_token": counts.first_token}
        if self.stream:
            times |= {"function_name": counts.first_name, "first_argument": counts.first_argument}
        return {
            "model": counts.model,
            "stream": self.stream,
            "prompt_tokens": counts.prompt,
            "cached_tokens": counts.cached,
            "completion_tokens": sum(counts.completion),
            "finish_reasons": [reason for reason in counts.finish if reason is not None],
            "calls": self.calls,
            **{f"{name}_ms": _ms(at - self.started) for name, at in times.items() if at is not None},
        }


class _StandIn:
    """What vLLM's own metrics would say, under its names, so that a dashboard shows the same of recordings."""

    def __init__(self, model: str, registry: CollectorRegistry) -> None:
        names = ["model_name", "engine"]

        def of(kind: Any, name: str, help: str, **options: Any) -> Any:
            return kind(f"vllm:{name}", help, names, registry=registry, **options).labels(model, "0")

        self.running = of(Gauge, "num_requests_running", "Requests in the engine.", multiprocess_mode="livesum")
        of(Gauge, "num_requests_waiting", "None: recordings need not wait.", multiprocess_mode="livesum")
        self.prompt_tokens = of(Counter, "prompt_tokens", "Prompt tokens.")
        self.tokens = of(Counter, "generation_tokens", "Tokens played.")
        self.first_token = of(Histogram, "time_to_first_token_seconds", "To the first step.", buckets=_LATENCY)
        self.latency = of(Histogram, "e2e_request_latency_seconds", "To the last byte.", buckets=_LATENCY)
        finished = [*names, "finished_reason"]
        successes = Counter("vllm:request_success", "Choices that were finished.", finished, registry=registry)
        self.stop, self.length = (successes.labels(model, "0", reason) for reason in ("stop", "length"))

    def close(self, counts: Counts, started: float, now: float) -> None:
        self.running.dec()
        self.prompt_tokens.inc(counts.prompt)
        self.tokens.inc(sum(counts.completion))
        self.latency.observe(now - started)
        if counts.first_token is not None:
            self.first_token.observe(counts.first_token - started)
        for reason in counts.finish:
            if reason is not None:
                (self.length if reason == "length" else self.stop).inc()


_stand_in: _StandIn | None = None


def stand_in_for_vllm(model: str, registry: CollectorRegistry = REGISTRY) -> None:
    """For an engine that is not vLLM."""
    global _stand_in
    if _stand_in is None:
        _stand_in = _StandIn(model, registry)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
