"""engine/vllm.py: first against a stand-in for AsyncLLM, then, marked `engine`, on the built-in model."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import warnings
from collections.abc import AsyncGenerator, Iterator
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest

from functionary_vllm.engine.adapters import LoadedAdapters
from functionary_vllm.engine.base import Capacity, Engine, Generation, Sampling, Step
from functionary_vllm.engine.startup import StartError, start_vllm
from functionary_vllm.errors import ApiError, EngineFailure, EngineUnavailable, InvalidRequest, RateLimited
from tests.fakes import collect, going

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM and torch warn of their own deprecations while they are imported
    pytest.importorskip("vllm", reason="vLLM is not installed: only the replay engine can be tested")
    from vllm import exceptions as vllm_exceptions
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    from functionary_vllm.engine.vllm import VllmEngine

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def same_environment() -> Iterator[None]:
    """Starting vLLM sets variables for it and its children; the tests of other modules should not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class FakeLLM:
    """What VllmEngine uses of AsyncLLM: each request yields one token after another, or raises `error`."""

    def __init__(self, tokens: int = 3, error: Exception | None = None, defaults: dict[str, Any] | None = None) -> None:
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(enable_chunked_prefill=False, max_num_seqs=8),
            cache_config=SimpleNamespace(kv_cache_size_tokens=None, num_gpu_blocks=10, block_size=16),
            parallel_config=SimpleNamespace(data_parallel_size=2),
        )
        self.model_config = SimpleNamespace(
            max_model_len=100,
            get_vocab_size=lambda: 50,
            get_diff_sampling_param=lambda: defaults or {},
            hf_config=SimpleNamespace(model_type="llama"),
        )
        self.tokens = tokens
        self.error = error
        self.asked: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.shutdowns = 0

    def get_tokenizer(self) -> Any:
        return "tokenizer"

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, lora_request: Any = None, priority: int = 0
    ) -> AsyncGenerator[Any, None]:
        self.asked[request_id] = SimpleNamespace(
            prompt=prompt, params=sampling_params, lora=lora_request, priority=priority
        )
        for position in range(self.tokens):
            await asyncio.sleep(0)
            if request_id in self.aborted:
                yield output([], "abort")
                return
            if self.error is not None and position:
                raise self.error
            yield output([position], "length" if position == self.tokens - 1 else None)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def check_health(self) -> None:
        if self.error is not None:
            raise self.error

    def shutdown(self, timeout: float | None = None) -> None:
        self.shutdowns += 1


class OneAdapter:
    room = 1

    async def load(self, label: str, number: int, path: str) -> str:
        return "lora"

    async def unload(self, number: int) -> None:
        """It stays."""


def output(token_ids: list[int], finish: str | None, logprobs: Any = None) -> Any:
    completion = SimpleNamespace(token_ids=token_ids, finish_reason=finish, logprobs=logprobs)
    return SimpleNamespace(outputs=[completion], finished=finish is not None, num_cached_tokens=2)


def generation(**fields: Any) -> Generation:
    own = {name: fields.pop(name) for name in ("constraint", "model", "priority", "stop_token_ids") if name in fields}
    return Generation("r", [7, 8], Sampling(**fields), **own)


def fake(**fields: Any) -> tuple[VllmEngine, FakeLLM]:
    llm = FakeLLM(**fields)
    return VllmEngine(llm), llm  # type: ignore[arg-type]


async def test_steps_are_deltas_of_token_ids() -> None:
    engine, llm = fake()
    protocol: Engine = engine
    steps = await collect(protocol, generation())
    assert steps == [Step(0, [0], None, None, 2), Step(0, [1], None, None, 2), Step(0, [2], "length", None, 2)]
    assert llm.asked["r"].prompt["prompt_token_ids"] == [7, 8]
    assert llm.aborted == []


async def test_vllm_is_told_what_was_asked() -> None:
    engine, llm = fake(defaults={"temperature": 0.6, "top_p": 0.9})
    asked = generation(
        temperature=0.1,
        top_k=3,
        min_p=0.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        repetition_penalty=1.5,
        logit_bias={4: 2.0},
        seed=9,
        logprobs=2,
        max_tokens=11,
        ignore_eos=True,
        stop_token_ids=(5,),
        constraint='{"type": "structural_tag"}',
        model="adapter",
        priority=3,
    )
    llm.tokens = 0
    engine.adapters = LoadedAdapters(OneAdapter())
    await engine.adapters.load("adapter", "/path")
    await collect(engine, asked)
    request = llm.asked["r"]
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.1, 0.9, 3, 0.2)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.3, 0.4, 1.5)
    assert (params.logit_bias, params.seed, params.logprobs, params.max_tokens) == ({4: 2.0}, 9, 2, 11)
    assert params.ignore_eos is True
    assert params.stop_token_ids == [5]
    assert params.structured_outputs.structural_tag == '{"type": "structural_tag"}'
    assert params.detokenize is False
    assert (request.lora, request.priority) == ("lora", 3)


