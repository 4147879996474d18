"""What users of other engines suffer from, each a promise: 1, 3, 5, 7, 10 and 14 to 22 of the project's list of wants.

The corpus' part of 1, 5 and 7 is in test_conformance.py. Here: every format that is registered.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from functionary_vllm.api.chat_writer import ChatAnswer, ChatChunks, Shape
from functionary_vllm.conversation import AUTO, NONE, REQUIRED, Choice, Conversation, Message
from functionary_vllm.engine.base import Sampling
from functionary_vllm.errors import UnknownFunctionCalled
from functionary_vllm.events import CallEnd, CallStart, Event, Finish, Reasoning, Text, merge
from functionary_vllm.formats import get_format
from functionary_vllm.formats.base import Format
from functionary_vllm.formats.reading.machine import Offered, ReadingPolicy
from functionary_vllm.formats.thinking import ThinkingFormat
from functionary_vllm.pipeline import Delta, Pipeline, Task
from tests import fuzz
from tests import strategies as make
from tests.apps import TOOLS, ask, call_text, client_of, engine_saying, error_of, events_of
from tests.fakes import FakeEngine
from tests.folding import fold

every_format = pytest.mark.parametrize("name", make.FORMATS)
with_tokenizers = pytest.mark.parametrize(("name", "tokenizer"), make.READERS)
THINKING = [n for n in make.FORMATS if isinstance(f := get_format(n), ThinkingFormat) and f.think is not None]
WEATHER = ("get_weather", '{"city": "Oslo", "count": 3}')


# -- 1: a streamed answer equals the whole one ---------------------------------------------------------------------


@every_format
def test_want_1_every_two_parts_and_every_character(name: str) -> None:
    """200 raw outputs a format: each cut in two at every place, each character alone, and in groups at random."""
    fmt = make.unbound(name)
    chance = random.Random(name)
    for _ in range(200):
        text = fuzz.text_of(name, chance)[:240]
        whole = make.read(fmt, text)
        for size in (1, 2, 3, 5):
            assert make.read(fmt, text, range(0, len(text), size)) == whole, text
        for at in range(len(text)):
            assert make.read(fmt, text, [at]) == whole, (text, at)
        for _ in range(10):
            cuts = [i for i in range(len(text)) if chance.random() < 0.3]
            assert make.read(fmt, text, cuts) == whole, (text, cuts)


# -- 3: text is neither swallowed nor full of markup ---------------------------------------------------------------


def adversarial_texts(count: int = 500) -> list[str]:
    """Prose that looks like calls: links, sets, conflict marks, doctests, JSON and tags that somebody quotes."""
    pieces = [
        "[a link](https://example.org)",
        "{a, b, c}",
        "[1, 2, 3]",
        "<<<<<<< HEAD\n=======\n>>>>>>> main\n",
        ">>> print('x')\n'x'\n",
        '{"name": "nobody", "text": 1}',
        '[{"name": "nobody"}]',
        "`<tool_call>`",
        "`</tool_call>`",
        "<function=nobody>",
        "</function>",
        "<b>bold</b> & <i>it</i>",
        "f(x) = [y for y in x]",
        "1 < 2 > 0",
        "functools[0]",
        "to=nobody:\n",
        "```python\n[f(a=1)]\n```",
        "call:nobody{a:1}",
        "\n\n",
        "é 🌧 ☂",
        "[TOOL]",
        "nobody(a='b')",
    ]
    chance = random.Random(3)
    return ["So: " + " ".join(chance.choices(pieces, k=chance.randint(1, 5))) + "." for _ in range(count)]


@every_format
def test_want_3_text_comes_out_as_it_is(name: str) -> None:
    fmt = make.unbound(name)
    opened = fmt.alphabet.of(fmt.text_open)
    for text in adversarial_texts():
        for step in (1, 4, 1000):
            whole = opened + text
            events = make.read(fmt, whole, range(0, len(whole), step), offered=Offered.of(make.FUNCTIONS))
            assert events == [Text(text)]


# -- 5: a cut call is never made whole -----------------------------------------------------------------------------


@every_format
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_want_5_cut_anywhere(name: str, data: st.DataObject) -> None:
    """What was said of a cut answer is how the whole begins; a call ends only where the whole one does."""
    fmt = make.unbound(name)
    answer = data.draw(make.answers(fmt).filter(lambda a: a.calls))
    text = make.written(fmt, answer)
    whole = make.told(make.read(fmt, text))
    for at in range(len(text)):
        events = make.read(fmt, text[:at], cut=True)
        complete = make.told(events).calls
        assert complete == whole.calls[: len(complete)]
        closed = {event.index for event in events if isinstance(event, CallEnd)}
        for index, said in arguments_of(events).items():
            if index not in closed and index < len(whole.calls):
                assert whole.calls[index][1].startswith(said) or said in text


def arguments_of(events: list[Event]) -> dict[int, str]:
    said: dict[int, str] = {}
    for event in events:
        if isinstance(event, CallStart):
            said[event.index] = ""
        elif hasattr(event, "index") and hasattr(event, "text"):
            said[event.index] += event.text
    return said


@every_format
def test_want_5_the_finish_tells_of_the_cut(name: str) -> None:
    fmt = make.unbound(name)
    written = make.written(fmt, make.Answer("", (WEATHER,)))
    said = written[: written.index("Oslo") + 2]
    for writer in (ChatChunks(shape()), ChatAnswer(shape())):
        decoder = fmt.decode(make.OFFERED)
        events = [*decoder.feed_text(said), *decoder.finish(cut=True), Finish("length")]
        body = writer.write(Delta(0, events, 1)) + writer.end()
        assert b'"finish_reason":"length"' in body
        assert b"Os" in body
        assert b"Oslo" not in body


def shape() -> Shape:
    return Shape("chatcmpl-1", "m", 0, "fp", 1)


# -- 7: arguments come as they are written -------------------------------------------------------------------------


@every_format
def test_want_7_no_lump(name: str) -> None:
    """Of a long argument at most a step is ever owed."""
    fmt = make.unbound(name)
    value = "wind and rain over the northern islands and " * 40
    written = make.written(fmt, make.Answer("", (("get", json.dumps({"city": value})),)))
    decoder = fmt.decode(make.OFFERED)
    start, step, said = written.index(value), 4, ""
    for at in range(0, len(written), step):
        said += make.spoken(decoder.feed_text(written[at : at + step]))
        inside = min(at + step - start, len(value))
        if inside > step:
            assert len(said) >= inside - step


# -- 10: forced calls and thoughts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("thinking", [True, False, None])
@pytest.mark.parametrize("choice", [AUTO, REQUIRED, Choice("named", "get_weather")])
async def test_want_10_forced_calls_with_and_without_thoughts(choice: Choice, thinking: bool | None, step: int) -> None:
    """The rule begins after the thoughts, and what is read is the same, whatever a step holds."""
    engine = FakeEngine()
    engine.tokenizer.chat_template = (
        "{{ messages[0].content }}<tool_call> {% if enable_thinking %}<think>{{ '\\n' }}{% endif %}"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{{ '\\n\\n' }}{% endif %}"
    )
    fmt = get_format("hermes", engine.tokenizer)
    pipeline = Pipeline(fmt, engine)
    conversation = Conversation((Message("user", "?"),), make.FUNCTIONS, choice, thinking=thinking)
    prepared = pipeline.prepare(Task("r", conversation, Sampling()))
    call = make.plain(fmt, make.Answer("", (WEATHER,)))
    opened = prepared.prompt.opened
    thought = {True: "Hm.\n</think>\n\n", None: "<think>\nHm.\n</think>\n\n", False: ""}[thinking]
    assert opened == {True: "<think>\n", None: ""}.get(thinking, fmt.opened(conversation))
    engine.scripts = [engine.play(thought + call[0 if thinking is not False else len(opened) :], step=step)]
    deltas: list[Delta] = []
    await pipeline.run(prepared, deltas.append)
    said = merge(event for delta in deltas for event in delta.events)
    assert [event for event in said if isinstance(event, Reasoning)] == ([Reasoning("Hm.")] if thought else [])
    assert make.told(said) == make.Answer("", (WEATHER,))
    rule = prepared.generation.constraint
    assert (rule is None) == (choice is AUTO)
    assert rule is None or ("</think>" in rule) == (thinking is not False)


# -- 14: tool_choice none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_want_14_no_tools_or_no_marker(keep: bool) -> None:
    engine = FakeEngine()
    pipeline = Pipeline(get_format("hermes", engine.tokenizer), engine, ReadingPolicy(none_keeps_tools=keep))
    prepared = pipeline.prepare(Task("r", Conversation((Message("user", "?"),), make.FUNCTIONS, NONE), Sampling()))
    assert ("get_weather" in prepared.prompt.text) == keep
    assert prepared.generation.sampling.banned == (("<tool_call>",) if keep else ())


@pytest.mark.parametrize("keep", [False, True])
async def test_want_14_tokens_are_counted_as_they_are_prepared(keep: bool) -> None:
    engine = engine_saying("Hi")
    async with client_of(engine, none_keeps_tools=keep) as client:
        body = {"model": "fake", "messages": [{"role": "user", "content": "?"}], "tools": TOOLS, "tool_choice": "none"}
        count = (await client.post("/tokenize", json=body)).json()["count"]
        await client.post("/v1/chat/completions", json=body)
    assert count == len(engine.requests[-1].prompt_ids)


async def test_want_14_text_that_looks_like_a_call_is_text() -> None:
    for settings_ in ({}, {"none_keeps_tools": True}):
        response = await ask(engine_saying("Hi " + call_text()), settings_, tools=TOOLS, tool_choice="none")
        message = response.json()["choices"][0]["message"]
        assert message["content"] == "Hi " + call_text()
        assert "tool_calls" not in message


@every_format
def test_want_14_every_format_has_a_mark_to_ban(name: str) -> None:
    fmt = make.unbound(name)
    marks = fmt.call_marks(make.NAMES)
    written = make.written(fmt, make.Answer("", (("get", '{"count": 1}'),)))
    assert any(fmt.alphabet.of(mark) in fmt.alphabet.of(fmt.call_after_text("get", "")) + written for mark in marks)


# -- 15: index, id and name ----------------------------------------------------------------------------------------


@every_format
def test_want_15_deltas_have_openais_shape(name: str) -> None:
    """`fold` refuses ids and names that come twice; two other clients' ways of merging give the same calls."""
    fmt = make.unbound(name)
    calls = (WEATHER, ("get", "{}"), ("get_weather_now", '{"count": 1}'))[: 3 if fmt.parallel else 1]
    text = make.written(fmt, make.Answer("", calls))
    writer = ChatChunks(shape())
    decoder = fmt.decode(make.OFFERED)
    body = b"".join(writer.write(Delta(0, decoder.feed_text(char), 1)) for char in text)
    body += writer.write(Delta(0, [*decoder.finish(), Finish("stop")], 1)) + writer.end()
    chunks = [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n\n") if line]
    folded = fold(chunks)[0]
    by_index = [(call["name"], json.loads(call["arguments"])) for call in folded["calls"].values()]
    expected = [(name, json.loads(arguments)) for name, arguments in calls]
    assert by_index == expected
    assert list(folded["calls"]) == list(range(len(calls)))
    assert len({call["id"] for call in folded["calls"].values()}) == len(calls)
    assert folded["finish"] == "tool_calls"
    by_id: dict[str, list[str]] = {}  # a client that starts a call at each new id
    joined: dict[int, list[str]] = {}  # LangChain's way: strings of one index are joined, the name among them
    for delta in (choice["delta"] for chunk in chunks for choice in chunk["choices"]):
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                current = by_id.setdefault(call["id"], [call["function"]["name"], ""])
            current[1] += call["function"]["arguments"]
            into = joined.setdefault(call["index"], ["", ""])
            into[0] += call["function"].get("name", "")
            into[1] += call["function"]["arguments"]
    for merged in (by_id.values(), joined.values()):
        assert [(name, json.loads(arguments)) for name, arguments in merged] == expected


# -- 16: a call without arguments ----------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("full", list(itertools.product([False, True], repeat=3)))
def test_want_16_empty_and_full_calls_in_any_order(name: str, full: tuple[bool, ...]) -> None:
    fmt = make.unbound(name)
    calls = tuple(("get", '{"count": 1}' if some else "{}") for some in full[: 3 if fmt.parallel else 1])
    events = make.read(fmt, make.written(fmt, make.Answer("", calls)))
    assert make.same(fmt, make.told(events), make.Answer("", calls))
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in make.told(events).calls)


