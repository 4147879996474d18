"""Who runs when: the engine's seats, and a bounded waiting room in front of them.

In: of each request its key's name, its sequences, prompt tokens and priority. Out: seats, at once or when it is its
turn; or RateLimited, at once. The engine gets no more than it runs, and no more prompts than fill its cache before it
has begun with them: so its own queue stays short, and the order is ours. Keys take turns, whatever each has waiting;
within a key the smallest priority goes first, then who came first. Nobody overtakes who needs many seats. Where there
are several keys, each leaves as many places in the room as it takes: there is room for whoever comes next.
Refuses to know HTTP, the limits of keys, and engines.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from functionary_vllm.engine.base import Capacity
from functionary_vllm.errors import RateLimited
from functionary_vllm.metrics import WAITING

_REMEMBERED: Final = 64  # ends of requests, to tell how fast seats become free
_LONGEST_RETRY_S: Final = 60.0
_UNKNOWN_RETRY_S: Final = 5.0  # when none has ended yet


@dataclass(frozen=True, slots=True)
class Room:
    """How much may wait for a seat, and for how long."""

    requests: int
    tokens: int  # of prompts
    seconds: float


class Ticket:
    """One request's claim to seats, held while the engine has it (`async with`)."""

    __slots__ = ("_admission", "_sit", "key", "prefilling", "priority", "seated", "sequences", "tokens")

    def __init__(
        self, admission: Admission, key: str, size: Capacity, priority: int = 0, sit: Callable[[], object] = lambda: 0
    ) -> None:
        """`sit` is called when it has its seats."""
        self._admission = admission
        self._sit = sit
        self.key = key
        self.sequences = size.sequences
        self.tokens = size.tokens
        self.priority = priority
        self.seated = False  # whether it ever was
        self.prefilling = False

    async def __aenter__(self) -> None:
        await self._admission.enter(self)
        self._sit()

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._admission.leave(self)

    def begun(self) -> None:
        """The engine's first step has come."""
        self._admission.begun(self)


@dataclass(order=True, slots=True)
class _Place:
    """One that waits. Compared by whose turn it is."""

    priority: int
    arrival: int
    ticket: Ticket = field(compare=False)
    called: asyncio.Future[None] = field(compare=False)


class _Queue:
    """What one key has in front of the seats: requests being prepared, and places in order."""

    __slots__ = ("places", "preparing", "tokens")

    def __init__(self) -> None:
        self.places: list[_Place] = []
        self.preparing = 0
        self.tokens = 0


