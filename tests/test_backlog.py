"""What is kept for a reader that does not read."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from functionary_vllm import backlog as module
from functionary_vllm.backlog import Backlog
from functionary_vllm.engine.base import Step, TokenLogprob
from functionary_vllm.errors import ReaderTooSlow

TOKENS = 100_000


async def test_a_token_that_nobody_reads_costs_a_few_bytes() -> None:
    backlog = Backlog(lambda step: asyncio.Event().wait())  # type: ignore[arg-type, return-value]
    backlog.step(Step(0, [1]))
    await asyncio.sleep(0)
    tracemalloc.start()
    for token in range(TOKENS):
        backlog.step(Step(token % 2, [100_000 + token]))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    backlog.close()
    assert kept < 6 * TOKENS


async def test_what_was_kept_comes_as_one_step_a_choice() -> None:
    taken: list[Step] = []
    reads = asyncio.Event()

    def read(step: Step) -> asyncio.Task[bool] | None:
        taken.append(step)
        return None if reads.is_set() else asyncio.create_task(reads.wait())

    backlog = Backlog(read)  # type: ignore[arg-type]
    backlog.step(Step(0, [1]))
    one, two = TokenLogprob(2, -1.0), TokenLogprob(3, -2.0)
    backlog.step(Step(0, [2], None, [one], 5))
    backlog.step(Step(1, [7], None))
    backlog.step(Step(0, [3], "length", [two]))
    backlog.step(Step(1, [8, 9], "stop"))
    reads.set()
    await backlog.finish()
    assert taken == [Step(0, [1]), Step(0, [2, 3], "length", [one, two], 5), Step(1, [7, 8, 9], "stop")]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_reader_that_lags_by_too_many_logprobs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(module, "_MOST_LOGPROBS", 10)
    backlog = Backlog(lambda step: None if whole else asyncio.Event().wait(), whole=whole)  # type: ignore[arg-type, return-value]
    for token in range(11):
        backlog.step(Step(token % 2, [token], None, [TokenLogprob(token, -1.0)]))
    await asyncio.sleep(0)
    if whole:  # nobody is meant to read before the end
        backlog.step(Step(0, [11], None, [TokenLogprob(11, -1.0)]))
    else:
        with pytest.raises(ReaderTooSlow):
            backlog.step(Step(0, [11], None, [TokenLogprob(11, -1.0)]))
    backlog.close()
