"""The four properties that carry the product, for every format: chunking, round trip, nothing lost, linear."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from functionary_vllm.conversation import AUTO, Choice
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Text, merge
from functionary_vllm.formats import get_format
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.machine import Offered
from functionary_vllm.formats.thinking import ThinkingFormat
from tests import strategies as make

many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
every_format = pytest.mark.parametrize("name", make.FORMATS)


def cuts_of(data: st.DataObject, text: str) -> list[int]:
    return data.draw(st.lists(st.integers(0, len(text)), max_size=8))


@every_format
@many
@given(data=st.data())
def test_chunking(name: str, data: st.DataObject) -> None:
    """Any cut of any output gives the events of the whole: noise, answers, and both in one."""
    fmt = make.unbound(name)
    answer = make.answers(fmt).map(lambda a: make.written(fmt, a))
    text = data.draw(st.one_of(make.noise(fmt), answer, st.tuples(answer, make.noise(fmt)).map("".join)))
    for cut in (False, True):
        for python in (None, "json", "raw"):
            offered = Offered.of(make.FUNCTIONS, python=python)  # type: ignore[arg-type]
            whole = make.read(fmt, text, offered=offered, cut=cut)
            assert make.read(fmt, text, range(len(text)), offered=offered, cut=cut) == whole
            assert make.read(fmt, text, cuts_of(data, text), offered=offered, cut=cut) == whole


@every_format
@many
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    """What render writes, grammar reads."""
    fmt = make.unbound(name)
    answer = data.draw(make.answers(fmt))
    text = make.written(fmt, answer)
    assume(not any(fmt.call_after_text(n, fmt.call_open(n)) in answer.text for n in make.NAMES))
    events = make.read(fmt, text, cuts_of(data, text), offered=Offered.of(make.FUNCTIONS))
    assert make.same(fmt, make.told(events), answer)


@pytest.mark.parametrize("name", make.VERBATIM)
@many
@given(data=st.data())
def test_nothing_invented(name: str, data: st.DataObject) -> None:
    """Each character of an event is the model's own, in its order; only `{}` for no arguments is ours."""
    fmt = make.unbound(name)
    text = data.draw(make.noise(fmt))
    events = make.read(fmt, text)
    own = [event for event in events if not (isinstance(event, CallArguments) and event.text == "{}")]
    spelled = fmt.alphabet.quote(text)
    assume("\\" not in spelled)  # a string that holds arguments once more encoded is unescaped
    assert make.is_subsequence(make.spoken(own), spelled)


@every_format
@many
@given(text=st.text(make.characters, max_size=200))
def test_text_without_markers_is_untouched(name: str, text: str) -> None:
    """Prose, whatever it looks like, goes out as it came: nothing lost, nothing invented."""
    fmt = make.unbound(name)
    opened = fmt.alphabet.of(fmt.text_open)
    assume(not text.startswith(("\n", " ", ">>>")) and "<think>" not in text and "<tool_call>" not in text)
    assume(
        "\nuser:\n" not in text + "\n"
        and not any(f"<function={n}>" in text or f">>>{n}\n" in text for n in (*make.NAMES, "all"))
    )
    events = make.read(fmt, opened + text, offered=Offered(make.NAMES))
    assert events == ([Text(text)] if text else [])


ADVERSARIAL = [
    "[a link](https://example.org) and {a, b, c} and [1, 2]",
    "<<<<<<< HEAD\n>>>>>>> main\n",
    '{"this": "is JSON, not a call"}',
    ">>> print(1)\n1\n>>> all(x)\n",
    "```python\n>>> 1 < 2\nTrue\n```",
    "Use `<function=` to call, and `</function>` to end.",
    "a <function=unknown>{}</function> b",
    "1 < 2 and 2 > 1, <b>bold</b>, </p>",
    "to=functions.get:\nis how it was",
    "get\n{}",
    "recipient: all\n",
]


