"""The app around the routes: models, health, tokens, metrics, keys, ids, limits, unknown fields, unforeseen errors."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.apps import (
    PATH,
    TOOLS,
    USER,
    app_of,
    ask,
    client_of,
    engine_saying,
    error_of,
    events_of,
    served,
)
from tests.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return engine_saying("Hello")


# --- Models ------------------------------------------------------------------------------------------------------


async def test_models(engine: FakeEngine) -> None:
    async with client_of(engine, served_model_names=("org/model", "alias")) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/org/model")).json()
        unknown = await client.get("/v1/models/gpt-9")
    assert listed == {"object": "list", "data": [one, {**one, "id": "alias"}]}
    assert one == {
        "id": "org/model",
        "object": "model",
        "created": one["created"],
        "owned_by": "functionary-vllm",
        "max_model_len": engine.max_model_len,
    }
    assert isinstance(one["created"], int)
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "model_not_found"


async def test_a_request_may_use_any_name_or_none(engine: FakeEngine) -> None:
    async with client_of(engine) as client:
        names = [
            (await client.post(PATH, json={"messages": USER, **m})).json()["model"] for m in ({}, {"model": "alias"})
        ]
    assert names == ["fake", "alias"]


async def test_without_names_the_model_is_served_under_its_own(engine: FakeEngine) -> None:
    async with client_of(engine, served_model_names=(), model="org/own") as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "org/own"


# --- Operation ---------------------------------------------------------------------------------------------------


async def test_health_follows_the_engine_and_ready_the_lifespan_too(engine: FakeEngine) -> None:
    app = app_of(engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def statuses() -> list[int]:
            return [(await client.get(path)).status_code for path in ("/health", "/ready")]

        assert await statuses() == [200, 503]
        async with app.router.lifespan_context(app):
            assert await statuses() == [200, 200]
            engine.healthy = False
            assert await statuses() == [503, 503]
            assert error_of(await client.get("/health"))["code"] == "engine_unavailable"
            engine.healthy = True
        assert await statuses() == [200, 503]
    assert engine.closed


async def test_version_and_docs(engine: FakeEngine) -> None:
    async with client_of(engine) as client:
        version = (await client.get("/version")).json()
        docs = await client.get("/docs")
        schema = (await client.get("/openapi.json")).json()
    assert isinstance(version["version"], str)
    assert docs.status_code == 200
    body = schema["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    properties = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "tools", "functions", "stream_options"} <= set(properties)
    references = set(re.findall(r'"\$ref":\s*"#/components/schemas/(\w+)"', httpx.Response(200, json=schema).text))
    assert references <= set(schema["components"]["schemas"])


async def test_metrics_show_requests_by_route_and_status(engine: FakeEngine) -> None:
    async with client_of(engine) as client:
        for body in ({"messages": USER}, {"messages": USER, "stream": True}, {}):
            await client.post(PATH, json=body)
        await client.get("/nope")
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for labels in (
        f'route="{PATH}",status="200",stream="false"',
        f'route="{PATH}",status="200",stream="true"',
        f'route="{PATH}",status="422",stream="false"',
        'route="other",status="404",stream="false"',
    ):
        assert f"functionary_http_requests_total{{{labels}}}" in response.text
    assert "functionary_time_to_first_token_seconds_bucket" in response.text


def test_several_apps_in_one_process_share_the_metrics() -> None:
    assert app_of(engine_saying("a")) is not app_of(engine_saying("b"))


# --- Tokens ------------------------------------------------------------------------------------------------------


async def test_tokenize_and_back(engine: FakeEngine) -> None:
    text = "Héllo <|im_end|>"
    async with client_of(engine) as client:
        ids = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
        back = (await client.post("/detokenize", json={"tokens": ids["tokens"]})).json()
        outside = await client.post("/detokenize", json={"tokens": [1, 10**9]})
        both = await client.post("/tokenize", json={"prompt": text, "messages": USER})
        neither = await client.post("/tokenize", json={})
    assert back == {"prompt": text}
    assert ids["count"] == len(ids["tokens"]) == 8
    assert ids["max_model_len"] == engine.max_model_len
    assert ids["token_strs"] == ["H", "\ufffd", "\ufffd", "l", "l", "o", " ", "<|im_end|>"]
    assert outside.status_code == 400
    assert error_of(outside)["param"] == "tokens[1]"
    assert both.status_code == neither.status_code == 400


async def test_tokenize_of_messages_is_the_prompt_of_the_chat(engine: FakeEngine) -> None:
    async with client_of(engine) as client:
        body = {"messages": USER, "tools": TOOLS}
        counted = (await client.post("/tokenize", json=body)).json()
        await client.post(PATH, json=body)
        long = [{"role": "user", "content": "word " * 5000}]
        too_long = (await client.post("/tokenize", json={"messages": long})).json()
    assert counted["tokens"] == engine.requests[0].prompt_ids
    assert too_long["count"] > engine.max_model_len


# --- Keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/version", "/docs", "/openapi.json", "/nope"])
async def test_keys_guard_every_route(engine: FakeEngine, path: str) -> None:
    async with client_of(engine, api_keys=("one", "two")) as client:
        for header in (None, "Bearer three", "Bearer ", "Bearer", "Basic one", "one"):
            refused = await client.get(path, headers={"authorization": header} if header else {})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            error = error_of(refused)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert "one" not in error["message"].split()
        for key in ("one", "two"):
            allowed = await client.get(path, headers={"authorization": f"Bearer {key}"})
            assert allowed.status_code == (404 if path == "/nope" else 200)


async def test_keys_leave_supervisors_alone(engine: FakeEngine) -> None:
    async with client_of(engine, api_keys=("one",)) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503  # without lifespan; but not 401
        assert (await client.post(PATH, json={"messages": USER})).status_code == 401
    assert not engine.requests


# --- The border --------------------------------------------------------------------------------------------------


async def test_unknown_paths_and_methods(engine: FakeEngine) -> None:
    async with client_of(engine) as client:
        path, method = await client.get("/v2/chat"), await client.get(PATH)
    assert (path.status_code, error_of(path)["code"]) == (404, "not_found")
    assert (method.status_code, error_of(method)["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"


async def test_headers_of_every_answer(engine: FakeEngine) -> None:
    async with client_of(engine) as client:
        given = await client.get("/v1/models", headers={"x-request-id": "mine-1"})
        made = [await client.post(PATH, json={"messages": USER, "stream": s}) for s in (False, True)]
        bad = await client.get("/nope", headers={"x-request-id": "x" * 129})
    assert given.headers["x-request-id"] == "mine-1"
    ids = [response.headers["x-request-id"] for response in (*made, bad)]
    assert all(re.fullmatch(r"req_[A-Za-z0-9]{32}", request_id) for request_id in ids)
    assert len(set(ids)) == 3
    assert all(response.headers["openai-processing-ms"].isdigit() for response in (given, *made, bad))


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit(engine: FakeEngine, chunked: bool) -> None:
    body = b'{"messages": "' + b"a" * 1_000_000 + b'"}'
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for i in range(0, len(body), 10_000):
            read += 1
            yield body[i : i + 10_000]

    async with client_of(engine, max_body_bytes=100_000) as client:
        headers = {"content-type": "application/json"}
        response = await client.post(PATH, content=pieces() if chunked else body, headers=headers)
        small = await client.post("/detokenize", json={"tokens": [72, 73]})
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert small.status_code == 200
    assert read == (11 if chunked else 0)


async def test_a_body_over_the_limit_on_a_socket(engine: FakeEngine) -> None:
    with served(engine, max_body_bytes=100_000) as address:
        async with httpx.AsyncClient(base_url=address) as client:
            for content in (b"a" * 1_000_000, _chunks()):
                headers = {"content-type": "application/json"}
                response = await client.post(PATH, content=content, headers=headers)
                assert response.status_code == 413
                assert error_of(response)["code"] == "request_too_large"


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield b"a" * 10_000


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/vnd.api+json", 200),
        (None, 200),
    ],
)
async def test_content_types(engine: FakeEngine, content_type: str | None, status: int) -> None:
    async with client_of(engine) as client:
        headers = {"content-type": content_type} if content_type else {}
        content = b'{"messages": [{"role": "user", "content": "Hi"}]}'
        response = await client.post(PATH, content=content, headers=headers)
    assert response.status_code == status
    if status == 415:
        assert error_of(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unforeseen_error_is_logged_and_told_without_details(
    caplog: pytest.LogCaptureFixture, begun: bool, stream: bool
) -> None:
    engine = engine_saying("Hello")
    engine.scripts = [[*engine.play("Hello")[: 2 * begun], ZeroDivisionError("secret")]]
    response = await ask(engine, stream=stream)
    if stream and begun:
        error = events_of(response)[-1]["error"]
    else:
        assert response.status_code == 500
        error = error_of(response)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


# --- Unknown fields ----------------------------------------------------------------------------------------------

UNKNOWN: dict[str, Any] = {
    "verbosity": "low",
    "no such\nfield": 1,
    "prompt_cache_key": "k",
    "reasoning_effort": "high",
    "chat_template_kwargs": {"enable_thinking": True, "style": "x"},
}
NEUTRAL: dict[str, Any] = {"store": False, "service_tier": "auto", "modalities": ["text"], "audio": None, "user": "u"}
NAMED = "verbosity, no%20such%0Afield, prompt_cache_key, chat_template_kwargs.style, reasoning_effort"


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_are_told_by_default(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.WARNING, logger="functionary_vllm")
    response = await ask(engine_saying("Hello"), stream=stream, **UNKNOWN)
    assert response.status_code == 200
    assert response.headers["x-unsupported-fields"] == NAMED
    assert [record.getMessage().endswith(NAMED) for record in caplog.records] == [True]


async def test_unknown_fields_can_be_refused(engine: FakeEngine) -> None:
    response = await ask(engine, {"unknown_fields": "reject"}, **UNKNOWN)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "verbosity")
    assert not engine.requests


async def test_unknown_fields_can_be_ignored(caplog: pytest.LogCaptureFixture) -> None:
    response = await ask(engine_saying("Hello"), {"unknown_fields": "ignore"}, **UNKNOWN)
    assert response.status_code == 200
    assert "x-unsupported-fields" not in response.headers
    assert "not honoured" not in caplog.text


async def test_fields_that_ask_for_nothing_are_no_unknown_fields(engine: FakeEngine) -> None:
    response = await ask(engine, {"unknown_fields": "reject"}, **NEUTRAL)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("choice", ["auto", "none", {"type": "function", "function": {"name": "get_weather"}}])
async def test_tokenize_counts_what_a_completion_would_send(choice: Any) -> None:
    body = {"messages": USER, "tools": TOOLS, "tool_choice": choice}
    async with client_of(engine_saying("Hi")) as client:
        counted = (await client.post("/tokenize", json=body)).json()
        shown = (await client.post(f"{PATH}/render", json=body)).json()
    assert counted["tokens"] == shown["token_ids"]