async def test_without_max_tokens_as_many_as_fit() -> None:
    engine, llm = fake(tokens=0)
    await collect(engine, generation())
    assert llm.asked["r"].params.max_tokens is None


async def test_each_choice_is_a_request_with_a_seed_of_its_own() -> None:
    engine, llm = fake()
    steps = await collect(engine, generation(n=3, seed=5))
    assert {name: request.params.seed for name, request in llm.asked.items()} == {"r-0": 5, "r-1": 6, "r-2": 7}
    for choice in range(3):
        own = [step for step in steps if step.choice == choice]
        assert [list(step.token_ids) for step in own] == [[0], [1], [2]]
        assert own[-1].finish == "length"
    assert llm.aborted == []


@pytest.mark.parametrize("count", [1, 2])
async def test_leaving_aborts_every_choice(count: int) -> None:
    engine, llm = fake(tokens=50)
    async with going(engine, generation(n=count)):
        pass
    assert sorted(set(llm.aborted)) == (["r"] if count == 1 else ["r-0", "r-1"])


@pytest.mark.parametrize("count", [1, 2])
async def test_cancelling_aborts_every_choice(count: int) -> None:
    engine, llm = fake(tokens=10**9)
    reader = asyncio.create_task(collect(engine, generation(n=count)))
    for _ in range(10):
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert sorted(set(llm.aborted)) == (["r"] if count == 1 else ["r-0", "r-1"])


async def test_stop_ends_one_choice_without_a_word() -> None:
    engine, llm = fake(tokens=6)
    seen: list[tuple[int, str | None]] = []

    def take(step: Step) -> None:
        if not any(choice == 1 for choice, _ in seen) and step.choice == 1:
            engine.stop("r", 1)
        seen.append((step.choice, step.finish))

    await engine.generate(generation(n=2), take)
    assert [entry for entry in seen if entry[0] == 1] == [(1, None)]
    assert seen[-1] == (0, "length")
    assert set(llm.aborted) == {"r-1"}
    engine.stop("r", 0)  # over: ignored
    assert set(llm.aborted) == {"r-1"}


async def test_stop_of_the_only_choice_ends_the_request() -> None:
    engine, llm = fake(tokens=6)
    steps = []

    def take(step: Step) -> None:
        steps.append(step)
        engine.stop("r", 0)

    await engine.generate(generation(), take)
    assert len(steps) == 1
    assert set(llm.aborted) == {"r"}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VLLMValidationError("too hot", parameter="temperature", value=9), InvalidRequest),
        (ValueError("too hot"), InvalidRequest),
        (EngineGenerateError(), EngineFailure),
        (EngineDeadError(), EngineUnavailable),
    ],
)
async def test_errors_become_ours(error: Exception, expected: type[ApiError], count: int) -> None:
    engine, _ = fake(error=error)
    with pytest.raises(expected) as caught:
        await collect(engine, generation(n=count))
    if expected is InvalidRequest:
        assert caught.value.message == "too hot"


@pytest.mark.parametrize(("size", "tokens"), [(None, 10 * 16), (100, 2 * 100)])
def test_the_capacity_is_that_of_all_engines(size: int | None, tokens: int) -> None:
    llm: Any = FakeLLM()
    llm.vllm_config.cache_config.kv_cache_size_tokens = size
    assert VllmEngine(llm).capacity == Capacity(2 * 8, tokens)


@pytest.mark.skipif(not hasattr(vllm_exceptions, "GracefulHTTPError"), reason="this vLLM has no queue limits")
async def test_vllms_own_queue_limits_are_told_as_ours() -> None:
    busy = vllm_exceptions.GracefulHTTPError("busy", HTTPStatus.SERVICE_UNAVAILABLE)
    with pytest.raises(RateLimited, match="busy") as caught:
        await collect(fake(error=busy)[0], generation())
    assert caught.value.retry_after


async def test_the_cause_of_a_failed_generation_decides() -> None:
    wrapped = EngineGenerateError()
    wrapped.__cause__ = ValueError("not like this")
    with pytest.raises(InvalidRequest, match="not like this"):
        await collect(fake(error=wrapped)[0], generation())
    wrapped = EngineGenerateError()
    wrapped.__cause__ = KeyError("inside")
    with pytest.raises(EngineFailure, match="KeyError"):
        await collect(fake(error=wrapped)[0], generation())


