"""What a running server looks after besides answering: its engine, clients that stand still, and its own end.

In: an engine that may die, uvicorn's connections and tasks. Out: word of the engine that is lost for good; closed
connections; no request left under way. Nothing here is on a token's way: the engine is looked at twice a second, the
connections once. Refuses to know HTTP, and why the server is to end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from functionary_vllm.api.life import Life
from functionary_vllm.engine.base import Mortal
from functionary_vllm.errors import EngineUnavailable

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
_AGAIN_AFTER_S = 2.0  # an engine that could not be started
_LAST_WORDS_S = 1.5  # for requests that are cut; the border gives each of them a second


class Lost(Exception):
    """The server cannot go on; a supervisor should start it anew."""


# ---------------------------------------------------------------------------------------------- the engine


async def watch_engine(engine: Mortal, life: Life, stall_s: float) -> str:
    """Start a dead engine again while that is allowed. Returns why it is lost for good."""
    while True:
        reason = await _gone(engine, stall_s)
        engine.lose()  # its requests end now
        if not await _mended(engine, life, reason):
            return reason


async def _gone(engine: Mortal, stall_s: float) -> str:
    """Returns when the engine has died, or has work and says nothing for `stall_s`; the reason for a person."""
    heard, quiet, looked = -1, 0.0, time.monotonic()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await engine.check_health()
        except EngineUnavailable:
            return "The engine has died."
        # If it was this process that stood still, what the engine said meanwhile has yet to be read.
        passed, looked = min(time.monotonic() - looked, 2 * LOOK_EVERY_S), time.monotonic()
        if engine.heard != heard or not engine.unfinished():
            heard, quiet = engine.heard, 0.0
        else:
            quiet += passed
        if stall_s and quiet >= stall_s:
            return f"The engine has work and has said nothing for {stall_s:g} s; it counts as dead."


async def _mended(engine: Mortal, life: Life, reason: str) -> bool:
    while life.mends:
        life.mend()
        log.error("%s It is started again; %d more times if need be.", reason, life.restarts)
        try:
            await engine.restart()
        except EngineUnavailable as error:
            reason = error.message
            if life.restarts == 0:
                break
            await asyncio.sleep(_AGAIN_AFTER_S)
            continue
        life.serve()
        log.warning("The engine is back.")
        return True
    log.error("%s", reason)
    return False


# --------------------------------------------------------------------------------------------- the clients


class _Transport(Protocol):
    def abort(self) -> None: ...


class Connection(Protocol):
    """As `protocol.py` makes them."""

    @property
    def transport(self) -> _Transport: ...
    def awaited(self) -> int | None: ...


class Standstill:
    """Closes connections on which it is the client's turn, and nothing has moved for `limit_s`; 0 for none."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[Connection, tuple[int, float]] = {}  # how far it was, and since when

    def look(self, connections: Iterable[Connection], now: float) -> None:
        if not self._limit_s:
            return
        since = {}
        for connection in connections:
            if (awaited := connection.awaited()) is None:
                continue
            far, began = self._since.get(connection, (awaited, now))
            if awaited > far:
                began = now
            if now - began >= self._limit_s:
                log.warning("A client has neither taken nor sent anything for %g s: closed.", self._limit_s)
                connection.transport.abort()
            else:
                since[connection] = awaited, began
        self._since = since


# ------------------------------------------------------------------------------------------------- the end


async def idle(busy: Callable[[], object], until: Callable[[], float]) -> None:
    """Wait while `busy`, up to `until`, a monotonic time that may come nearer meanwhile."""
    while busy() and time.monotonic() < until():  # noqa: ASYNC110 - what ends is uvicorn's, and has no event
        await asyncio.sleep(0.05)


async def cut(tasks: set[asyncio.Task[None]]) -> None:
    """End requests that are still under way: the border tells their clients."""
    if left := set(tasks):
        log.warning("%d requests are cut: they took longer than they were given.", len(left))
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_LAST_WORDS_S)
