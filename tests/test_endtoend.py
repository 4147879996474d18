"""The real engine on the built-in model, through HTTP: one server for the module, started as a user starts it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from functionary_vllm.conversation import Choice
from functionary_vllm.formats import get_format
from functionary_vllm.models.builtin import BUILTIN_FORMAT
from tests.apps import events_of, with_old_client
from tests.folding import folded_stream, folded_whole
from tests.strategies import asked

ROOT = Path(__file__).resolve().parents[1]
WEATHER: dict[str, Any] = {
    "name": "get_current_weather",
    "description": "Get the current weather",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "maxLength": 20},
            "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer"},
        },
        "required": ["location", "format", "days"],
        "additionalProperties": False,
    },
}
TIME: dict[str, Any] = {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}}}
# Without the number: a small model that was not asked for one may write digits without end.
PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {"location": {"type": "string", "maxLength": 20}, "format": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["location", "format"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
STRICT = [{"type": "function", "function": {**function, "strict": True}} for function in (WEATHER, TIME)]
USER = [{"role": "user", "content": "What is the weather in Istanbul?"}]
NAMED = {"type": "function", "function": {"name": "get_current_weather"}}
GREEDY = {"messages": USER, "temperature": 0, "max_tokens": 64}

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        command = [sys.executable, str(ROOT / "serve.py"), "--port", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=dict(os.environ))
        base = f"http://127.0.0.1:{port}"
        try:
            while not answers(base):
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
            yield base
        finally:
            process.terminate()
            process.wait(60)


def answers(base: str) -> bool:
    try:
        return httpx.get(f"{base}/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(server: str, *, stream: bool, **body: Any) -> list[dict[str, Any]]:
    """The choices of the answer in one shape (tests/folding.py), whichever way it came."""
    request = {**GREEDY, **body, "stream": stream}
    response = httpx.post(f"{server}/v1/chat/completions", json=request, timeout=120)
    assert response.status_code == 200, response.text
    folded = folded_stream(events_of(response)) if stream else folded_whole(response.json())
    return [folded[index] for index in sorted(folded)]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "auto": {"tools": TOOLS},
    "auto strict": {"tools": STRICT},
    "none": {"tools": TOOLS, "tool_choice": "none"},
    "required": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "required, parallel": {"tools": TOOLS, "tool_choice": "required"},
    "named": {"tools": TOOLS, "tool_choice": NAMED},
    "named strict": {"tools": STRICT, "tool_choice": NAMED},
    "legacy": {"functions": [WEATHER, TIME]},
    "legacy named": {"functions": [WEATHER, TIME], "function_call": {"name": "get_current_weather"}},
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": PLACE, "strict": True},
        }
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_says_what_the_whole_says(server: str, case: str) -> None:
    whole = ask(server, stream=False, **CASES[case])
    assert ask(server, stream=True, **CASES[case]) == whole
    answer = whole[0]
    if case in ("required", "named", "named strict", "legacy named"):
        (call,) = answer["calls"]
        validate(call)
        assert answer["content"] is None
        assert answer["finish"] == {"required": "tool_calls", "legacy named": "function_call"}.get(case, "stop")
    if case == "json_schema":
        jsonschema.validate(json.loads(answer["content"]), PLACE)
    if case in ("plain", "none"):
        assert answer["content"]
        assert not answer["calls"]


def test_the_seeds_question_is_answered_by_a_call(server: str) -> None:
    case = json.loads((ROOT / "tests" / "golden" / "weather.json").read_text())
    body = {"messages": case["messages"], "tools": case["tools"], "max_tokens": 64, "stream": True}
    answer = folded_stream(events_of(httpx.post(f"{server}/v1/chat/completions", json=body, timeout=120)))[0]
    ((name, arguments),) = answer["calls"]
    assert name == "get_current_weather"
    assert "Istanbul" in json.loads(arguments)["location"]
    assert answer["finish"] == "tool_calls"


def validate(call: tuple[str, str]) -> None:
    name, arguments = call
    schemas = {function["name"]: function["parameters"] for function in (WEATHER, TIME)}
    jsonschema.validate(json.loads(arguments), schemas[name])


def test_forced_arguments_are_always_valid(server: str) -> None:
    """At a temperature at which the model writes nonsense."""
    for seed in range(12):
        body = {"temperature": 1.5, "seed": seed, "max_tokens": 200, "tools": STRICT, "tool_choice": NAMED}
        (choice,) = ask(server, stream=bool(seed % 2), **body)
        validate(choice["calls"][0])


def test_two_choices(server: str) -> None:
    body = {"n": 2, "temperature": 1.0, "seed": 7, "tools": TOOLS, "tool_choice": NAMED}
    choices = ask(server, stream=False, **body)
    assert len(choices) == 2
    for choice in choices:
        validate(choice["calls"][0])
    assert ask(server, stream=True, **body) == choices


def test_cut_by_length(server: str) -> None:
    for stream in (False, True):
        (choice,) = ask(server, stream=stream, tools=TOOLS, tool_choice=NAMED, max_tokens=3)
        assert choice["finish"] == "length"


def test_stop_string(server: str) -> None:
    whole = ask(server, stream=False)[0]["content"]
    word = whole.split()[3]
    for stream in (False, True):
        (choice,) = ask(server, stream=stream, stop=[word])
        assert (choice["content"], choice["finish"]) == (whole[: whole.index(word)], "stop")


def test_logprobs_are_those_of_the_content(server: str) -> None:
    body = {"logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    (whole,) = ask(server, stream=False, **body)
    assert ask(server, stream=True, **body) == [whole]
    shown = b"".join(bytes(entry["bytes"]) for entry in whole["logprobs"]).decode()
    assert shown == whole["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole["logprobs"])


async def test_many_seeded_streams_at_once(server: str) -> None:
    """More prompt tokens than one engine step takes: a prompt prefilled in parts must not harm the engine."""
    async with httpx.AsyncClient(timeout=300) as client:

        async def one(seed: int) -> list[dict[str, Any]]:
            user = [{"role": "user", "content": f"{seed} " + "and what is the weather there? " * 60}]
            body = {"messages": user, "temperature": 1, "seed": seed, "max_tokens": 8, "stream": True}
            return events_of(await client.post(f"{server}/v1/chat/completions", json=body))

        streams = await asyncio.gather(*(one(seed) for seed in range(24)))
    assert all(folded_stream(events)[0]["finish"] in ("length", "stop") for events in streams)


def running(server: str) -> float:
    metrics = httpx.get(f"{server}/metrics").text
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} ([0-9.]+)$", metrics, re.MULTILINE)
    assert found
    return sum(map(float, found))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(server: str, stream: bool) -> None:
    body = {**GREEDY, "stream": stream, "max_tokens": 2000, "n": 2, "temperature": 1, "ignore_eos": True}
    before = aborted(server)
    async with httpx.AsyncClient() as client:
        request = asyncio.create_task(client.post(f"{server}/v1/chat/completions", json=body, timeout=60))
        for _ in range(600):
            if running(server):
                break
            await asyncio.sleep(0.1)
        request.cancel()
    for _ in range(50):
        # vLLM's gauges are written with a step, so a last one may be needed to see them fall.
        ask(server, stream=False, max_tokens=1)
        if running(server) == 0:
            break
        await asyncio.sleep(0.1)
    assert running(server) == 0
    assert aborted(server) == before + 1


def aborted(server: str) -> float:
    found = re.search(
        r"^functionary_requests_aborted_total(?:\{.*\})? ([0-9.]+)$", httpx.get(f"{server}/metrics").text, re.M
    )
    return float(found.group(1)) if found else 0.0


def test_what_cannot_be_promised_is_refused(server: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    response = httpx.post(f"{server}/v1/chat/completions", json={**GREEDY, "tools": [tool]}, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[0].function.parameters.required"


@pytest.mark.parametrize("pattern", ["(", "(?<=a)b"])
def test_a_schema_that_cannot_be_enforced_names_its_path(server: str, pattern: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ids": {"type": "array", "items": {"type": "string", "pattern": pattern}}},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    response = httpx.post(f"{server}/v1/chat/completions", json={**GREEDY, "tools": [TOOLS[0], tool]}, timeout=60)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith("tools[1].function.parameters.properties.ids.items")
    assert ask(server, stream=False, max_tokens=2)  # the engine is none the worse


def test_a_prompt_that_is_too_long(server: str) -> None:
    body = {**GREEDY, "messages": [{"role": "user", "content": "word " * 20_000}], "stream": True}
    response = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_the_current_client(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="functionary", messages=USER, tools=TOOLS, tool_choice=NAMED) as stream:  # type: ignore[arg-type]
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["get_current_weather"]
    assert set(json.loads(done[0].arguments)) == {"location", "format", "days"}


async def test_the_current_client_async(server: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(
            model="functionary",
            messages=USER,  # type: ignore[arg-type]
            tools=TOOLS,  # type: ignore[arg-type]
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
        )
    assert answer.choices[0].finish_reason == "tool_calls"


LEGACY = """
import json, sys, openai
openai.api_base, openai.api_key = sys.argv[1] + "/v1", "functionary"
asked = dict(model="functionary", messages=json.loads(sys.argv[2]), functions=[json.loads(sys.argv[3])], temperature=0,
             function_call={"name": "get_current_weather"})