@every_format
@pytest.mark.parametrize("text", ADVERSARIAL)
def test_adversarial_prose(name: str, text: str) -> None:
    fmt = make.unbound(name)
    whole = fmt.alphabet.of(fmt.text_open) + "So: " + text
    for step in (1, 2, 7, len(whole)):
        events = make.read(fmt, whole, range(0, len(whole), step), offered=Offered(make.NAMES))
        assert make.told(events).text == "So: " + text
        assert not make.told(events).calls


@every_format
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_call_without_arguments_is_an_empty_object(name: str, position: int) -> None:
    fmt = make.unbound(name)
    if position and not fmt.parallel:
        return
    calls = [("get", '{"count": 1}')] * position
    written = make.written(fmt, make.Answer("", (*calls, ("get_weather", "{}"))))
    empty = written if '"' in fmt.call_open("get") else written.replace("{}", "", 1)  # JSON around it needs them
    assert make.told(make.read(fmt, empty)).calls[position] == ("get_weather", "{}")


@every_format
def test_a_cut_call_stays_cut(name: str) -> None:
    """Cut anywhere, a call is never completed, and what was said stays a prefix of the whole."""
    fmt = make.unbound(name)
    answer = make.Answer("", (("get_weather", '{"city": "São Paulo", "days": [1, 2]}'),))
    written = make.written(fmt, answer)
    whole = make.spoken(make.read(fmt, written))
    for length in range(len(written) + 1):
        events = make.read(fmt, written[:length], cut=True)
        spoken = make.spoken(events)
        if any(isinstance(event, CallEnd) for event in events):
            assert spoken == whole
        else:
            assert whole.startswith(spoken) or written.startswith(spoken)
    assert make.same(fmt, make.told(make.read(fmt, written, cut=True)), answer)


@every_format
def test_markers_inside_strings_are_text(name: str) -> None:
    fmt = make.unbound(name)
    inside = '{"code": ">>>get\\n <tool_call> </tool_call> </function> <function=get> \\" } \\\\"}'
    answer = make.Answer("", (("get", inside),))
    written = make.written(fmt, answer)
    for step in (1, 3, len(written)):
        assert make.same(fmt, make.told(make.read(fmt, written, range(0, len(written), step))), answer)


@every_format
def test_forced_and_preopened(name: str) -> None:
    """What the prompt opened is read first: a named call has its name before any token."""
    fmt = make.unbound(name)
    opened = fmt.opened(make.asked(Choice("named", "get_weather")))
    answer = make.Answer("", (("get_weather", '{"count": 1}'),))
    written = make.written(fmt, answer)
    assert written.startswith(fmt.alphabet.of(opened))
    decoder = fmt.decode(make.OFFERED, opened)
    events = merge([*decoder.feed_text(written[len(fmt.alphabet.of(opened)) :]), *decoder.finish()])
    assert events[0] == CallStart(0, "get_weather")
    assert make.same(fmt, make.told(events), answer)


@every_format
def test_no_calls_when_none_may_be_made(name: str) -> None:
    fmt = make.unbound(name)
    call = fmt.alphabet.of(fmt.call_after_text("get", fmt.call_open("get")) + "{}" + fmt.call_close)
    if isinstance(fmt, ThinkingFormat):
        call = make.written(fmt, make.Answer("", (("get", "{}"),)))
    decoder = fmt.decode(Offered(make.NAMES, calls=False), fmt.opened(make.asked(Choice("none"))))
    events = [*decoder.feed_text("Hello " + call), *decoder.finish()]
    assert make.told(events) == make.Answer("Hello " + fmt.alphabet.spell(call), ())


@every_format
def test_linear(name: str) -> None:
    """No character is kept once it was looked at: what is buffered stays under a bound, whatever the length."""
    fmt = make.unbound(name)
    decoder = Decoder(fmt, make.OFFERED)
    machine = decoder.machine
    written = make.written(fmt, make.Answer("", (("get", '{"text": "' + 'word \\" 😀 <' * 20_000 + '"}'),)))
    longest = 0
    for start in range(0, len(written), 5):
        decoder.feed_text(written[start : start + 5])
        longest = max(longest, len(machine._buffer) - machine._at)
    assert longest <= 48


