"""Steps on their way to a reader that may lag: handed on at once, or kept as tokens until it takes more.

In: an engine's Steps, one call each. Out: the same Steps while the reader keeps up; while it does not, all that came
meanwhile as one Step a choice, which costs it one write instead of many. What is kept is four bytes a token, and
bounded by the request's own length; logprobs, at a thousand times that, have a bound of their own, and a reader that
lags by more is given up. Refuses to know what is read from them.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable

from functionary_vllm.engine.base import Step, TokenLogprob
from functionary_vllm.errors import ReaderTooSlow
from functionary_vllm.events import FinishReason

_MOST_LOGPROBS = 4096  # tokens; 1 to 2 KB each, with 20 alternatives

Lag = Awaitable[None] | None  # None: the reader took it; else to be awaited before it takes more


class Backlog:
    """Between one request and its reader. With `whole`, all Steps but the first are kept until `finish`."""

    __slots__ = ("_kept", "_open", "_read", "_waiting", "_whole")

    def __init__(self, read: Callable[[Step], Lag], *, whole: bool = False) -> None:
        self._read = read
        self._whole = whole
        self._open = True
        self._kept: dict[int, _Kept] = {}  # by choice
        self._waiting: asyncio.Task[None] | None = None

    def step(self, step: Step) -> None:
        if self._open:
            lag = self._read(step)
            if self._whole or lag is not None:
                self._keep_until(lag)
            return
        if self._waiting is not None and self._waiting.done():
            self._waiting.result()  # it ends only by opening, or by what is raised here
        kept = self._kept.get(step.choice)
        if kept is None:
            kept = self._kept[step.choice] = _Kept(step.choice)
        kept.add(step)
        if step.logprobs is not None and not self._whole:
            self._bound_logprobs()

    def _bound_logprobs(self) -> None:
        if sum(kept.logprobs for kept in self._kept.values()) > _MOST_LOGPROBS:
            raise ReaderTooSlow("The answer, with its logprobs, is read too slowly.")

    async def finish(self) -> None:
        """The engine is done: hand on what was kept."""
        if self._waiting is not None:
            await self._waiting
        await self._catch_up(None)

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _keep_until(self, lag: Lag) -> None:
        self._open = False
        if lag is not None:
            self._waiting = asyncio.create_task(self._catch_up(lag))

    async def _catch_up(self, lag: Lag) -> None:
        if lag is not None:
            await lag
        while self._kept:
            kept, self._kept = self._kept, {}
            for steps in kept.values():
                if (lag := self._read(steps.joined())) is not None:
                    await lag
        self._open = not self._whole


class _Kept:
    """What one choice said meanwhile."""

    __slots__ = ("_cached_tokens", "_choice", "_finish", "_logprobs", "_token_ids")

    def __init__(self, choice: int) -> None:
        self._choice = choice
        self._token_ids = array("i")
        self._finish: FinishReason | None = None
        self._logprobs: list[TokenLogprob] | None = None
        self._cached_tokens = 0

    @property
    def logprobs(self) -> int:
        return len(self._logprobs or ())

    def add(self, step: Step) -> None:
        self._token_ids.extend(step.token_ids)
        self._finish = step.finish
        if step.logprobs is not None:
            if self._logprobs is None:
                self._logprobs = []
            self._logprobs += step.logprobs
        if step.cached_tokens > self._cached_tokens:
            self._cached_tokens = step.cached_tokens

    def joined(self) -> Step:
        """One Step that says what these said."""
        return Step(self._choice, self._token_ids.tolist(), self._finish, self._logprobs, self._cached_tokens)