# -- 17: a poisoned conversation -----------------------------------------------------------------------------------

BROKEN = ["", None, {"city": "Oslo"}, '{"city": "Os', "not JSON", "[1]", '"x"', "{}", "null"]
QWEN_LIKE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, QWEN_LIKE])
@pytest.mark.parametrize("arguments", BROKEN)
async def test_want_17_broken_arguments_in_the_history(arguments: Any, template: str | None) -> None:
    """Also where the model's own template takes arguments for an object."""
    engine = FakeEngine()
    engine.tokenizer.chat_template = template
    engine.scripts = [engine.play("Fine.")]
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "!"},
    ]
    response = await ask(engine, messages=messages, tools=TOOLS)
    assert response.status_code == 200, response.text


# -- 18: thoughts and calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THINKING)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_want_18_thoughts_text_and_calls_in_every_cut(name: str, data: st.DataObject) -> None:
    """Thoughts, then text, then calls, whatever shares a step: each comes out as what it is."""
    fmt = make.unbound(name)
    answer = data.draw(make.answers(fmt))
    thought = data.draw(st.text(make.characters, min_size=1, max_size=20).map(str.strip).filter(bool))
    assume(not any(char in thought for char in "<[{:>"))
    text = make.written(fmt, answer, thought)
    whole = make.read(fmt, text)
    assert "".join(event.text for event in whole if isinstance(event, Reasoning)) == thought
    assert make.same(fmt, make.told(whole), answer)
    for cuts in ([at] for at in range(len(text))):
        assert make.read(fmt, text, cuts) == whole


