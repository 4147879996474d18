"""engine/vllm_outputs.py against a stand-in for vLLM's client: who is called with what, and what ends a request.

The same on the real engine is in test_engine_vllm.py.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram

from functionary_vllm.engine.base import Step
from functionary_vllm.errors import EngineFailure

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM and torch warn of their own deprecations while they are imported
    pytest.importorskip("vllm", reason="vLLM is not installed: only the replay engine can be tested")
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.metrics.stats import PrefillStats

    from functionary_vllm.engine.vllm_outputs import DirectLLM, Live, observe_many

pytestmark = pytest.mark.filterwarnings("ignore")


class Core:
    """What DirectLLM uses of vLLM's client when that keeps its own queue."""

    def __init__(self) -> None:
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.resources = SimpleNamespace(engine_dead=False, output_queue_task=None)
        self.added: list[Any] = []
        self.aborted: list[str] = []

    def say(self, *outputs: EngineCoreOutput, at: float = 1.0) -> None:
        self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=list(outputs), timestamp=at))

    async def get_output_async(self) -> Any:
        said = await self.outputs_queue.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def add_request_async(self, request: Any) -> None:
        self.added.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


class Recorded:
    """In the place of vLLM's loggers and its output processor: what they were told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.others: list[str] = []
        self.broken: Exception | None = None
        self.stat_loggers: list[Any] = []
        self.lora_states = SimpleNamespace(request_finished=lambda request_id, name: None)

    def record(self, scheduler_stats: Any, iteration_stats: Any, engine_idx: int) -> None:
        self.told.append(iteration_stats)

    def process_outputs(self, outputs: list[Any], timestamp: float, stats: Any) -> None:
        self.others += [output.request_id for output in outputs]

    def update_scheduler_stats(self, stats: Any) -> None:
        pass

    def get_num_unfinished_requests(self) -> int:
        return 0

    def get_num_queued_tokens(self) -> int:
        return 0

    def propagate_error(self, error: Exception) -> None:
        self.broken = error


def process_inputs(request_id: str, prompt: Any, params: Any, **options: Any) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        external_req_id=request_id,
        prompt_token_ids=prompt,
        arrival_time=0.0,
        lora_request=None,
        sampling_params=params,
    )


@asynccontextmanager
async def directly() -> AsyncIterator[tuple[DirectLLM, Core, Recorded]]:
    core, recorded = Core(), Recorded()
    llm = DirectLLM.__new__(DirectLLM)
    llm._prepare()
    llm.__dict__.update(
        engine_core=core,
        input_processor=SimpleNamespace(process_inputs=process_inputs, assign_request_id=lambda request: None),
        output_processor=recorded,
        logger_manager=recorded,
        log_stats=True,
        output_handler=None,
        _supported_tasks=("generate",),
        check_admission=lambda request_id: None,
        admission_stats=None,
    )
    try:
        yield llm, core, recorded
    finally:
        if llm.output_handler is not None:
            llm.output_handler.cancel()
            await asyncio.gather(llm.output_handler, return_exceptions=True)


async def begun(llm: DirectLLM, name: str, take: Callable[[Step], Any], choice: int = 0) -> Live:
    params = SimpleNamespace(max_tokens=9)
    return await llm.begin(choice, take, request_id=name, prompt=[1, 2, 3], sampling_params=params)


def output(name: str, *tokens: int, finish: FinishReason | None = None, cached: int | None = None) -> EngineCoreOutput:
    prefill = None if cached is None else PrefillStats(num_prompt_tokens=3, num_cached_tokens=cached)
    return EngineCoreOutput(name, list(tokens), finish_reason=finish, prefill_stats=prefill)


async def test_each_is_called_with_its_own_tokens() -> None:
    async with directly() as (llm, core, recorded):
        one: list[Step] = []
        two: list[Step] = []
        lives = [await begun(llm, "one", one.append), await begun(llm, "two", two.append, choice=1)]
        assert llm.get_num_unfinished_requests() == 2
        assert llm.get_num_queued_tokens() == 6
        core.say(output("one", 5, cached=2), output("two", 6), output("of another kind", 7))
        await asyncio.sleep(0.01)
        assert llm.get_num_queued_tokens() == 0
        core.say(output("one", 8, 9, finish=FinishReason.STOP), output("two", finish=FinishReason.LENGTH))
        await asyncio.gather(*(live.ended for live in lives))
        assert one == [Step(0, [5], None, None, 2), Step(0, [8, 9], "stop", None, 2)]
        assert two == [Step(1, [6]), Step(1, [], "length")]
        assert llm.get_num_unfinished_requests() == 0
        assert core.aborted == []
        assert recorded.others == ["of another kind"]


async def test_what_came_meanwhile_is_one_step() -> None:
    async with directly() as (llm, core, _):
        steps: list[Step] = []
        live = await begun(llm, "r", steps.append)
        for token in (5, 6, 7):
            core.say(output("r", token))
        core.say(output("r", 8, finish=FinishReason.LENGTH))
        await live.ended
        assert steps == [Step(0, [5, 6, 7, 8], "length")]


async def test_more_than_a_turn_of_the_loop_can_hand_out() -> None:
    async with directly() as (llm, core, _):
        steps: list[Step] = []
        lives = [await begun(llm, str(number), steps.append) for number in range(300)]
        core.say(*(output(str(number), number, finish=FinishReason.STOP) for number in range(300)))
        await asyncio.gather(*(live.ended for live in lives))
        assert [step.token_ids for step in steps] == [[number] for number in range(300)]


async def test_what_one_raises_is_its_own_end() -> None:
    async with directly() as (llm, core, _):
        steps: list[Step] = []

        def refuse(step: Step) -> None:
            raise RuntimeError("no more")

        bad, good = await begun(llm, "bad", refuse), await begun(llm, "good", steps.append)
        core.say(output("bad", 1), output("good", 2))
        core.say(output("bad", 3), output("good", 4, finish=FinishReason.STOP))
        await good.ended
        with pytest.raises(RuntimeError, match="no more"):
            await bad.ended
        assert [token for step in steps for token in step.token_ids] == [2, 4]
        await asyncio.sleep(0)
        assert core.aborted == ["bad"]


async def test_a_request_that_failed_in_the_engine() -> None:
    async with directly() as (llm, core, _):
        live = await begun(llm, "r", lambda step: None)
        core.say(output("r", finish=FinishReason.ERROR))
        with pytest.raises(EngineFailure):
            await live.ended


async def test_leaving_aborts_once_and_only_what_is_under_way() -> None:
    async with directly() as (llm, core, _):
        steps: list[Step] = []
        left, done = await begun(llm, "left", steps.append), await begun(llm, "done", lambda step: None)
        llm.leave(left)
        llm.leave(left)
        core.say(output("left", 1), output("done", 2, finish=FinishReason.STOP))
        await done.ended
        llm.leave(done)
        await asyncio.sleep(0)
        assert core.aborted == ["left"]
        assert steps == []


@pytest.mark.parametrize("how", ["told", "cancelled"])
async def test_when_the_engine_dies_each_request_is_told(how: str) -> None:
    async with directly() as (llm, core, recorded):
        lives = [await begun(llm, name, lambda step: None) for name in "ab"]
        await asyncio.sleep(0)
        if how == "told":
            core.outputs_queue.put_nowait(EngineDeadError())
        else:
            assert llm.output_handler is not None
            llm.output_handler.cancel()
        for live in lives:
            with pytest.raises(EngineDeadError):
                await live.ended
        assert isinstance(recorded.broken, EngineDeadError)
        with pytest.raises(EngineDeadError):
            await begun(llm, "late", lambda step: None)


async def test_vllms_statistics_count_the_same() -> None:
    async with directly() as (llm, core, recorded):
        gaps = Histogram("gaps", "seconds", registry=CollectorRegistry())
        recorded.stat_loggers = [SimpleNamespace(histogram_inter_token_latency=[gaps])]
        lives = [await begun(llm, name, lambda step: None) for name in "ab"]
        core.say(output("a", 1, cached=0), output("b", 1, cached=1), at=1.0)
        core.say(output("a", 2), output("b", 2, 3), at=1.25)
        core.say(output("a", 3, finish=FinishReason.STOP), at=1.5)
        core.say(output("b", 4, finish=FinishReason.LENGTH), at=2.25)
        await asyncio.gather(*(live.ended for live in lives))
        assert [stats.num_generation_tokens for stats in recorded.told] == [2, 3, 1, 1]
        assert len(recorded.told[0].time_to_first_tokens_iter) == 2
        finished = [request for stats in recorded.told for request in stats.finished_requests]
        assert [(r.num_generation_tokens, r.num_prompt_tokens, r.num_cached_tokens) for r in finished] == [
            (3, 3, 0),
            (4, 3, 1),
        ]
        assert [r.decode_time for r in finished] == [0.5, 1.25]
        (family,) = gaps.collect()
        told = {sample.name: sample.value for sample in family.samples if not sample.labels}
        assert (told["gaps_count"], told["gaps_sum"]) == (4, 0.25 * 3 + 1.0)


def test_many_observations_at_once_are_many_observations() -> None:
    registry = CollectorRegistry()
    once = Histogram("once", "at once", registry=registry, buckets=(0.1, 1.0))
    each = Histogram("each", "one by one", registry=registry, buckets=(0.1, 1.0))
    for value, times in ((0.05, 3), (0.1, 2), (0.5, 4), (7.0, 1)):
        observe_many(once, value, times)
        for _ in range(times):
            each.observe(value)

    def samples(histogram: Histogram) -> list[tuple[Any, Any, float]]:
        (family,) = histogram.collect()
        return [
            (sample.name[4:], sample.labels, round(sample.value, 9))
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]

    assert samples(once) == samples(each)
