"""Pipeline: what is prepared for the engine, and what is made of its steps."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from functionary_vllm.backlog import Lag
from functionary_vllm.conversation import AUTO, Choice, Conversation, Function, Message
from functionary_vllm.engine.base import Sampling, Step
from functionary_vllm.errors import ContextLengthExceeded
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Finish, Text, merge
from functionary_vllm.formats import get_format
from functionary_vllm.offer import functions_from_tools
from functionary_vllm.pipeline import Delta, Pipeline, Task
from tests.fakes import END, HANG, FakeEngine

WEATHER = Function(
    {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CALL_EVENTS: list[Event] = [CallStart(0, "get_weather"), CallArguments(0, '{"city": "Paris"}'), CallEnd(0)]


def task(
    text: str = "Hi", choice: Choice = AUTO, *, functions: tuple[Function, ...] = (WEATHER,), **options: Any
) -> Task:
    sampling = options.pop("sampling", Sampling())
    return Task("r1", Conversation((Message("user", text),), functions, choice), sampling, **options)


async def answer(engine: FakeEngine, asked: Task) -> list[Delta]:
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)
    deltas: list[Delta] = []
    async with asyncio.timeout(5):
        await pipeline.run(pipeline.prepare(asked), deltas.append)
    return deltas


def events(deltas: list[Delta], choice: int = 0) -> list[Event]:
    return merge(event for delta in deltas if delta.choice == choice for event in delta.events)


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_a_call(step: int) -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play("Sure.\n" + CALL, step=step)]
    deltas = await answer(engine, task())
    assert events(deltas) == [Text("Sure."), *CALL_EVENTS, Finish("stop")]
    assert deltas[-1].completion_tokens == len(engine.tokenizer.encode("Sure.\n" + CALL)) + 1
    assert not engine.stopped


@pytest.mark.parametrize("step", [1, 1000])
async def test_length_cuts_a_call(step: int) -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play(CALL[:54], "length", step=step)]
    assert events(await answer(engine, task())) == [CALL_EVENTS[0], CallArguments(0, '{"cit'), Finish("length")]


@pytest.mark.parametrize("step", [1, 1000])
async def test_the_last_call_stops_the_engine(step: int) -> None:
    engine = FakeEngine()
    engine.scripts = [
        [*engine.play(CALL + "\n" + CALL, step=step)[:-1], HANG] if step == 1 else engine.play(CALL + CALL, step=step)
    ]
    deltas = await answer(engine, task(max_calls=1))
    assert events(deltas) == [*CALL_EVENTS, Finish("stop")]
    assert engine.stopped == ([("r1", 0)] if step == 1 else [])


@pytest.mark.parametrize("step", [1, 2, 1000])
async def test_a_stop_string_ends_text(step: int) -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play("one two END three", step=step)]
    deltas = await answer(engine, task(sampling=Sampling(stop=("END", "never"))))
    assert events(deltas) == [Text("one two "), Finish("stop")]


@pytest.mark.parametrize("step", [1, 1000])
async def test_a_stop_string_counts_in_arguments_but_not_in_markup(step: int) -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play(CALL, step=step)]
    deltas = await answer(engine, task(sampling=Sampling(stop=("Par", "name", "tool_call"))))
    assert events(deltas) == [CALL_EVENTS[0], CallArguments(0, '{"city": "'), Finish("stop")]


async def test_choices_are_read_apart() -> None:
    engine = FakeEngine()
    one, two = engine.play(CALL, choice=0), engine.play("Hello 🌧", choice=1)
    mixed = [step for pair in zip(one, two, strict=False) for step in pair] + one[len(two) :]
    engine.scripts = [mixed]
    deltas = await answer(engine, task(sampling=Sampling(n=2)))
    assert events(deltas, 0) == [*CALL_EVENTS, Finish("stop")]
    assert events(deltas, 1) == [Text("Hello 🌧"), Finish("stop")]


async def test_leaving_aborts_the_engine_request() -> None:
    engine = FakeEngine()
    engine.scripts = [[*engine.play("Hello")[:2], HANG]]
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)
    begun = asyncio.Event()
    running = asyncio.create_task(pipeline.run(pipeline.prepare(task()), lambda delta: begun.set()))
    await asyncio.wait_for(begun.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.aborted == ["r1"]
    assert not engine.running


async def test_what_the_reader_raises_ends_the_request() -> None:
    engine = FakeEngine()
    engine.scripts = [[*engine.play("Hello")[:2], HANG]]
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)

    def refuse(delta: Delta) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        await asyncio.wait_for(pipeline.run(pipeline.prepare(task()), refuse), 5)
    assert not engine.running


@pytest.mark.parametrize("lags_at", [1, 2, 30])
async def test_a_reader_that_lags_gets_the_rest_in_one(lags_at: int) -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play("Sure.\n" + CALL)]
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)
    deltas: list[Delta] = []
    again = asyncio.Event()

    async def later() -> None:
        await again.wait()

    def take(delta: Delta) -> Lag:
        deltas.append(delta)
        return later() if len(deltas) == lags_at else None

    running = asyncio.create_task(pipeline.run(pipeline.prepare(task()), take))
    while engine.running or not engine.requests:  # noqa: ASYNC110 - there is nothing to wait on in what is observed
        await asyncio.sleep(0)
    assert len(deltas) == lags_at
    again.set()
    await asyncio.wait_for(running, 5)
    assert len(deltas) == lags_at + 1
    assert events(deltas) == [Text("Sure."), *CALL_EVENTS, Finish("stop")]


@pytest.mark.parametrize("asked", [{}, {"sampling": Sampling(n=2)}, {"sampling": Sampling(stop=("never",))}])
async def test_whole_answers_are_the_same_events(asked: dict[str, Any]) -> None:
    """Read at once at the end, but for the first step; token by token where a stop string may come."""
    engine = FakeEngine()
    two = [step for pair in zip(engine.play(CALL), engine.play(CALL, choice=1), strict=True) for step in pair]
    engine.scripts = [two if "sampling" in asked and asked["sampling"].n == 2 else engine.play(CALL)]
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)
    deltas: list[Delta] = []
    await pipeline.run(pipeline.prepare(task(**asked)), deltas.append, whole=True)
    choices = asked.get("sampling", Sampling()).n
    for choice in range(choices):
        assert events(deltas, choice) == [*CALL_EVENTS, Finish("stop")]
    if not asked.get("sampling", Sampling()).stop:
        assert len(deltas) == 1 + choices


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
async def test_logprobs_belong_to_what_is_shown(step: int) -> None:
    """One entry a token that gave a character of the text, parts of a character included; none for markup."""
    engine = FakeEngine()
    engine.scripts = [engine.play("Hé 🌧.\n" + CALL, step=step, logprobs=True)]
    deltas = await answer(engine, task(sampling=Sampling(logprobs=1)))
    entries = [entry for delta in deltas for entry in delta.logprobs or ()]
    assert bytes(ids_to_bytes(engine, [entry.token_id for entry in entries])) == "Hé 🌧.".encode()


async def test_a_stop_token_ends_nothing_where_it_is_to_be_ignored() -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play(f"one{END} two{END} three", "length")]
    deltas = await answer(engine, task(sampling=Sampling(ignore_eos=True, max_tokens=100)))
    assert events(deltas) == [Text("one two three"), Finish("length")]
    assert deltas[-1].completion_tokens == len(engine.tokenizer.encode(f"one{END} two{END} three"))
    assert engine.requests[0].stop_token_ids == ()


def ids_to_bytes(engine: FakeEngine, ids: list[int]) -> bytes:
    pieces = get_format("hermes", engine.tokenizer).alphabet.pieces
    assert pieces is not None
    return b"".join(pieces.token_bytes(i) for i in ids)


async def test_logprobs_after_a_stop_string() -> None:
    engine = FakeEngine()
    engine.scripts = [engine.play("one END two", step=3, logprobs=True)]
    deltas = await answer(engine, task(sampling=Sampling(logprobs=0, stop=("END",))))
    ids = [entry.token_id for delta in deltas for entry in delta.logprobs or ()]
    assert ids_to_bytes(engine, ids) == b"one "


def prepared(engine: FakeEngine, asked: Task) -> Any:
    return Pipeline(get_format("hermes", engine.tokenizer), engine).prepare(asked)


def test_what_fits_is_the_default_length() -> None:
    engine = FakeEngine([], max_model_len=2000)
    generation = prepared(engine, task()).generation
    assert generation.sampling.max_tokens == 2000 - len(generation.prompt_ids)
    assert engine.tokenizer.eos_token_id in generation.stop_token_ids


def test_too_long() -> None:
    engine = FakeEngine([], max_model_len=500)
    with pytest.raises(ContextLengthExceeded, match=r"maximum context length is 500 tokens.*resulted in"):
        prepared(engine, task("x" * 600))
    with pytest.raises(ContextLengthExceeded, match="you requested"):
        prepared(engine, task(functions=(), choice=Choice("none"), sampling=Sampling(max_tokens=490)))


def test_what_is_enforced() -> None:
    def refuse(schema: Any) -> None:
        if "pattern" in str(schema):
            raise ValueError("no patterns")

    engine = FakeEngine([])
    engine.refuse = refuse
    assert prepared(engine, task()).generation.constraint is None
    named = prepared(engine, task(choice=Choice("named", "get_weather"))).generation.constraint
    assert '"city"' in named
    odd = Function({"name": "odd", "parameters": {"type": "object", "properties": {"x": {"pattern": "a"}}}})
    loose = prepared(engine, task(choice=Choice("required"), functions=(WEATHER, odd))).generation.constraint
    assert '"city"' in loose
    assert "pattern" not in loose
    assert Pipeline(get_format("hermes", engine.tokenizer), engine).refusal(odd.parameters) == "no patterns"
    strict = prepared(engine, task(functions=(replace(WEATHER, strict=True),))).generation.constraint
    assert "triggered_tags" in strict


def test_only_what_may_be_called_is_shown() -> None:
    engine = FakeEngine([])
    other = Function({"name": "other", "description": "something else"})
    both = (WEATHER, other)
    shown = {
        mode: prepared(engine, task(choice=Choice(mode, name), functions=both)).prompt.text
        for mode, name in (("auto", None), ("required", None), ("none", None), ("named", "get_weather"))
    }
    assert all("get_weather" in shown[mode] and "other" in shown[mode] for mode in ("auto", "required"))
    assert "get_weather" not in shown["none"]
    assert "get_weather" in shown["named"]
    assert "something else" not in shown["named"]


async def test_steps_without_tokens_are_harmless() -> None:
    engine = FakeEngine([Step(0, []), Step(0, [], "stop")])
    assert events(await answer(engine, task())) == [Finish("stop")]


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("name", ["hermes", "qwen3-xml", "functionary-v3.2"])
def test_a_request_is_prepared_as_if_for_the_first_time(name: str, mode: Any) -> None:
    """Functions, rules and long texts are kept: the next request with them is told the same, and others are not."""

    def asked_with(description: str, kind: str) -> Task:
        schema = {"type": "object", "properties": {"city": {"type": kind, "description": description * 300}}}
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema, "strict": True}}]
        functions, _ = functions_from_tools(tools)
        return task("Hi " * 500, Choice(mode), functions=functions)

    def prepared(pipeline: Pipeline, asked: Task) -> tuple[Any, ...]:
        made = pipeline.prepare(asked)
        return made.prompt, list(made.generation.prompt_ids), made.generation.constraint

    engine = FakeEngine(max_model_len=100_000)
    kept = Pipeline(speaking(name, engine), engine)
    told = []
    for description, kind in [("sun", "string"), ("rain", "string"), ("sun", "number")] * 2:
        asked = asked_with(description, kind)
        told.append(prepared(kept, asked))
        other = FakeEngine(max_model_len=100_000)
        fresh = replace(asked, conversation=replace(asked.conversation, functions=anew(asked.conversation.functions)))
        assert told[-1] == prepared(Pipeline(speaking(name, other), other), fresh)
    assert told[:3] == told[3:]
    assert len({json.dumps(ids) for _, ids, _ in told}) == 3


def anew(functions: tuple[Function, ...]) -> tuple[Function, ...]:
    return tuple(Function(function.definition, function.strict) for function in functions)


def speaking(name: str, engine: FakeEngine) -> Any:
    if name == "qwen3-xml":
        engine.tokenizer.chat_template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    return get_format(name, engine.tokenizer)


async def test_each_choice_is_read_by_a_decoder_of_its_own() -> None:
    engine = FakeEngine()
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)
    one, other = (pipeline.prepare(task(sampling=Sampling(n=2))) for _ in range(2))
    assert len({id(decoder) for decoder in (*one.decoders, *other.decoders)}) == 4


def test_what_the_engine_refuses_is_asked_once() -> None:
    engine = FakeEngine()
    asked: list[Any] = []

    def refuse(schema: Any) -> None:
        asked.append(schema)
        if "not" in schema:
            raise ValueError("no")

    engine.refuse = refuse
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine)
    for _ in range(2):
        assert pipeline.refusal({"not": {}}) == "no"
        assert pipeline.refusal({"type": "string"}) is None
        assert pipeline.refusal({"const": 1}) is None
        assert pipeline.refusal({"const": True}) is None
    assert len(asked) == 4