@every_format
def test_max_calls_ends_the_answer(name: str) -> None:
    fmt = make.unbound(name)
    calls = (("get", '{"count": 1}'), ("text", "{}"))[: 2 if fmt.parallel else 1]
    written = make.written(fmt, make.Answer("", calls))
    for step in (1, len(written)):
        decoder = Decoder(fmt, make.OFFERED, max_calls=1)
        events: list[Event] = []
        for start in range(0, len(written), step):
            events += decoder.feed_text(written[start : start + step])
        assert decoder.done
        assert make.same(fmt, make.told(events), make.Answer("", calls[:1]))


@pytest.mark.parametrize("name", make.VERBATIM)
def test_nothing_waits(name: str) -> None:
    """The name is out with the last character before the arguments, each of theirs at once (an escape in two)."""
    fmt = make.unbound(name)
    arguments = '{"city": "São \\"Paulo\\" }", "days": [1, {"a": ">>>"}]}'
    written = make.written(fmt, make.Answer("", (("get_weather", arguments),)))
    start = written.index(arguments)
    decoder = Decoder(fmt, Offered(make.NAMES))
    events = decoder.feed_text(written[: start + 1])
    assert CallStart(0, "get_weather") in events
    for end in range(start + 1, start + len(arguments)):
        events += decoder.feed_text(written[end])
        behind = 1 if written[end] == "\\" else 0
        assert make.spoken(events) == arguments[: end + 1 - behind - start]
    assert CallEnd(0) in events


@every_format
def test_a_long_string_does_not_wait(name: str) -> None:
    """Each character of a string argument is out at once, also where arguments are made into JSON."""
    fmt = make.unbound(name)
    value = "The quick brown fox, jumping over (a) lazy dog. " * 8
    written = make.written(fmt, make.Answer("", (("get_weather", json.dumps({"city": value})),)))
    start = written.index(value)
    decoder = Decoder(fmt, make.OFFERED)
    events = decoder.feed_text(written[:start])
    assert CallStart(0, "get_weather") in events
    for end in range(start, start + len(value.rstrip())):
        events += decoder.feed_text(written[end])
        waits = value[: end + 1 - start].rstrip() if written[end] == " " else value[: end + 1 - start]
        assert make.spoken(events).endswith((waits, waits + " "))


GROUPS = (1, 2, 3, 5, 10_000)


@pytest.mark.parametrize(("name", "tokenizer"), make.READERS)
@many
@given(data=st.data())
def test_chunking_with_real_tokenizers(
    name: str, tokenizer: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    fmt = get_format(name, request.getfixturevalue(tokenizer))
    answer = data.draw(make.answers(fmt))
    text = fmt.alphabet.spell(data.draw(make.noise(fmt))) if data.draw(st.booleans()) else make.plain(fmt, answer)
    ids = fmt.tokenizer.encode(text, add_special_tokens=False)  # type: ignore[union-attr]
    results = [by_tokens(fmt, ids, size) for size in GROUPS]
    bounds = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    results.append(by_bounds(fmt, ids, bounds))
    assert all(result == results[0] for result in results)


def by_tokens(fmt: Any, ids: list[int], size: int) -> list[Event]:
    return by_bounds(fmt, ids, list(range(0, len(ids), size)))


def by_bounds(fmt: Any, ids: list[int], bounds: list[int]) -> list[Event]:
    decoder = Decoder(fmt, make.OFFERED)
    events: list[Event] = []
    edges = [0, *bounds, len(ids)]
    for start, end in itertools.pairwise(edges):
        events += decoder.feed(ids[start:end])
    return merge([*events, *decoder.finish()])


def test_choice_of_openings_is_a_prefix_of_the_call() -> None:
    """The constraint continues what the prompt opened, so one must begin the other."""
    for name in make.FORMATS:
        fmt = make.unbound(name)
        for choice in (AUTO, Choice("required"), Choice("named", "get")):
            assert (fmt.calls_open + fmt.call_open("get")).startswith(fmt.opened(make.asked(choice)))
