"""Steps on their way to a reader that may lag: handed on at once, or kept as tokens until it takes more.

In: an engine's Steps, one call each. Out: the same Steps while the reader keeps up; while it does not, all that came
meanwhile as one Step a choice, which costs it one write instead of many. What is kept is a few bytes a token, and
bounded by the request's own length. Refuses to know what is read from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from functionary_vllm.engine.base import Step

Lag = Awaitable[None] | None  # None: the reader took it; else to be awaited before it takes more


class Backlog:
    """Between one request and its reader. With `whole`, all Steps but the first are kept until `finish`."""

    __slots__ = ("_kept", "_open", "_read", "_waiting", "_whole")

    def __init__(self, read: Callable[[Step], Lag], *, whole: bool = False) -> None:
        self._read = read
        self._whole = whole
        self._open = True
        self._kept: list[Step] = []
        self._waiting: asyncio.Task[None] | None = None

    def step(self, step: Step) -> None:
        if self._open:
            lag = self._read(step)
            if self._whole or lag is not None:
                self._keep_until(lag)
            return
        if self._waiting is not None and self._waiting.done():
            self._waiting.result()  # it ends only by opening, or by what is raised here
        self._kept.append(step)

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
            kept, self._kept = self._kept, []
            for step in joined(kept):
                if (lag := self._read(step)) is not None:
                    await lag
        self._open = not self._whole


def joined(steps: Iterable[Step]) -> list[Step]:
    """One Step a choice, which says what these said."""
    by_choice: dict[int, list[Step]] = {}
    for step in steps:
        by_choice.setdefault(step.choice, []).append(step)
    return [
        Step(
            choice,
            [token_id for step in said for token_id in step.token_ids],
            said[-1].finish,
            None if said[0].logprobs is None else [entry for step in said for entry in step.logprobs or ()],
            max(step.cached_tokens for step in said),
        )
        for choice, said in by_choice.items()
    ]