@pytest.mark.parametrize("name", ["mistral", "mistral-v3"])
def test_want_18_mistrals_thoughts_quote_calls(name: str) -> None:
    """Its models write whole calls into thoughts that they close after (the corpus has one): they are no calls."""
    fmt = make.unbound(name)
    text = begun_thoughts(fmt) + "Let me see." + make.written(fmt, make.Answer("", (WEATHER,)))
    assert not make.told(make.read(fmt, text, range(len(text)))).calls


# gpt-oss has no call inside of thoughts: each is a message of its own.
@pytest.mark.parametrize("name", [name for name in THINKING if not name.startswith(("mistral", "gpt-oss"))])
def test_want_18_a_call_inside_the_thoughts(name: str) -> None:
    """A call that begins before the thoughts were closed is one, unless the operator wants thoughts alone."""
    fmt = make.unbound(name)
    text = begun_thoughts(fmt) + "Let me see." + make.written(fmt, make.Answer("", (WEATHER,)))
    for step in (1, 5, len(text)):
        cuts = range(0, len(text), step)
        events = make.read(fmt, text, cuts)
        assert make.same(fmt, make.told(events), make.Answer("", (WEATHER,)))
        assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "Let me see."
        strict = Offered.of(make.FUNCTIONS, reading=ReadingPolicy(calls_in_reasoning=False))
        thoughts = make.read(fmt, text, cuts, offered=strict)
        assert not make.told(thoughts).calls
        assert "get_weather" in make.spoken(thoughts)


