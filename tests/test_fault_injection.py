"""A fault at every await between a request's body and its last byte: what the client is told, and that nothing is left.

In: the sources of the way of an answer, in which the awaits are looked up, and requests that take different turns.
Each await that one of them comes to fails once, at its first and at its second time; and what the request's own task
waits for fails or is cancelled, at each place where it ever waits. Out, every time: a refusal in its envelope, or a
stream that ends with a finish or an error event, and [DONE]; and seats and places for the next ones. The border is not
on the way: it is what tells of faults.
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Container, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import functionary_vllm
from functionary_vllm.api.keys import digest_of
from tests.apps import PATH, TOOLS, USER, app_of, call_text, engine_saying
from tests.fakes import HANG, FakeEngine

WAY = ("pipeline.py", "backlog.py", "api/chat.py", "api/sse.py", "api/connection.py", "api/body.py")
WAY += ("api/admission.py", "api/service.py")
ROOT = Path(functionary_vllm.__file__).parent
HANGS_S = 15.0
SAID = "Let me see. " + call_text()

Place = tuple[str, int]  # a file and a line
mine: ContextVar[bool] = ContextVar("mine", default=False)  # in the request that is watched, and in its tasks


def awaits() -> set[Place]:
    """Where the way of an answer waits, or may."""
    found = set()
    for name in WAY:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor):
                found.add((str(ROOT / name), node.lineno))
    return found


AWAITS = awaits()


class Injected(Exception):
    """Nothing that anybody expects."""


@contextmanager
def watched(come: Callable[[Place], None]) -> Iterator[None]:
    """`come` is called when the request comes to an await, the first time in each call; it may raise."""
    seen: set[tuple[int, int]] = set()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        place = (frame.f_code.co_filename, frame.f_lineno)
        # The end of an `async with` is at its line, too.
        if event == "line" and place in AWAITS and mine.get() and (id(frame), frame.f_lineno) not in seen:
            seen.add((id(frame), frame.f_lineno))
            frames.append(frame)
            come(place)
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename in files else None

    frames: list[FrameType] = []  # kept, so that no other has the same id
    files = {file for file, _ in AWAITS}
    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


@dataclass
class Client:
    """One request over ASGI. `lags`: pieces of the body that it takes its time for."""

    body: dict[str, Any]
    path: str = PATH
    headers: dict[str, str] = field(default_factory=dict)
    lags: Container[int] = ()
    status: int = 0
    told: list[bytes] = field(default_factory=list)
    ended: bool = False

    async def ask(self, app: Any) -> None:
        data = json.dumps(self.body).encode()
        pieces = [data[:10], data[10:]]
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not pieces:
                await gone.wait()
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                return
            if len(self.told) in self.lags:
                await asyncio.sleep(0.002)
            self.told.append(message.get("body", b""))
            self.ended = not message.get("more_body", False)

        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": self.path, "query_string": b""}
        headers = [(name.encode(), value.encode()) for name, value in {"x-api-key": KEY, **self.headers}.items()]
        scope |= {"raw_path": self.path.encode(), "headers": headers, "asgi": {"version": "3.0"}}
        await app(scope, receive, send)

    def check(self) -> None:
        assert self.ended
        text = b"".join(self.told).decode()
        if not text.startswith("data: "):
            assert self.status == 200 or json.loads(text)["error"]["type"] == "server_error"
            return
        frames = text.split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        assert frames.count("data: [DONE]") == 1
        events = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
        finished = any(choice["finish_reason"] for event in events for choice in event.get("choices", ()))
        assert finished or "error" in events[-1]


KEY = "k" * 32
ASKED = {"messages": USER, "tools": TOOLS, "stream": True}
WAYS: dict[str, Client] = {
    "stream": Client(ASKED),
    "whole": Client({**ASKED, "stream": False}),
    "long": Client({**ASKED, "messages": [{"role": "user", "content": "a" * 3000}], "user": "b" * 3000}),
    "deadline": Client(ASKED, headers={"x-request-deadline-ms": "60000"}),
    "lags": Client(ASKED, lags=[2]),
    "lags always": Client({**ASKED, "stream_options": {"include_usage": True}}, lags=range(1000)),
    "waits": Client(ASKED),
    "render": Client(ASKED, path=PATH + "/render"),
}


@pytest.fixture
def app(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.CRITICAL)
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: a, sha256: '{digest_of(KEY.encode()).hex()}', max_concurrent: 2}}]")
    app = app_of(engine_saying(SAID), max_running=1, keys_file=str(file))
    app.state.life.serve()
    return app


async def run(way: str, app: Any, through: Callable[[Awaitable[None]], Awaitable[None]]) -> Client:
    """Ask that way, `through` something that may do harm; then look at what is left."""
    engine: Any = app.state.engine
    client = Client(**{**WAYS[way].__dict__, "told": []})
    async with asyncio.timeout(HANGS_S):
        other = await _occupied(engine, app) if way == "waits" else None
        task = asyncio.create_task(_through(client.ask(app), through))
        if other is not None:
            await asyncio.sleep(0.005)
            other.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        assert result is None or isinstance(result, asyncio.CancelledError), result
        if other is not None:
            await asyncio.gather(other, return_exceptions=True)
        await _nothing_left(engine, app)
    return client


async def _through(asked: Awaitable[None], through: Callable[[Awaitable[None]], Awaitable[None]]) -> None:
    mine.set(True)
    await through(asked)


async def _occupied(engine: FakeEngine, app: Any) -> asyncio.Task[None]:
    """Another request has the only seat."""
    engine.scripts = [[HANG], *engine.scripts]
    task = asyncio.create_task(Client(ASKED).ask(app))
    while not engine.running:  # noqa: ASYNC110 - there is nothing to wait on in what is observed
        await asyncio.sleep(0)
    return task


async def _nothing_left(engine: FakeEngine, app: Any) -> None:
    """The one seat is free, and both places of the key; no task goes on."""
    later = [Client(ASKED) for _ in range(2)]
    await asyncio.gather(*(client.ask(app) for client in later))
    for client in later:
        client.check()
        assert client.status == 200
        assert b"error" not in b"".join(client.told)
    assert not engine.running
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() <= {asyncio.current_task()}


# --- At each await in the sources ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def come_to() -> dict[str, set[Place]]:
    """Which awaits each way comes to; filled by the tests below, in the order of WAYS."""
    return {}


@pytest.mark.parametrize("way", WAYS)
async def test_every_await_may_fail(way: str, app: Any, come_to: dict[str, set[Place]]) -> None:
    passed: list[Place] = []

    async def plainly(asked: Awaitable[None]) -> None:
        await asked

    with watched(passed.append):
        (await run(way, app, plainly)).check()
    come_to[way] = set(passed)
    for place in sorted(set(passed)):
        for time in range(1, min(passed.count(place), 2) + 1):
            left = time

            def fail(come: Place, place: Place = place) -> None:
                nonlocal left
                left -= come == place
                if come == place and not left:
                    mine.set(False)
                    raise Injected(place)

            with watched(fail):
                client = await run(way, app, plainly)
            try:
                client.check()
            except AssertionError as error:
                raise AssertionError(place, time, client) from error


def test_no_await_was_left_out(come_to: dict[str, set[Place]]) -> None:
    if come_to.keys() == WAYS.keys():  # they were all run
        assert AWAITS - set().union(*come_to.values()) == set()


# --- Wherever the request's task waits -----------------------------------------------------------------------------


class Interrupted:
    """An awaitable whose task waits `times` times undisturbed; at the next it is told this."""

    def __init__(self, awaitable: Awaitable[None], times: int, fault: BaseException) -> None:
        self._awaitable = awaitable
        self._fault = fault
        self.left = times

    def __await__(self) -> Generator[Any, Any, None]:
        inside: Any = self._awaitable.__await__()
        try:
            waits_for = next(inside)
            while True:
                self.left -= 1
                if self.left == -1:
                    waits_for = inside.throw(self._fault)
                    continue
                try:
                    told = yield waits_for
                except BaseException as error:
                    waits_for = inside.throw(error)
                else:
                    waits_for = inside.send(told)
        except StopIteration:
            return


@pytest.mark.parametrize("fault", [Injected(), asyncio.CancelledError()], ids=["fails", "is cancelled"])
@pytest.mark.parametrize("way", WAYS)
async def test_whatever_is_waited_for_may_fail(way: str, fault: BaseException, app: Any) -> None:
    for times in range(1000):
        interrupted: list[Interrupted] = []

        async def disturbed(asked: Awaitable[None], times: int = times, found: Any = interrupted) -> None:
            found.append(Interrupted(asked, times, fault))
            await found[0]

        client = await run(way, app, disturbed)
        try:
            client.check()
        except AssertionError as error:
            raise AssertionError(times, client) from error
        if interrupted[0].left >= 0:  # it waited less often
            assert times > 0
            return
    raise AssertionError("a request that never ends")
