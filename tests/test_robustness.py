"""Requests that are almost right, against the whole server but the model: never a 5xx, no hang, nothing left behind.

In: one good body of each kind, the field names of our own OpenAPI schema, and a seed. Out: requests with some parts
taken out, exchanged, nested, or of another type, some with broken bytes or headers, to every route there is; and what
is true of any answer. Refuses to know which of them are wrong. `make chaos` runs more of them:

    python -m tests.test_robustness --bodies 100000 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
from fastapi import FastAPI

from functionary_vllm.api.app import create_app
from functionary_vllm.engine.replay import Recording, ReplayEngine
from functionary_vllm.formats import get_format
from functionary_vllm.settings import Settings
from tests.apps import MODEL, PATH, TOOLS, USER, WEATHER, call_text, tokenizer
from tests.test_workers import counted

BODIES = 10_000
SEEDS = 10
AT_ONCE = 8
HANGS_S = 60.0  # for a handful of requests that take milliseconds
LIMIT = 50_000  # bytes

HISTORY = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
    {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    {"role": "assistant", "content": [{"type": "text", "text": "Sunny."}], "reasoning_content": "Easy."},
    {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "Oslo?"}]},
]
HISTORY[1]["tool_calls"][0]["function"] = {"name": "get_weather", "arguments": '{"city": "Rome"}'}  # type: ignore[index]
LEGACY_HISTORY = [
    *USER,
    {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}},
    {"role": "function", "name": "get_weather", "content": "sunny"},
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "when": {"anyOf": [{"type": "string", "pattern": "^[0-9]{4}$"}, {"type": "null"}]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "minItems": 1},
        "kind": {"enum": ["a", 1, None]},
        "rate": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    },
    "required": ["days"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "object", "properties": {"of": {"type": "integer"}, "next": {"$ref": "#/$defs/day"}}}},
}
STRICT = {"type": "function", "function": {"name": "plan", "strict": True, "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CHATS: list[dict[str, Any]] = [
    {"messages": USER},
    {"messages": HISTORY, "tools": [*TOOLS, STRICT, {"type": "code_interpreter"}], "tool_choice": "auto"},
    {"messages": USER, "tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False},
    {"messages": USER, "tools": [STRICT], "tool_choice": "required", "max_tokens": 20},
    {"messages": LEGACY_HISTORY, "functions": [WEATHER], "function_call": {"name": "get_weather"}},
    {
        "messages": USER,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    },
    {"messages": USER, "logprobs": True, "top_logprobs": 3, "n": 2, "logit_bias": {"5": -1.5}, "seed": 1},
    {"messages": USER, "stop": ["x", "y"], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "presence_penalty": 1},
    {"messages": USER, "metadata": {"recording": "text"}, "priority": 1, "service_tier": "flex", "user": "u"},
    {"messages": USER, "stream_options": {"include_usage": True}, "stream": True, "ignore_eos": True, "max_tokens": 9},
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    (f"{PATH}/render", CHATS[1]),
    ("/tokenize", {"prompt": "Hello", "return_token_strs": True}),
    ("/tokenize", {"messages": HISTORY, "tools": TOOLS}),
    ("/detokenize", {"tokens": [1, 2, 300]}),
]
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 129, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 1e400, float("nan")),
    *("", "a", "\x00", "\ud800", "\ufeff", "🌧" * 30, "a" * 3000, "$", "#/$defs/day", "{{ messages }}", "<|im_end|>"),
    *(
        "none",
        "auto",
        "required",
        "object",
        "string",
        "(" * 50,
        "(a+)+$",
        "[",
        '{"a": ',
        "data: [DONE]\n\n",
        "9" * 5000,
    ),
    *([], {}, [[]], [None], [{}], {"": ""}, {"type": []}, {"$ref": "#"}, {"$ref": "#/$defs/day/next"}, {"name": 3}),
]
HEADERS: list[tuple[bytes, list[bytes]]] = [
    (b"content-type", [b"", b"text/plain", b"application/json; charset=utf-16", b"\xff", b"application/x+json"]),
    (b"content-length", [b"0", b"-1", b"9" * 5000, b"x", b"\xb2"]),
    (b"x-request-deadline-ms", [b"0", b"1", b"-1", b"1e3", b"99999999", "²".encode(), b""]),
    (b"x-request-id", [b"", b"a" * 500, b"\x00", b"\xff\n"]),
    (b"traceparent", [b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"\xff", b""]),
    (b"accept-encoding", [b"\xff"]),
]


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def mangler(app: FastAPI, chance: random.Random) -> Iterator[Asked]:
    """Requests without end."""
    schema = app.openapi()
    routes = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    names = sorted({name for model in schema["components"]["schemas"].values() for name in model.get("properties", {})})
    while True:
        method = "POST"
        path, good = (PATH, chance.choice(CHATS)) if chance.random() < 0.75 else chance.choice(OTHERS)
        if chance.random() < 0.03:
            method, path = chance.choice(routes)
            method = chance.choice([method, "PUT", "DELETE", "HEAD", "PATCH"])
            path = chance.choice([path, path + "/", path + "/a b", path.upper()])
        body: Any = copy.deepcopy(good)
        if path == PATH and chance.random() < 0.5:
            body["stream"] = True
        for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):
            body = mangled(body, names, chance)
        data = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
        if chance.random() < 0.1:
            data = broken(data, chance)
        headers = {b"content-type": b"application/json"}
        if chance.random() < 0.1:
            name, values = chance.choice(HEADERS)
            headers[name] = chance.choice(values)
        yield Asked(method, path, tuple(headers.items()), data)


def mangled(body: Any, names: list[str], chance: random.Random) -> Any:
    """A part of it, or all, made something else."""
    places = list(_places(body, 0))
    if not places or chance.random() < 0.01:
        return copy.deepcopy(chance.choice(JUNK))
    # The whole request is refused for what is wrong at its top, so that is tried now and then only.
    deep = [place for place in places if place[2] >= 2]
    parent, key, _ = chance.choice(deep if deep and chance.random() < 0.7 else places)
    other, other_key, _ = chance.choice(places)
    match chance.randrange(8):
        case 0:
            del parent[key]
        case 1 | 2:
            parent[key] = copy.deepcopy(chance.choice(JUNK))
        case 3:
            parent[key] = copy.deepcopy(other[other_key])
        case 4 if isinstance(parent, dict):
            parent[chance.choice([*names, *(text for text in JUNK if isinstance(text, str))])] = parent.pop(key)
        case 5 if isinstance(parent, dict):
            parent[chance.choice(names)] = copy.deepcopy(chance.choice([*JUNK, other[other_key]]))
        case 6:
            for _ in range(chance.choice([1, 2, 70])):
                parent[key] = [parent[key]] if chance.random() < 0.5 else {"properties": {"a": parent[key]}}
        case _:
            if isinstance(parent, list):
                parent += copy.deepcopy(parent[: chance.choice([1, 5])]) * chance.choice([1, 10])
            else:
                parent[key] = [copy.deepcopy(parent[key])] * chance.choice([0, 2, 30])
    return body


def _places(node: Any, depth: int) -> Iterator[tuple[Any, Any, int]]:
    if depth < 12 and isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield node, key, depth
            yield from _places(node[key], depth + 1)


def broken(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + chance.choice([b"\xff", b"\x00", b"\xed\xa0\x80", b"{", b"]", b'"', b"\\"]) + data[at:]
        case 2:
            return data[:at] + data[at + 1 :]
        case 3:
            return chance.choice([b"[", b'{"a":']) * chance.choice([1, 1000, 20_000])
        case 4:
            return data.decode(errors="surrogatepass").encode("utf-16", errors="surrogatepass")
        case _:
            return data + b" " * LIMIT


# --- What is true of any answer ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    status: int = 0
    headers: Mapping[bytes, bytes] | None = None
    body: bytes = b""
    whole: bool = False


async def told(app: FastAPI, asked: Asked) -> Told:
    answer = Told()
    pieces = [asked.body[: len(asked.body) // 2], asked.body[len(asked.body) // 2 :]]
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert not answer.whole
        if message["type"] == "http.response.start":
            assert not answer.status
            answer.status, answer.headers = message["status"], dict(message["headers"])
        else:
            answer.body += message.get("body", b"")
            answer.whole = not message.get("more_body", False)

    scope = {"type": "http", "http_version": "1.1", "method": asked.method, "path": asked.path, "query_string": b""}
    scope |= {"raw_path": asked.path.encode(), "headers": list(asked.headers), "asgi": {"version": "3.0"}}
    try:
        await app(scope, receive, send)
    finally:
        ended.set()
    return answer


def check(answer: Told) -> None:
    """Raises AssertionError."""
    assert answer.whole
    assert 200 <= answer.status < 500
    assert answer.headers is not None
    assert b"x-request-id" in answer.headers
    if answer.status >= 400:
        if answer.body or int(answer.headers[b"content-length"]) == 0:  # HEAD
            error = json.loads(answer.body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] != "server_error"
    elif answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
        frames = answer.body.decode().split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        events = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
        if "error" in events[-1]:
            assert events[-1]["error"]["code"] == "deadline_exceeded"  # which the client asked for
        else:
            choices = [choice for event in events for choice in event["choices"]]
            finished = {choice["index"] for choice in choices if choice["finish_reason"]}
            assert finished == {choice["index"] for choice in choices}
    elif answer.headers.get(b"content-type") == b"application/json":
        json.loads(answer.body)


class Engine(ReplayEngine):
    """With the real judgement of schemas, where xgrammar is there."""

    def check_schema(self, schema: Mapping[str, Any] | bool) -> None:
        if find_spec("xgrammar") is not None:
            from functionary_vllm.engine.schema_check import check_schema

            check_schema(schema, lambda part: False)


async def ask_for(count: int, seed: int) -> Counter[int]:
    """So many requests; their statuses."""
    words = tokenizer()
    texts = {"text": "Plain words.", "call": "Let me see. " + call_text(), "cut": call_text()[:-30]}
    recordings = [Recording(name, tuple(words.encode(text)), "stop", (1, 5)) for name, text in texts.items()]
    engine = Engine(recordings, words, max_model_len=4096)
    settings = Settings(served_model_names=(MODEL,), max_running=4, max_body_bytes=LIMIT)
    app = create_app(settings, engine, get_format("hermes", words))
    app.state.life.serve()
    before, tasks = await _left(app), asyncio.all_tasks()
    requests = mangler(app, random.Random(seed))
    statuses: Counter[int] = Counter()
    for _ in range(0, count, AT_ONCE):
        batch = [next(requests) for _ in range(AT_ONCE)]
        async with asyncio.timeout(HANGS_S):
            answers = await asyncio.gather(*(told(app, asked) for asked in batch), return_exceptions=True)
        for asked, answer in zip(batch, answers, strict=True):
            if isinstance(answer, BaseException):
                raise AssertionError(asked) from answer
            try:
                check(answer)
            except Exception as error:
                raise AssertionError(asked, answer) from error
            statuses[answer.status] += 1
    await asyncio.sleep(0.01)  # the drivers of recordings see that nobody is left
    assert engine.running == 0
    assert await _left(app) == before
    assert asyncio.all_tasks() == tasks
    return statuses


def forced(parameters: dict[str, Any]) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"messages": USER, "tools": [tool], "tool_choice": "required"}


# What was once told as a 500.
BROKE: list[tuple[dict[bytes, bytes], dict[str, Any]]] = [
    ({}, {"messages": USER, "logit_bias": {"9" * 5000: 1}}),
    ({b"content-length": b"\xb2"}, CHATS[0]),
    ({b"content-length": b"9" * 5000}, CHATS[0]),
    ({}, forced({"type": "object", "required": [[]]})),
    ({}, forced({"type": "object", "properties": 1.5, "required": ["a"]})),
]


@pytest.mark.parametrize(("headers", "body"), BROKE)
async def test_what_broke_once(headers: dict[bytes, bytes], body: dict[str, Any]) -> None:
    words = tokenizer()
    engine = Engine([Recording("a", tuple(words.encode("Hi.")))], words, max_model_len=4096)
    app = create_app(Settings(served_model_names=(MODEL,)), engine, get_format("hermes", words))
    app.state.life.serve()
    check(await told(app, Asked("POST", PATH, tuple(headers.items()), json.dumps(body).encode())))


async def _left(app: FastAPI) -> list[float]:
    text = (await told(app, Asked("GET", "/metrics", (), b""))).body.decode()
    return [counted(text, f"functionary_requests_{what}") for what in ("running", "waiting")]


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_is_asked_nothing_breaks(seed: int) -> None:
    statuses = await ask_for(BODIES // SEEDS, seed)
    assert statuses[200] > 0.1 * BODIES / SEEDS  # else nothing but refusals would have been tried
    assert statuses[400] > 0.1 * BODIES / SEEDS


def main() -> None:
    parser = argparse.ArgumentParser(description="Mangled requests, in process.")
    parser.add_argument("--bodies", type=int, default=BODIES)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    logging.disable()
    statuses: Counter[int] = Counter()
    for turn in range(0, options.bodies, 1000):
        statuses += asyncio.run(ask_for(min(1000, options.bodies - turn), options.seed + turn))
    print(f"{statuses.total():,} requests, seed {options.seed}, by status: {dict(sorted(statuses.items()))}")


if __name__ == "__main__":
    main()