def begun_thoughts(fmt: Format) -> str:
    assert isinstance(fmt, ThinkingFormat)
    assert fmt.think is not None
    return fmt.alphabet.of(fmt.think[0] + fmt.thought_margin)


# -- 19: tokens, not letters ---------------------------------------------------------------------------------------


@with_tokenizers
def test_want_19_letters_are_no_marker(name: str, tokenizer: str, request: pytest.FixtureRequest) -> None:
    """A call whose special tokens are spelled out in letters is text, and goes out as it was written."""
    fmt = get_format(name, request.getfixturevalue(tokenizer))
    opens = fmt.calls_open + fmt.call_open("get_weather")
    special = [marker for marker in fmt.markers if marker in opens and is_special(fmt, marker)]
    if not special:
        pytest.skip("calls of this format begin with ordinary text here")
    text = opens + "{}" + fmt.call_close + fmt.calls_close
    letters = spelled_ids(fmt, text)
    assert not set(letters) & set(fmt.alphabet.ids.values())
    decoder = fmt.decode(Offered.of(make.FUNCTIONS))
    events = merge([*decoder.feed(letters), *decoder.finish()])
    assert not make.told(events).calls
    assert special[0] in make.spoken(events).replace(" ", "")  # SentencePiece puts one before each letter
    real = fmt.tokenizer.encode(text, add_special_tokens=False)  # type: ignore[union-attr]
    decoder = fmt.decode(Offered.of(make.FUNCTIONS))
    assert CallStart(0, "get_weather") in [*decoder.feed(real), *decoder.finish()]


def is_special(fmt: Format, marker: str) -> bool:
    tokens = fmt.tokenizer.added_tokens_decoder.values()  # type: ignore[union-attr]
    return any(token.content == marker and token.special for token in tokens)


def spelled_ids(fmt: Format, text: str) -> list[int]:
    """Ids of the letters: no added token among them."""
    return [
        i
        for char in text
        for i in fmt.tokenizer.encode(char, add_special_tokens=False)  # type: ignore[union-attr]
    ]


# -- 20: every script ----------------------------------------------------------------------------------------------


