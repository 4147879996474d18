"""Who runs when: seats, the waiting room, turns, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from functionary_vllm.api.admission import Admission, Room, Ticket
from functionary_vllm.api.sse import KEEP_ALIVE, EventStream
from functionary_vllm.engine.base import Capacity
from functionary_vllm.errors import RateLimited


def admission(
    seats: int = 1, tokens: int = 1000, room: Room | None = None, several: Callable[[], bool] = lambda: False
) -> Admission:
    return Admission(Capacity(seats, tokens), room or Room(100, 100_000, 60), several)


class Crowd:
    """Requests that hold their seats until they are let go. `seated` are their names, in the order they sat down."""

    def __init__(self, door: Admission) -> None:
        self.door = door
        self.seated: list[str] = []
        self.refused: dict[str, RateLimited] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}

    async def come(self, name: str, n: int = 1, tokens: int = 1, priority: int = 0, begins: bool = True) -> None:
        """`name` begins with the key's. Returns when it sits, waits or was refused."""
        ticket = Ticket(self.door, name[0], Capacity(n, tokens), priority)
        go = self._go[name] = asyncio.Event()

        async def run() -> None:
            try:
                async with ticket:
                    self.seated.append(name)
                    if begins:
                        ticket.begun()
                    await go.wait()
            except RateLimited as error:
                self.refused[name] = error

        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self._go[name].set()
            await self.tasks[name]
            await asyncio.sleep(0)


@asynccontextmanager
async def crowd(door: Admission) -> AsyncIterator[Crowd]:
    """Afterwards nothing may be left behind, however the requests ended."""
    people = Crowd(door)
    try:
        yield people
    finally:
        for task in people.tasks.values():
            task.cancel()
        await asyncio.gather(*people.tasks.values(), return_exceptions=True)
        left = (door.running, door.waiting, door.preparing, door._prefilling, door._waiting_tokens)
        assert left == (0,) * 5
        assert not door._queues
        assert not door._turns


async def test_seats_are_taken_at_once_and_then_in_order() -> None:
    async with crowd(admission(seats=2)) as people:
        for name in ("a1", "a2", "a3", "a4"):
            await people.come(name)
        assert people.seated == ["a1", "a2"]
        assert (people.door.running, people.door.waiting) == (2, 2)
        await people.end("a2", "a1")
        assert people.seated == ["a1", "a2", "a3", "a4"]


async def test_keys_take_turns_however_many_each_has() -> None:
    async with crowd(admission(seats=1, room=Room(1000, 10**6, 60))) as people:
        for i in range(500):
            await people.come(f"a{i}")
        for i in range(5):
            await people.come(f"b{i}")
        for _ in range(12):
            await people.end(people.seated[-1])
        assert [name for name in people.seated if name[0] == "b"] == [f"b{i}" for i in range(5)]
        assert people.seated[:4] == ["a0", "a1", "b0", "a2"]


async def test_within_a_key_the_most_urgent_goes_first() -> None:
    async with crowd(admission()) as people:
        for name, priority in (("a0", 0), ("a1", 10), ("a2", 0), ("a3", -10), ("a4", 0)):
            await people.come(name, priority=priority)
        for _ in range(4):
            await people.end(people.seated[-1])
        assert people.seated == ["a0", "a3", "a2", "a4", "a1"]


async def test_choices_take_seats_and_nobody_overtakes_who_needs_many() -> None:
    async with crowd(admission(seats=4)) as people:
        await people.come("a0", n=3)
        await people.come("a1", n=4)
        await people.come("b0")
        assert people.seated == ["a0"]  # one seat is free, but it is a1's turn
        await people.end("a0", "a1")
        assert people.seated == ["a0", "a1", "b0"]


async def test_more_choices_than_there_are_seats_run_alone() -> None:
    async with crowd(admission(seats=2)) as people:
        await people.come("a0", n=5)
        await people.come("a1")
        assert people.seated == ["a0"]
        await people.end("a0")
        assert people.seated == ["a0", "a1"]


async def test_prompts_that_the_engine_has_not_begun_with_fill_its_cache_once() -> None:
    async with crowd(admission(seats=10, tokens=100)) as people:
        for name in ("a0", "a1", "a2"):
            await people.come(name, tokens=60, begins=name == "a0")
        assert people.seated == ["a0", "a1"]  # a0 has begun
        await people.end("a1")
        assert people.seated == ["a0", "a1", "a2"]


