"""Our metrics: counted once, from events, and shared by all apps of a process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from prometheus_client import REGISTRY

from functionary_vllm.api.chat_writer import ChatChunks, Shape
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Finish, Text
from functionary_vllm.metrics import Observation, exposition, watch_loop
from functionary_vllm.pipeline import Delta

SHAPE = Shape("chatcmpl-0", "model", 0, "fp", 5)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"functionary_{name}", labels) or 0.0


NAMES: dict[str, dict[str, str]] = {
    "requests_running": {},
    "requests_aborted_total": {},
    "stream_chunks_total": {},
    "completion_tokens_total": {"stream": "true"},
    "finish_reasons_total": {"reason": "tool_calls"},
    "time_to_first_token_seconds_count": {},
    "time_to_function_name_seconds_count": {},
}


def values() -> dict[str, float]:
    return {
        **{name: value(name, **labels) for name, labels in NAMES.items()},
        "complete": value("calls_total", outcome="complete"),
        "truncated": value("calls_total", outcome="truncated"),
    }


def grown(before: dict[str, float]) -> dict[str, float]:
    return {name: number - before[name] for name, number in values().items() if number != before[name]}


def test_an_observation_counts_tokens_calls_and_finishes() -> None:
    before = values()
    observation = Observation(time.monotonic(), stream=True)
    assert grown(before) == {"requests_running": 1}
    writer = ChatChunks(replace(SHAPE, choices=2))
    writer.write(Delta(0, [CallStart(0, "f"), CallArguments(0, "{}")], 3))
    writer.write(Delta(1, [Text("a")], 1))
    writer.write(Delta(0, [CallEnd(0), CallStart(1, "g"), Finish("stop")], 7))
    observation.close(writer.tally)
    assert grown(before) == {
        "stream_chunks_total": 3,
        "completion_tokens_total": 8,
        "finish_reasons_total": 1,
        "time_to_first_token_seconds_count": 1,
        "time_to_function_name_seconds_count": 1,
        "complete": 1,
        "truncated": 1,
    }


def test_an_aborted_answer_is_counted_with_its_tokens() -> None:
    before = values()
    observation = Observation(time.monotonic(), stream=True)
    writer = ChatChunks(SHAPE)
    writer.write(Delta(0, [Text("a")], 2))
    observation.close(writer.tally, aborted=True)
    assert grown(before) == {
        "requests_aborted_total": 1,
        "stream_chunks_total": 1,
        "completion_tokens_total": 2,
        "time_to_first_token_seconds_count": 1,
    }


async def test_a_loop_that_is_kept_busy_is_late() -> None:
    def late() -> float:
        return value("event_loop_lag_seconds_sum")

    before = late()
    watch = asyncio.create_task(watch_loop())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - what is to be noticed
    while late() == before:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    watch.cancel()
    assert late() - before > 0.1


def test_exposition_holds_ours_and_the_process() -> None:
    text = exposition().decode()
    assert "# TYPE functionary_calls_total counter" in text
    assert "process_cpu_seconds_total" in text or "python_info" in text
