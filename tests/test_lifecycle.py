"""serving/lifecycle.py and api/life.py by themselves: an engine that dies, clients that stand still, the end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from functionary_vllm.api.life import Life
from functionary_vllm.engine.base import Mortal
from functionary_vllm.errors import EngineUnavailable
from functionary_vllm.serving import lifecycle
from functionary_vllm.serving.lifecycle import Standstill, cut, watch_engine
from functionary_vllm.settings import SettingsError, read_settings
from tests.apps import PATH, USER, app_of, engine_saying


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(lifecycle, "_AGAIN_AFTER_S", 0.0)


class Engine:
    """A Mortal whose next starts end as `starts` says."""

    def __init__(self, *starts: bool) -> None:
        self.starts = list(starts)
        self.healthy = True
        self.heard = 0
        self.work = 0
        self.lost = 0

    def unfinished(self) -> int:
        return self.work

    async def check_health(self) -> None:
        if not self.healthy:
            raise EngineUnavailable("dead")

    def lose(self) -> None:
        self.lost += 1
        self.healthy = False
        self.work = 0

    async def restart(self) -> None:
        if not self.starts.pop(0):
            raise EngineUnavailable("it does not start")
        self.healthy = True


def serving(restarts: int = 0) -> Life:
    life = Life(restarts)
    life.serve()
    return life


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on in what is observed
            await asyncio.sleep(0.001)


# --- The engine --------------------------------------------------------------------------------------------------


async def test_a_dead_engine_is_lost() -> None:
    engine: Any = Engine()
    assert isinstance(engine, Mortal)
    watch = asyncio.create_task(watch_engine(engine, serving(), 60))
    await asyncio.sleep(0.01)
    assert not watch.done()
    engine.healthy = False
    assert "died" in await watch
    assert engine.lost == 1


async def test_an_engine_that_has_work_and_says_nothing_is_lost() -> None:
    engine = Engine()
    watch = asyncio.create_task(watch_engine(engine, serving(), 0.02))
    await asyncio.sleep(0.1)
    assert not watch.done()  # it has no work
    engine.work = 1
    for _ in range(50):
        engine.heard += 1
        await asyncio.sleep(0.002)
    assert not watch.done()  # it works
    assert "said nothing for 0.02 s" in await watch
    assert engine.lost == 1


async def test_never_means_never() -> None:
    engine = Engine()
    engine.work = 1
    watch = asyncio.create_task(watch_engine(engine, serving(), 0))
    await asyncio.sleep(0.05)
    assert not watch.done()
    watch.cancel()


async def test_an_engine_is_started_again_as_often_as_allowed() -> None:
    engine, life = Engine(True, False, True), serving(3)
    watch = asyncio.create_task(watch_engine(engine, life, 60))
    engine.healthy = False
    await until(lambda: engine.healthy)
    await until(lambda: life.phase == "serving")
    assert life.mends
    engine.healthy = False
    await until(lambda: engine.healthy)
    await until(lambda: life.phase == "serving")
    assert not life.mends
    engine.healthy = False
    assert "died" in await watch
    assert engine.lost == 3
    assert engine.starts == []


async def test_an_engine_that_cannot_be_started_again_is_lost() -> None:
    engine = Engine(False, False)
    engine.healthy = False
    await watch_engine(engine, serving(2), 60)
    assert engine.starts == []


async def test_nobody_starts_an_engine_while_the_server_ends() -> None:
    engine, life = Engine(True), serving(1)
    life.drain()
    engine.healthy = False
    await watch_engine(engine, life, 60)
    assert engine.starts == [True]


# --- What is told ------------------------------------------------------------------------------------------------


async def test_what_is_told_in_each_phase() -> None:
    engine = engine_saying("Hello")
    app = app_of(engine, engine_restarts=1)
    life: Life = app.state.life
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):

        async def statuses() -> list[int]:
            answers = [await client.get("/health"), await client.get("/ready")]
            answers.append(await client.post(PATH, json={"messages": USER}))
            return [answer.status_code for answer in answers]

        assert await statuses() == [200, 200, 200]
        engine.healthy = False
        life.mend()
        assert (await statuses())[:2] == [200, 503]
        engine.healthy = True
        life.serve()
        assert await statuses() == [200, 200, 200]
        life.drain()
        life.serve()  # a restart that comes too late
        assert await statuses() == [200, 503, 503]
        refused = await client.post(PATH, json={"messages": USER})
        assert refused.headers["connection"] == "close"
        assert refused.headers["retry-after"]
        engine.healthy = False
        life.lose()
        assert await statuses() == [503, 503, 503]


def test_several_workers_end_with_their_engine() -> None:
    with pytest.raises(SettingsError, match="single API worker"):
        read_settings(["--engine-restarts", "1", "--api-workers", "2"], {})


# --- Clients that stand still ------------------------------------------------------------------------------------


class Connection:
    def __init__(self, awaited: int | None) -> None:
        self.now = awaited
        self.aborted = 0
        self.transport = SimpleNamespace(abort=self.abort)

    def awaited(self) -> int | None:
        return self.now

    def abort(self) -> None:
        self.aborted += 1


def test_who_stands_still_is_closed() -> None:
    connections = stands, falls, answered, moves, pauses = [Connection(5) for _ in range(5)]
    answered.now = None
    standstill = Standstill(10)
    for second in range(15):
        falls.now, moves.now = -second, second
        pauses.now = None if second == 7 else 5
        standstill.look(connections, second)
    assert [c for c in connections if c.aborted] == [stands, falls]


def test_zero_closes_nobody() -> None:
    waits = Connection(5)
    standstill = Standstill(0)
    for second in range(10_000):
        standstill.look([waits], second)
    assert not waits.aborted


# --- The end -----------------------------------------------------------------------------------------------------


async def test_what_is_cut_may_say_a_last_word() -> None:
    said = []

    async def request() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            said.append("stopping")

    tasks = {asyncio.create_task(request()) for _ in range(3)}
    await asyncio.sleep(0)
    await cut(tasks)
    assert said == ["stopping"] * 3
