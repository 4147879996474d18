"""Our metrics: counted once, after the last byte, and shared by all apps of a process."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from functionary_vllm import outcome
from functionary_vllm.api.app import create_app
from functionary_vllm.api.chat_writer import ChatChunks, Shape
from functionary_vllm.conversation import Conversation, Function
from functionary_vllm.engine.replay import Recording, ReplayEngine
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Finish, Text
from functionary_vllm.formats import get_format
from functionary_vllm.metrics import Observation, exposition, watch_loop
from functionary_vllm.outcome import OUTCOMES, outcomes
from functionary_vllm.pipeline import Delta
from functionary_vllm.settings import Settings
from tests.apps import MODEL, PATH, TOOLS, USER, call_text, tokenizer
from tests.fakes import END

SHAPE = Shape("chatcmpl-0", "model", 0, "fp", 5)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"functionary_{name}", labels) or 0.0


NAMES: dict[str, dict[str, str]] = {
    "requests_running": {},
    "requests_aborted_total": {},
    "stream_chunks_total": {},
    "completion_tokens_total": {"stream": "true"},
    "finish_reasons_total": {"reason": "tool_calls"},
    "unknown_function_calls_total": {},
    "request_duration_seconds_count": {},
    "time_to_first_token_seconds_count": {},
    "time_to_function_name_seconds_count": {},
    "time_to_first_argument_seconds_count": {},
}


def values() -> dict[str, float]:
    calls = {name: value("calls_total", outcome=name) for name in OUTCOMES}
    return {**{name: value(name, **labels) for name, labels in NAMES.items()}, **calls}


def grown(before: dict[str, float]) -> dict[str, float]:
    return {name: number - before[name] for name, number in values().items() if number != before[name]}


def observation_of(writer: ChatChunks, *functions: Function) -> Observation:
    judge = partial(outcomes, Conversation((), functions))
    return Observation(time.monotonic(), writer.tally, judge, stream=True)


def test_an_observation_counts_tokens_calls_and_finishes() -> None:
    before = values()
    writer = ChatChunks(replace(SHAPE, choices=2))
    observation = observation_of(writer, Function({"name": "f"}))
    observation.begin()
    assert grown(before) == {"requests_running": 1}
    writer.write(Delta(0, [CallStart(0, "f"), CallArguments(0, "{")], 2))
    writer.write(Delta(0, [CallArguments(0, "}")], 3))
    writer.write(Delta(1, [Text("a")], 1))
    writer.write(Delta(0, [CallEnd(0), CallStart(1, "g"), Finish("stop")], 7, unknown_calls=1))
    assert grown(before) == {"requests_running": 1}
    observation.close(time.monotonic())
    observation.close(time.monotonic())
    assert grown(before) == {
        "stream_chunks_total": 4,
        "completion_tokens_total": 8,
        "finish_reasons_total": 1,
        "unknown_function_calls_total": 1,
        "request_duration_seconds_count": 1,
        "time_to_first_token_seconds_count": 1,
        "time_to_function_name_seconds_count": 1,
        "time_to_first_argument_seconds_count": 1,
        "valid": 1,
        "truncated": 1,
    }


def test_an_aborted_answer_is_counted_with_its_tokens_and_not_as_cut() -> None:
    before = values()
    writer = ChatChunks(SHAPE)
    observation = observation_of(writer)
    observation.begin()
    writer.write(Delta(0, [Text("a"), CallStart(0, "f")], 2))
    observation.close(time.monotonic(), aborted=True)
    assert grown(before) == {
        "requests_aborted_total": 1,
        "stream_chunks_total": 1,
        "completion_tokens_total": 2,
        "request_duration_seconds_count": 1,
        "time_to_first_token_seconds_count": 1,
        "time_to_function_name_seconds_count": 1,
    }


def test_what_was_refused_before_it_began_is_no_completion() -> None:
    before = values()
    observation_of(ChatChunks(SHAPE)).close(time.monotonic())
    assert grown(before) == {}


# --- What became of calls ----------------------------------------------------------------------------------------

LOOSE = [{"type": "function", "function": {"name": "loose", "parameters": {"properties": {"a": {"type": "float"}}}}}]
SAYINGS: dict[str, tuple[str, str, list[str]]] = {
    "valid": (call_text(), "stop", ["valid"]),
    "escapes": (call_text('{"city": "\\ud83d\\u00e9"}'), "stop", ["valid"]),
    "schema": (call_text('{"city": 7}'), "stop", ["schema_violation"]),
    "missing": (call_text("{}"), "stop", ["schema_violation"]),
    "syntax": (call_text('{"city": Istanbul}'), "stop", ["invalid_json"]),
    "unknown": (call_text(name="get_wether"), "stop", ["unknown_tool"]),
    "cut": (call_text()[:-30], "length", ["truncated"]),
    "no schema": (call_text(name="loose"), "stop", ["unchecked"]),
    "two": (call_text() + "\n" + call_text('{"city": null}'), "stop", ["valid", "schema_violation"]),
}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    recordings = []
    for name, (text, finish, _) in SAYINGS.items():
        ids = tokenizer().encode(text + (END if finish == "stop" else ""), add_special_tokens=False)
        recordings.append(Recording(name, tuple(ids), finish, (3,)))  # type: ignore[arg-type]
    engine = ReplayEngine(recordings, tokenizer())
    return create_app(Settings(served_model_names=(MODEL,)), engine, get_format("hermes", engine.tokenizer))


async def post(app: FastAPI, **body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(PATH, json={"model": MODEL, "messages": USER, **body})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("saying", SAYINGS)
async def test_each_call_is_counted_by_its_outcome(app: FastAPI, saying: str, stream: bool) -> None:
    before = values()
    body = {"tools": [*TOOLS, *LOOSE], "stream": stream, "metadata": {"recording": saying}}
    assert (await post(app, **body)).status_code == 200
    after = grown(before)
    expected = SAYINGS[saying][2]
    assert {name: after.get(name, 0) for name in OUTCOMES} == {name: expected.count(name) for name in OUTCOMES}
    assert after.get("time_to_first_argument_seconds_count", 0) == stream
    assert after.get("time_to_function_name_seconds_count", 0) == stream


@pytest.mark.parametrize("stream", [False, True])
async def test_functions_of_the_first_generation_and_choices_are_counted_as_well(app: FastAPI, stream: bool) -> None:
    before = values()
    functions = [TOOLS[0]["function"]]
    await post(app, functions=functions, stream=stream, n=2, metadata={"recording": "schema"})
    assert grown(before)["schema_violation"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_ends_an_answer_as_an_error_is_counted(stream: bool) -> None:
    text = call_text(name="get_wether")
    engine = ReplayEngine([Recording("a", tuple(tokenizer().encode(text, add_special_tokens=False)))], tokenizer())
    settings = Settings(served_model_names=(MODEL,), unknown_function="error")
    before = values()
    response = await post(
        create_app(settings, engine, get_format("hermes", engine.tokenizer)), tools=TOOLS, stream=stream
    )
    assert "unknown_function" in response.text
    after = grown(before)
    assert (after["unknown_tool"], after["unknown_function_calls_total"]) == (1, 1)


def judged(arguments: str, parameters: Any) -> str:
    function = Function({"name": "f", "parameters": parameters})
    (found,) = outcomes(Conversation((), (function,)), [("f", [arguments])])
    return found


@pytest.mark.parametrize(
    ("arguments", "parameters", "expected"),
    [
        ("[]", {}, "schema_violation"),  # arguments are an object
        ("{}", {}, "valid"),
        ('{"a": NaN}', {}, "invalid_json"),
        ('{"a": 1' + "0" * 400 + "}", {"properties": {"a": {"type": "integer"}}}, "valid"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", {}, "unchecked"),  # deeper than anyone reads
        ('{"a": null}', {"properties": {"a": {"$ref": "http://127.0.0.1:9/s.json"}}}, "unchecked"),  # not fetched
        ('{"a": {"a": {}}}', {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}, "valid"),
        ('{"a": "x"}', {"properties": {"a": {"pattern": "^.{2,255}$"}}}, "schema_violation"),
        ('{"a": "x"}', {"properties": {"a": {"pattern": "(?=x)"}}}, "unchecked"),  # not matched in linear time
        (json.dumps({"a": "x" * 2_000_000}), {"properties": {"a": {"pattern": "(x+x+)+y"}}}, "unchecked"),
    ],
)
def test_arguments_are_held_against_the_schema(arguments: str, parameters: Any, expected: str) -> None:
    assert judged(arguments, parameters) == expected


def test_code_is_checked_as_it_was_asked_for() -> None:
    conversation = Conversation((), code_interpreter=True)
    ended = [("python", ["print(1)"]), ("python", ['{"code": "print(1)"}']), ("python", ['{"cod": ""}'])]
    assert outcomes(conversation, ended) == ["invalid_json", "valid", "schema_violation"]
    assert outcomes(conversation, ended, raw_code=True) == ["valid"] * 3


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    real = outcome.jsonschema_rs.Draft202012Validator

    def make(*args: Any, **options: Any) -> Any:
        made.append(args)
        return real(*args, **options)

    monkeypatch.setattr(outcome.jsonschema_rs, "Draft202012Validator", make)
    return made


def test_a_schema_is_compiled_once_by_its_content(compiled: list[Any]) -> None:
    for _ in range(3):
        assert judged("{}", {"type": "object", "$comment": "compiled once"}) == "valid"
    assert len(compiled) == 1


def test_a_schema_is_kept_within_bounds() -> None:
    for i in range(80):
        assert judged('{"a": 1}', {"properties": {"a": {"pattern": f"^.{{1,{200 + i}}}$"}}}) == "valid"
    assert outcome._compiled.taken <= 64 << 20
    assert judged("{}", {"properties": {"a": {"enum": ["x" * 100_000]}}}) == "unchecked"


# --- The rest ----------------------------------------------------------------------------------------------------


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
    for name in OUTCOMES:  # before the first of them, so that rates have a base
        assert f'functionary_calls_total{{outcome="{name}"}}' in text
    assert "process_cpu_seconds_total" in text or "python_info" in text