async def test_a_full_room_refuses_at_once_and_says_when_to_come_again() -> None:
    async with crowd(admission(room=Room(2, 1000, 60))) as people:
        for i in range(5):
            await people.come(f"a{i}")
        assert set(people.refused) == {"a3", "a4"}
        error = people.refused["a3"]
        assert (error.status, error.type, error.code) == (429, "rate_limit_error", "server_overloaded")
        assert error.retry_after
        assert error.retry_after >= 1


async def test_a_room_is_full_of_tokens_too_but_never_for_one_alone() -> None:
    async with crowd(admission(room=Room(10, 100, 60))) as people:
        await people.come("a0")
        await people.come("a1", tokens=500)
        await people.come("a2")
        assert people.seated == ["a0"]
        assert set(people.refused) == {"a2"}


async def test_one_key_leaves_places_for_the_next() -> None:
    async with crowd(admission(room=Room(12, 1000, 60), several=lambda: True)) as people:
        for i in range(20):
            await people.come(f"a{i}")
        for i in range(20):
            await people.come(f"b{i}")
        await people.come("c0")
        waiting = {key: sum(name[0] == key for name in people.tasks if name not in people.refused) for key in "abc"}
        assert waiting == {"a": 1 + 6, "b": 3, "c": 1}


async def test_who_has_waited_too_long_is_refused_and_leaves_the_room() -> None:
    async with crowd(admission(room=Room(10, 1000, 0.02))) as people:
        await people.come("a0")
        await people.come("a1")
        await people.tasks["a1"]
        assert people.refused["a1"].code == "queue_timeout"
        assert people.door.waiting == 0


async def test_who_leaves_while_waiting_is_no_longer_waited_behind() -> None:
    async with crowd(admission(seats=2)) as people:
        await people.come("a0")
        await people.come("a1", n=2)
        await people.come("a2")
        assert people.seated == ["a0"]
        people.tasks["a1"].cancel()
        with suppress(asyncio.CancelledError):
            await people.tasks["a1"]
        await asyncio.sleep(0)
        assert people.seated == ["a0", "a2"]


async def test_who_leaves_just_when_called_gives_the_seat_back() -> None:
    async with crowd(admission()) as people:
        for name in ("a0", "a1", "a2"):
            await people.come(name)
        people._go["a0"].set()
        while people.door.waiting == 2:  # noqa: ASYNC110 - until a1 was called, and before it knows
            await asyncio.sleep(0)
        people.tasks["a1"].cancel()
        await asyncio.wait([people.tasks["a1"]])
        await asyncio.sleep(0)
        assert people.seated[-1] == "a2"


async def test_a_seat_may_become_free_in_the_moment_in_which_its_next_gives_up() -> None:
    async with crowd(admission()) as people:
        for name in ("a0", "a1", "a2"):
            await people.come(name)
        people._go["a0"].set()
        people.tasks["a1"].cancel()  # a0 leaves before a1 hears of it
        await asyncio.wait([people.tasks["a0"], people.tasks["a1"]])
        await people.tasks["a0"]
        await asyncio.sleep(0)
        assert people.seated == ["a0", "a2"]


async def test_requests_that_are_being_prepared_count_before_the_work_is_done() -> None:
    door = admission(seats=1, room=Room(1, 1000, 60))
    with door.arriving("a"), door.arriving("b"):
        with pytest.raises(RateLimited), door.arriving("a"):
            pass
        assert door.preparing == 2
    assert door.preparing == 0
    assert not door._queues


async def test_no_comment_and_so_no_status_goes_out_before_a_request_has_its_seat() -> None:
    sent: list[Any] = []
    admitted = False

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def answer(write: Any) -> None:
        nonlocal admitted
        await asyncio.sleep(0.05)
        assert not sent
        admitted = True
        async with asyncio.timeout(10):
            while not sent:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    await EventStream(answer, keep_alive=0.004, admitted=lambda: admitted)({"type": "http"}, receive, send)
    assert sent[1]["body"] == KEEP_ALIVE


async def test_when_to_come_again_follows_the_rate_at_which_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("functionary_vllm.api.admission.time", SimpleNamespace(monotonic=lambda: now))
    async with crowd(admission(room=Room(100, 10**6, 600))) as people:
        for i in range(30):
            await people.come(f"a{i}")
        for _ in range(10):
            now += 2
            await people.end(people.seated[-1])
        # 9 gaps of 2 seconds, and 19 that wait
        assert people.door.retry_after() == pytest.approx(19 * 2)
        now += 1000
        assert people.door.retry_after() == 60