async def test_no_seeds_where_they_could_kill_the_engine() -> None:
    llm = FakeLLM()
    llm.vllm_config.scheduler_config.enable_chunked_prefill = True
    engine = VllmEngine(llm)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="chunked prefill") as caught:
        await collect(engine, generation(seed=1))
    assert caught.value.param == "seed"


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63) - 1, 2**80])
async def test_a_seed_that_does_not_fit_is_refused(seed: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await collect(fake()[0], generation(seed=seed))
    assert caught.value.param == "seed"


async def test_parameters_vllm_refuses_are_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        await collect(fake()[0], generation(temperature=-1.0))


async def test_logprobs_are_exactly_as_many_as_asked() -> None:
    def entry(value: float) -> Any:
        return SimpleNamespace(logprob=value)

    class WithLogprobs(FakeLLM):
        async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            # vLLM's order: the sampled token, then the most likely; the sampled one may be among them or beyond.
            positions = [{3: entry(-9.0), 1: entry(-0.5), 2: entry(-1.0)}, {1: entry(-0.1), 4: entry(float("-inf"))}]
            yield output([3, 1], "stop", positions)

    engine = VllmEngine(WithLogprobs())  # type: ignore[arg-type]
    [step] = await collect(engine, generation(logprobs=2))
    first, second = step.logprobs or ()
    assert (first.token_id, first.logprob, first.top) == (3, -9.0, ((1, -0.5), (2, -1.0)))
    assert (second.token_id, second.logprob, second.top) == (1, -0.1, ((1, -0.1), (4, -9999.0)))
    [step] = await collect(engine, generation(logprobs=0))
    assert [entry.top for entry in step.logprobs or ()] == [(), ()]


async def test_an_error_at_the_end_of_a_request_is_a_failure() -> None:
    class Failing(FakeLLM):
        async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            yield output([], "error")

    with pytest.raises(EngineFailure):
        await collect(VllmEngine(Failing()), generation())  # type: ignore[arg-type]


async def test_health_follows_the_engine_and_ends_with_close() -> None:
    engine, llm = fake()
    await engine.check_health()
    llm.error = EngineDeadError()
    with pytest.raises(EngineUnavailable):
        await engine.check_health()
    await engine.close()
    await engine.close()
    assert llm.shutdowns == 1
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.check_health()


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}},
        {"anyOf": [{"type": "null"}, {"enum": ["x", 1]}]},
    ],
)
def test_schemas_that_can_be_enforced(schema: Any) -> None:
    fake()[0].check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (False, "$: "),
        ({"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 5}}}, "$.properties.n: "),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "$.items: "),
        ({"anyOf": [{"type": "null"}, {"type": "string", "format": "color"}]}, "$.anyOf[1]: "),
        ({"type": "object", "properties": {"a": {"type": "banana"}}}, "$.properties.a: "),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "$: "),
        ({"type": "object", "required": ["a"]}, "$: "),
        ({"type": "array", "items": {"type": "object", "properties": {"b": {}}, "required": ["a"]}}, "$.items: "),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, "$.properties.a: "),
    ],
)
def test_schemas_that_cannot_name_their_place(schema: Any, place: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(place)}"):
        fake()[0].check_schema(schema)


def _tree(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (_tree(12), "too large for its"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(501)}}, "501 properties"),
        ({"type": "string", "pattern": "[a-z]{129}"}, "more than 128 times"),
        ({"type": "string", "pattern": "a{1,99999999999999999999}"}, "more than 128 times"),
        ({"type": "string", "pattern": "(?:[a-z]{0,128}[0-9]{0,128}){0,128}"}, "amount to 33024"),
        ({"anyOf": [{"type": "string", "pattern": "[a-z]{0,128}-" * 8}] * 2}, "amount to 2048"),
        ({"type": "string", "pattern": "a" * 10_001}, "more than 10000 characters"),
    ],
)
def test_what_would_take_too_long_to_compile_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fake()[0].check_schema(schema)