class Admission:
    """`several` says whether more than one key is known."""

    def __init__(self, seats: Capacity, room: Room, several: Callable[[], bool] = lambda: False) -> None:
        self.seats = seats
        self.room = room
        self.running = self.waiting = self.preparing = 0  # sequences, requests, requests
        self._several = several
        self._prefilling = self._waiting_tokens = 0
        self._queues: dict[str, _Queue] = {}
        self._turns: deque[str] = deque()  # the keys of those that wait
        self._arrivals = itertools.count()
        self._ended: deque[float] = deque(maxlen=_REMEMBERED)

    # -- before a request is prepared ------------------------------------------------------------------------------

    def arriving(self, key: str) -> _Arrival:
        """Hold this while a request is prepared. Raises RateLimited when no more can be taken in, without that work."""
        return _Arrival(self, key)

    def arrive(self, key: str) -> None:
        queue = self._queues.get(key) or _Queue()
        ahead = self.preparing + self.waiting
        places = self.room.requests + max(0, self.seats.sequences - self.running)
        if 2 * ahead >= places:  # else no key can have taken its share
            self._check(queue, queue.preparing + len(queue.places), places - ahead)
        self._queues[key] = queue
        self.preparing += 1
        queue.preparing += 1

    def depart(self, key: str) -> None:
        queue = self._queues[key]
        self.preparing -= 1
        queue.preparing -= 1
        self._forget(key, queue)

    def _check(self, queue: _Queue, mine: int, free: int) -> None:
        if free <= 0 or (mine >= free and self._several()):
            raise RateLimited(
                f"The server is at its capacity: {self.waiting} requests are waiting.", self.retry_after()
            )

    def _forget(self, key: str, queue: _Queue) -> None:
        if not queue.preparing and not queue.places:
            del self._queues[key]

    # -- seats -----------------------------------------------------------------------------------------------------

    async def enter(self, ticket: Ticket) -> None:
        """Raises RateLimited: at once when the room is full, later when it took too long."""
        if not self.waiting and self._fits(ticket):
            if not self.running:
                self._ended.clear()  # how fast seats became free before a pause says nothing
            self._seat(ticket)
        else:
            await self._wait(ticket)

    def leave(self, ticket: Ticket) -> None:
        self.running -= ticket.sequences
        self._ended.append(time.monotonic())
        if ticket.prefilling:
            self.begun(ticket)
        elif self.waiting:
            self._call()

    def begun(self, ticket: Ticket) -> None:
        if ticket.prefilling:
            ticket.prefilling = False
            self._prefilling -= ticket.tokens
            if self.waiting:
                self._call()

    def _fits(self, ticket: Ticket) -> bool:
        seats = self.seats
        free = seats.sequences - self.running
        return (ticket.sequences <= free or not self.running) and (
            self._prefilling + ticket.tokens <= seats.tokens or not self._prefilling
        )

    def _seat(self, ticket: Ticket) -> None:
        ticket.seated = ticket.prefilling = True
        self.running += ticket.sequences
        self._prefilling += ticket.tokens

    # -- the waiting room ------------------------------------------------------------------------------------------

    async def _wait(self, ticket: Ticket) -> None:
        place = self._take_place(ticket)
        WAITING.inc()
        try:
            async with asyncio.timeout(self.room.seconds):
                await place.called
        except BaseException as error:
            if not ticket.seated:
                self._leave_place(place)
            elif isinstance(error, TimeoutError):  # called in the last moment
                return
            else:
                self.leave(ticket)
            if isinstance(error, TimeoutError):
                message = f"The server is at its capacity: there was no place within {self.room.seconds:g} seconds."
                raise RateLimited(message, self.retry_after(), code="queue_timeout") from None
            raise
        finally:
            WAITING.dec()

    def _take_place(self, ticket: Ticket) -> _Place:
        queue = self._queues.get(ticket.key) or _Queue()
        self._check(queue, len(queue.places), self.room.requests - self.waiting)
        free = self.room.tokens - self._waiting_tokens
        if self.waiting and (ticket.tokens > free or (queue.tokens >= free and self._several())):
            message = f"The server is at its capacity: prompts of {self._waiting_tokens} tokens are waiting."
            raise RateLimited(message, self.retry_after())
        place = _Place(ticket.priority, next(self._arrivals), ticket, asyncio.get_running_loop().create_future())
        self._queues[ticket.key] = queue
        if not queue.places:
            self._turns.append(ticket.key)
        insort(queue.places, place)
        queue.tokens += ticket.tokens
        self.waiting += 1
        self._waiting_tokens += ticket.tokens
        return place

    def _leave_place(self, place: _Place) -> None:
        key = place.ticket.key
        queue = self._queues[key]
        self._take_out(queue, bisect_left(queue.places, place))
        if not queue.places:
            self._turns.remove(key)
            self._forget(key, queue)
        self._call()  # it may have been what the others waited behind

    def _take_out(self, queue: _Queue, at: int) -> None:
        tokens = queue.places.pop(at).ticket.tokens
        queue.tokens -= tokens
        self.waiting -= 1
        self._waiting_tokens -= tokens

    def _call(self) -> None:
        """Seat those whose turn it is, as long as there are seats."""
        while self._turns:
            key = self._turns[0]
            queue = self._queues[key]
            place = queue.places[0]
            ticket = place.ticket
            if not self._fits(ticket):
                return
            self._turns.popleft()
            self._take_out(queue, 0)
            if queue.places:
                self._turns.append(key)
            else:
                self._forget(key, queue)
            self._seat(ticket)
            if not place.called.done():  # else it gives up in this very moment, and then gives the seat back
                place.called.set_result(None)

    def retry_after(self) -> float:
        """Seconds in which as many seats become free as there are requests in front of them."""
        ended = self._ended
        if len(ended) < 2:
            return _UNKNOWN_RETRY_S
        rate = (len(ended) - 1) / max(1e-3, time.monotonic() - ended[0])
        return min(_LONGEST_RETRY_S, max(1.0, (self.waiting + self.preparing) / rate))


class _Arrival:
    __slots__ = ("_admission", "_key")

    def __init__(self, admission: Admission, key: str) -> None:
        self._admission = admission
        self._key = key

    def __enter__(self) -> None:
        self._admission.arrive(self._key)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._admission.depart(self._key)