whole = openai.ChatCompletion.create(**asked).choices[0]
parts = [chunk.choices[0] for chunk in openai.ChatCompletion.create(stream=True, **asked)]
names = [part.delta.function_call.name for part in parts if "name" in part.delta.get("function_call", {})]
text = "".join(part.delta.get("function_call", {}).get("arguments", "") for part in parts)
assert names == [whole.message.function_call.name] == ["get_current_weather"], names
assert text == whole.message.function_call.arguments, text
assert parts[-1].finish_reason == whole.finish_reason == "function_call"
print(text)
"""


def test_the_seeds_client(server: str, legacy_openai_path: Path) -> None:
    """openai 0.28.1, `openai.ChatCompletion.create(functions=[...])`, whole and streamed."""
    printed = with_old_client(legacy_openai_path, LEGACY, server, json.dumps(USER), json.dumps(WEATHER))
    jsonschema.validate(json.loads(printed), WEATHER["parameters"])


def test_the_prompt_can_be_seen(server: str) -> None:
    body = {**GREEDY, "tools": TOOLS, "tool_choice": NAMED}
    shown = httpx.post(f"{server}/v1/chat/completions/render", json=body).json()
    assert shown["prompt"].endswith(get_format(BUILTIN_FORMAT).opened(asked(Choice("named", "get_current_weather"))))
    tokens = httpx.post(f"{server}/tokenize", json={"messages": USER, "tools": TOOLS}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 100
    text = httpx.post(f"{server}/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
    assert "Istanbul" in text