def test_what_is_just_small_enough_is_not() -> None:
    uuid = {"type": "string", "pattern": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\{129}$"}
    required = [f"p{i}" for i in range(600)]
    fake()[0].check_schema({"type": "object", "properties": {f"p{i}": uuid for i in range(50)}})
    fake()[0].check_schema({"type": "object", "properties": {name: {} for name in required}, "required": required})
    fake()[0].check_schema(_tree(6))


def test_a_bottomless_schema_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(2000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="nested too deeply"):
        fake()[0].check_schema(schema)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-such-flag", "1"], "neither a flag of ours nor of vLLM: --no-such-flag 1"),
        (["--max-model-len", "many"], "--max-model-len"),
        (["--max-model-len", "999999999"], "max_model_len"),
    ],
)
def test_flags_vllm_refuses_are_one_line(base_model: Path, flags: list[str], message: str) -> None:
    with pytest.raises(StartError) as caught:
        start_vllm(str(base_model), flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        start_vllm(str(tmp_path), [])
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- the real engine


@pytest.fixture(scope="module")
def real(base_model: Path) -> Any:
    """One engine and one event loop for the tests below: an AsyncLLM stays with the loop it first ran in."""
    engine = start_vllm(str(base_model), ["--max-model-len", "2048"])
    with asyncio.Runner() as runner:
        shared = SimpleNamespace(engine=engine, run=runner.run, prompt=prompt_of(engine))
        yield shared
        runner.run(engine.close())
    # vLLM leaves its ZeroMQ context to the collector; it should come while that is no error.
    del engine, shared.engine
    gc.collect()


def prompt_of(engine: Engine) -> list[int]:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    return list(engine.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def asking(real: Any, name: str, **fields: Any) -> Generation:
    constraint = fields.pop("constraint", None)
    return Generation(name, real.prompt, Sampling(**{"temperature": 0.0, **fields}), constraint=constraint)


def tokens(steps: list[Step], choice: int = 0) -> list[int]:
    return [token_id for step in steps if step.choice == choice for token_id in step.token_ids]


@pytest.mark.engine
def test_real_generation_is_cut_and_repeats_itself(real: Any) -> None:
    first = real.run(collect(real.engine, asking(real, "a", max_tokens=8)))
    again = real.run(collect(real.engine, asking(real, "b", max_tokens=8)))
    assert len(tokens(first)) == 8
    assert first[-1].finish == "length"
    assert tokens(first) == tokens(again)
    assert real.engine.max_model_len == 2048
    llm = real.engine._llm
    assert llm.engine_core.resources.output_queue_task is llm.output_handler  # nobody else reads what the engine says


@pytest.mark.engine
def test_real_constraint_without_detokenizing(real: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    content = {"type": "json_schema", "json_schema": schema}
    tag = {"type": "structural_tag", "format": {"type": "tag", "begin": "<call>", "content": content, "end": "</call>"}}
    steps = real.run(collect(real.engine, asking(real, "tag", max_tokens=80, constraint=json.dumps(tag))))
    text = real.engine.tokenizer.decode(tokens(steps), skip_special_tokens=True)
    assert text.startswith("<call>")
    assert list(json.loads(text.removeprefix("<call>").removesuffix("</call>"))) == ["city"]
    assert steps[-1].finish == "stop"


@pytest.mark.engine
def test_real_choices_logprobs_and_seeds(real: Any) -> None:
    asked = {"temperature": 1.0, "seed": 3, "max_tokens": 6, "logprobs": 2}
    steps = real.run(collect(real.engine, asking(real, "n", n=2, **asked)))
    alone = real.run(collect(real.engine, asking(real, "one", **{**asked, "seed": 4})))
    assert tokens(steps, 1) == tokens(alone)
    for step in steps:
        assert [entry.token_id for entry in step.logprobs or ()] == list(step.token_ids)
        for entry in step.logprobs or ():
            values = [value for _, value in entry.top]
            assert len(values) == 2
            assert values == sorted(values, reverse=True)


@pytest.mark.engine
def test_real_refusals_leave_the_engine_in_health(real: Any) -> None:
    for fields in ({"temperature": 9.0}, {"logprobs": 50}, {"max_tokens": 0}, {"constraint": "{}"}):
        with pytest.raises(InvalidRequest):
            real.run(collect(real.engine, asking(real, "no", **fields)))
    with pytest.raises(InvalidRequest, match="out of vocabulary"):
        real.run(collect(real.engine, Generation("no", [10**6], Sampling())))
    real.run(real.engine.check_health())
    assert real.engine.unfinished() == 0


@pytest.mark.engine
@pytest.mark.parametrize("logprobs", [None, 0], ids=["handed out", "iterated"])
def test_real_leaving_and_stopping_free_the_engine(real: Any, logprobs: int | None) -> None:
    async def leave_and_stop() -> list[Step]:
        async with going(real.engine, asking(real, "left", n=2, max_tokens=1500, ignore_eos=True, logprobs=logprobs)):
            pass
        seen: list[Step] = []

        def take(step: Step) -> None:
            if step.choice == 1:
                real.engine.stop("stopped", 1)
            seen.append(step)

        asked = asking(real, "stopped", n=2, max_tokens=12, ignore_eos=True, logprobs=logprobs)
        await real.engine.generate(asked, take)
        return seen

    seen = real.run(leave_and_stop())
    assert len(tokens(seen, 0)) == 12
    assert len([step for step in seen if step.choice == 1]) == 1
    assert real.engine.unfinished() == 0
    # 12 steps later vLLM's own count of what runs in the engine process has followed.
    running = prometheus_client.REGISTRY.get_sample_value(
        "vllm:num_requests_running", {"engine": "0", "model_name": str(real.engine._llm.model_config.served_model_name)}
    )
    assert running == 0
