"""What one key may use, and every other limit: for each a request that crosses it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from functionary_vllm.api.limits import Limits, Usage, _duration
from functionary_vllm.errors import RateLimited
from tests.apps import PATH, TOOLS, USER, app_of, client_of, engine_saying, error_of, events_of
from tests.fakes import HANG, FakeEngine


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(usage: Usage) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in usage.headers()}


def test_requests_a_minute_fill_up_again() -> None:
    clock = Clock()
    usage = Usage(Limits(requests_per_minute=3), clock)
    for _ in range(3):
        usage.begin()
        usage.end()
    assert told(usage) == {"limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m0s"}
    with pytest.raises(RateLimited) as caught:
        usage.begin()
    assert (caught.value.code, caught.value.retry_after) == ("requests_per_minute", pytest.approx(20))
    clock.now += 20
    usage.begin()
    with pytest.raises(RateLimited):
        usage.begin()


def test_tokens_a_minute_count_prompt_and_answer() -> None:
    clock = Clock()
    usage = Usage(Limits(tokens_per_minute=600), clock)
    usage.spend(400)
    usage.charge(300)  # an answer is not stopped for it: the bucket is in debt
    assert told(usage) == {"limit-tokens": "600", "remaining-tokens": "0", "reset-tokens": "1m10s"}
    with pytest.raises(RateLimited) as caught:
        usage.spend(100)
    assert (caught.value.code, caught.value.retry_after) == ("tokens_per_minute", pytest.approx(20))
    clock.now += 20
    usage.spend(100)
    usage.charge(-100)  # it was not run after all
    usage.spend(100)


def test_a_prompt_that_is_larger_than_the_limit_needs_a_full_bucket() -> None:
    clock = Clock()
    usage = Usage(Limits(tokens_per_minute=60), clock)
    usage.spend(100)
    with pytest.raises(RateLimited):
        usage.spend(100)
    clock.now += 100
    usage.spend(100)


def test_requests_at_once() -> None:
    usage = Usage(Limits(max_concurrent=1))
    usage.begin()
    with pytest.raises(RateLimited) as caught:
        usage.begin()
    assert caught.value.code == "max_concurrent"
    usage.end()
    usage.begin()
    assert not told(usage)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0204, "20ms"), (1.26, "1.3s"), (60, "1m0s"), (362.5, "6m2.5s")]
)
def test_durations_look_like_openais(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


# --- Over HTTP ---------------------------------------------------------------------------------------------------

HEADERS = {"authorization": "Bearer k"}
OTHER = {"x-api-key": "other"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Callable[..., str]:
    """A file with the key `k`, which has these limits, and `other`, which has none."""

    def write(**limits: Any) -> str:
        def entry(name: str, **more: Any) -> dict[str, Any]:
            return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **more}

        path = tmp_path / "keys.yaml"
        path.write_text(json.dumps({"keys": [entry("k", **limits), entry("other")]}))
        return str(path)

    return write


def refused(response: httpx.Response) -> str:
    """The code of a 429."""
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    error = error_of(response)
    assert error["type"] == "rate_limit_error"
    return str(error["code"])


def rejected(code: str) -> float:
    return REGISTRY.get_sample_value("functionary_requests_rejected_total", {"reason": code}) or 0.0


async def test_a_keys_requests_a_minute(keys_file: Callable[..., str]) -> None:
    engine = engine_saying("Hello")
    before = rejected("requests_per_minute")
    async with client_of(engine, keys_file=keys_file(requests_per_minute=2)) as client:
        answers = [
            await client.post(PATH, json={"messages": USER, "stream": s}, headers=HEADERS) for s in (True, False)
        ]
        third = await client.post(PATH, content=b"no JSON", headers=HEADERS)
        looked = await client.get("/v1/models", headers=HEADERS)
        another = await client.post(PATH, json={"messages": USER}, headers=OTHER)
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0"]
    assert refused(third) == "requests_per_minute"
    assert third.headers["x-ratelimit-limit-requests"] == "2"
    assert third.headers["x-ratelimit-reset-requests"].endswith("s")
    assert looked.status_code == another.status_code == 200  # looking costs nothing
    assert "x-ratelimit-limit-requests" not in another.headers
    assert rejected("requests_per_minute") == before + 1
    assert len(engine.requests) == 3


async def test_a_keys_tokens_a_minute(keys_file: Callable[..., str]) -> None:
    engine = engine_saying("Hello")
    async with client_of(engine, keys_file=keys_file(tokens_per_minute=10_000)) as client:
        first = await client.post(PATH, json={"messages": USER}, headers=HEADERS)
        used = first.json()["usage"]["total_tokens"]
        second = await client.post(PATH, json={"messages": USER, "stream": True}, headers=HEADERS)
        third = await client.get("/v1/models", headers=HEADERS)
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in (second, third)]
    assert left == pytest.approx([10_000 - used - first.json()["usage"]["prompt_tokens"], 10_000 - 2 * used], abs=50)
    async with client_of(engine, keys_file=keys_file(tokens_per_minute=used)) as client:
        await client.post(PATH, json={"messages": USER}, headers=HEADERS)
        for stream in (True, False):
            again = await client.post(PATH, json={"messages": USER, "stream": stream}, headers=HEADERS)
            assert refused(again) == "tokens_per_minute"


async def test_a_keys_requests_at_once(keys_file: Callable[..., str]) -> None:
    engine = FakeEngine([HANG])
    async with client_of(engine, keys_file=keys_file(max_concurrent=1)) as client:
        first = asyncio.create_task(client.post(PATH, json={"messages": USER}, headers=HEADERS))
        await until(lambda: bool(engine.running))
        assert refused(await client.post(PATH, json={"messages": USER}, headers=HEADERS)) == "max_concurrent"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        engine.scripts = [engine.play("Hello")]
        assert (await client.post(PATH, json={"messages": USER}, headers=HEADERS)).status_code == 200


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({}, 0),
        ({"priority": -7}, -5),
        ({"priority": 7}, 7),
        ({"service_tier": "priority"}, -5),
        ({"service_tier": "flex"}, 10),
        ({"service_tier": "default"}, 0),
        ({"service_tier": "flex", "priority": 1}, 1),
    ],
)
async def test_what_is_urgent_and_a_keys_ceiling(
    keys_file: Callable[..., str], body: dict[str, Any], asked: int
) -> None:
    engine = engine_saying("Hello")
    async with client_of(engine, keys_file=keys_file(priority=-5), unknown_fields="reject") as client:
        response = await client.post(PATH, json={"messages": USER, **body}, headers=HEADERS)
    assert response.status_code == 200
    assert engine.requests[0].priority == asked


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_server_refuses_before_the_first_byte(stream: bool) -> None:
    engine = FakeEngine([HANG])
    before = rejected("server_overloaded")
    async with client_of(engine, max_running=1, max_waiting=1) as client:
        body = {"messages": USER, "stream": stream}
        held = [asyncio.create_task(client.post(PATH, json=body)) for _ in range(2)]
        await until(lambda: REGISTRY.get_sample_value("functionary_requests_waiting") == 1)
        assert refused(await client.post(PATH, json=body)) == "server_overloaded"
        assert refused(await client.post(PATH, content=b"not even read", headers={"content-type": "application/json"}))
        assert len(engine.running) == 1
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    assert rejected("server_overloaded") == before + 2
    assert REGISTRY.get_sample_value("functionary_requests_waiting") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_in_the_queue(stream: bool) -> None:
    engine = FakeEngine([HANG])
    async with client_of(engine, max_running=1, max_queue_seconds=1) as client:
        held = asyncio.create_task(client.post(PATH, json={"messages": USER}))
        await until(lambda: bool(engine.running))
        assert refused(await client.post(PATH, json={"messages": USER, "stream": stream})) == "queue_timeout"
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_in_the_queue(stream: bool) -> None:
    engine = FakeEngine([HANG])
    async with client_of(engine, max_running=1) as client:
        held = asyncio.create_task(client.post(PATH, json={"messages": USER}))
        await until(lambda: bool(engine.running))
        body = {"messages": USER, "stream": stream}
        late = await client.post(PATH, json=body, headers={"x-request-deadline-ms": "50"})
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
    assert (late.status_code, error_of(late)["code"]) == (408, "deadline_exceeded")
    assert late.headers["x-should-retry"] == "false"
    assert len(engine.requests) == 1


async def test_a_deadline_in_mid_stream_ends_it_with_an_error_event_and_aborts() -> None:
    engine = FakeEngine()
    engine.scripts = [[*engine.play("Hello", "length"), HANG]]
    engine.scripts[0][-2].finish = None  # type: ignore[union-attr, index]
    async with client_of(engine) as client:
        body = {"messages": USER, "stream": True}
        late = await client.post(PATH, json=body, headers={"x-request-deadline-ms": "100"})
        whole = await client.post(PATH, json={"messages": USER}, headers={"x-request-deadline-ms": "100"})
    assert late.status_code == 200
    *chunks, last = events_of(late)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "Hello"
    assert last["error"]["code"] == "deadline_exceeded"
    assert (whole.status_code, error_of(whole)["code"]) == (408, "deadline_exceeded")
    assert engine.aborted == [request.id for request in engine.requests]


@pytest.mark.parametrize("given", ["0.5", "-1", "soon", "", "1" * 10])
async def test_a_deadline_that_is_no_number(given: str) -> None:
    async with client_of(engine_saying("Hello")) as client:
        response = await client.post(PATH, json={"messages": USER}, headers={"x-request-deadline-ms": given})
    assert response.status_code == 400


async def test_a_seat_is_free_when_the_engine_is_done_however_slowly_the_client_reads() -> None:
    engine = engine_saying("Hello")
    app = app_of(engine, max_running=1)
    never = asyncio.Event()

    async def send(message: Any) -> None:
        await never.wait()

    body = json.dumps({"messages": USER, "stream": True}).encode()

    async def receive() -> dict[str, Any]:
        nonlocal body
        if not body:
            await never.wait()
        sent, body = body, b""
        return {"type": "http.request", "body": sent, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    slow = asyncio.create_task(app({**scope, "headers": [], "asgi": {"version": "3.0"}}, receive, send))
    await until(lambda: bool(engine.requests) and not engine.running)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post(PATH, json={"messages": USER})).status_code == 200
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)


# --- What a body may hold ------------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def strict(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}]}


def of_pattern(pattern: str) -> dict[str, Any]:
    return strict({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}})


CROSSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "messages": ({"messages": USER * 4097}, {"messages": USER * 100}, "messages"),
    "tools": ({"tools": TOOLS * 129}, {"tools": TOOLS}, "tools"),
    "n": ({"n": 129}, {"n": 1}, "n"),
    "stop": ({"stop": ["a"] * 17}, {"stop": ["x"] * 16}, "stop"),
    "length of stop": ({"stop": "a" * 1001}, {"stop": "x" * 1000}, "stop"),
    "logit_bias": (
        {"logit_bias": {str(i): 1.0 for i in range(1025)}},
        {"logit_bias": {str(i): 1.0 for i in range(100)}},
        "logit_bias",
    ),
    "depth": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(40)}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(20)}}]},
        "tools[0].function.parameters",
    ),
    "pattern": (of_pattern("a" * 10_001), of_pattern("a" * 10), "tools[0].function.parameters.properties.a.pattern"),
}


@pytest.mark.parametrize(("over", "under", "param"), CROSSED.values(), ids=CROSSED)
async def test_what_crosses_a_limit_is_refused_by_its_name(
    over: dict[str, Any], under: dict[str, Any], param: str
) -> None:
    engine = engine_saying("Hello")
    async with client_of(engine) as client:
        bad, good = [await client.post(PATH, json={"messages": USER, **body}) for body in (over, under)]
    assert (bad.status_code, good.status_code) == (400, 200), (bad.text, good.text)
    assert (error_of(bad)["param"] or "").startswith(param)
    assert len(engine.requests) == 1


async def test_cors_is_off_unless_an_origin_is_named() -> None:
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization,content-type"
    answers: dict[Any, httpx.Response] = {}
    for origins in ((), ("https://a.example",), ("https://b.example",)):
        async with client_of(engine_saying("Hello"), cors_origins=origins, api_keys=("k",)) as client:
            before = await client.options(PATH, headers=asks)
            answer = await client.post(PATH, json={"messages": USER}, headers={"origin": asks["origin"], **HEADERS})
            without = await client.post(PATH, json={"messages": USER}, headers={"origin": asks["origin"]})
            answers[origins] = answer
            assert (before.status_code == 200) == (origins == ("https://a.example",))
            assert (answer.status_code, without.status_code) == (200, 401)
    allowed = {origins: answer.headers.get("access-control-allow-origin") for origins, answer in answers.items()}
    assert allowed == {(): None, ("https://a.example",): "https://a.example", ("https://b.example",): None}
    assert "retry-after" in answers[("https://a.example",)].headers["access-control-expose-headers"]


async def test_of_many_arrivals_some_run_some_wait_and_all_others_are_refused() -> None:
    engine = FakeEngine([HANG])
    async with client_of(engine, max_running=10, max_waiting=20) as client:
        tasks = [asyncio.create_task(client.post(PATH, json={"messages": USER, "stream": True})) for _ in range(100)]
        await until(lambda: sum(task.done() for task in tasks) == 70)
        await until(lambda: REGISTRY.get_sample_value("functionary_requests_waiting") == 20)
        assert {refused(task.result()) for task in tasks if task.done()} == {"server_overloaded"}
        assert len(engine.running) == len(engine.requests) == 10
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not engine.running