@with_tokenizers
def test_want_20_all_planes(name: str, tokenizer: str, request: pytest.FixtureRequest) -> None:
    """A character of every 128th code point, and combined emoji, come out as they are at any grouping of tokens."""
    fmt = get_format(name, request.getfixturevalue(tokenizer))
    chars = [chr(code) for code in range(0xA1, 0x110000, 2117) if not 0xD800 <= code < 0xE000]
    text = "👩‍👩‍👧‍👦 🇨🇭 é ️ " + "".join(chars)
    text = plain_again(fmt, text)
    written = make.plain(fmt, make.Answer("", (("get", json.dumps({"city": text}, ensure_ascii=False)),)))
    ids = fmt.tokenizer.encode(written, add_special_tokens=False)  # type: ignore[union-attr]
    for size in (1, 2, 3, 5, len(ids)):
        decoder = fmt.decode(make.OFFERED)
        events = [event for at in range(0, len(ids), size) for event in decoder.feed(ids[at : at + size])]
        ((called, arguments),) = make.told(merge([*events, *decoder.finish()])).calls
        assert called == "get"
        assert json.loads(arguments) == {"city": text}
        assert "\\u" not in arguments


def plain_again(fmt: Format, text: str) -> str:
    """The text as this tokenizer can write it at all."""
    tokenizer = fmt.tokenizer
    assert tokenizer is not None
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)))


# -- 21: markers inside strings ------------------------------------------------------------------------------------


@every_format
def test_want_21_closing_tags_in_a_string(name: str) -> None:
    fmt = make.unbound(name)
    for value in (
        "a </tool_call> b",
        "</function> and </parameter> here",
        'x "}} y',
        "]; [f()]",
        "```json {} ```",
        "a >>>get\n{} b",
        "line\n</arg_value> no, inline </arg_value>"[5:],
    ):
        answer = make.Answer("", (("get", json.dumps({"city": "a", "text": value})), ("text", "{}")))
        answer = make.Answer("", answer.calls[: 2 if fmt.parallel else 1])
        if not fmt.verbatim and fmt.alphabet.of(value) != value:
            continue  # the value itself holds this format's tokens
        written = make.written(fmt, answer)
        for step in (1, 2, 7, len(written)):
            assert make.same(fmt, make.told(make.read(fmt, written, range(0, len(written), step))), answer)


# -- 22: a function that was not on offer --------------------------------------------------------------------------


@every_format
def test_want_22_its_neighbours_are_unharmed(name: str) -> None:
    """Whatever becomes of the unknown call, the one beside it is whole, in order, with an index of its own."""
    fmt = make.unbound(name)
    if not fmt.parallel:
        return
    # A bare call has to be of a function on offer; so the unknown one stands in the middle.
    after = ("get", '{"count": 2}')
    written = make.written(fmt, make.Answer("", (WEATHER, ("unheard_of", '{"count": 1}'), after)))
    for policy in ("pass", "text"):
        reading = ReadingPolicy(unknown_function=policy)  # type: ignore[arg-type]
        for step in (1, 3, len(written)):
            offered = Offered.of(make.FUNCTIONS, reading=reading)
            events = make.read(fmt, written, range(0, len(written), step), offered=offered)
            told = make.told(events)
            known = tuple((called, json.loads(said)) for called, said in told.calls if called != "unheard_of")
            assert known == tuple((called, json.loads(said)) for called, said in (WEATHER, after))
            indices = [event.index for event in events if isinstance(event, CallStart)]
            assert indices == list(range(len(indices)))
            if policy == "text":
                assert len(told.calls) == len(known)
                assert "unheard_of" in told.text


async def test_want_22_policies_over_http() -> None:
    unknown = call_text('{"a": 1}', name="unheard_of")
    passed = (await ask(engine_saying(unknown), {}, tools=TOOLS)).json()["choices"][0]
    assert passed["message"]["tool_calls"][0]["function"] == {"name": "unheard_of", "arguments": '{"a": 1}'}
    shown = (await ask(engine_saying(unknown), {"unknown_function": "text"}, tools=TOOLS)).json()["choices"][0]
    assert shown["message"]["content"] == '{"name": "unheard_of", "arguments": {"a": 1}}'
    assert shown["finish_reason"] == "stop"
    refused = await ask(engine_saying(unknown), {"unknown_function": "error"}, tools=TOOLS)
    assert refused.status_code == UnknownFunctionCalled.status
    assert error_of(refused)["code"] == "unknown_function"
    streamed = await ask(engine_saying(unknown), {"unknown_function": "error"}, tools=TOOLS, stream=True)
    assert events_of(streamed)[-1]["error"]["code"] == "unknown_function"
