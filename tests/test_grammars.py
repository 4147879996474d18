"""What each grammar tolerates, and where it draws its lines: one row a rule, read whole and a character at a time."""

from __future__ import annotations

from typing import Any

import pytest

from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text
from functionary_vllm.formats import get_format
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.machine import Offered
from tests import strategies as make

NAMES = ("get", "get_weather")
SEP = "<|reserved_special_token_249|>"
SMOL = "<|function_call|>"
V2_NEXT = "\n<|from|>assistant\n<|recipient|>"


def call(index: int, name: str, arguments: str) -> list[Event]:
    return [CallStart(index, name), CallArguments(index, arguments), CallEnd(index)]


def cut(index: int, name: str, arguments: str) -> list[Event]:
    return call(index, name, arguments)[:-1]


ROWS: list[tuple[str, str, list[Event]]] = [
    # v0: the seed
    ("functionary-v0", ":\nuser: me\nuser:\n- a\nuser:\n", [Text("user: me\nuser:\n- a")]),
    ("functionary-v0", "to=functions.get: {}", call(0, "get", "{}")),
    ("functionary-v0", ":\nHi\nassistant to=functions.get:\n{}", [Text("Hi"), *call(0, "get", "{}")]),
    ("functionary-v0", ":\nHi\nassistant to=functions.no:\n{}", [Text("Hi\nassistant to=functions.no:\n{}")]),
    ("functionary-v0", " to=functions.not a name:\n{}", [Text(" to=functions.not a name:\n{}")]),
    # v1
    ("functionary-v1", "\n<|START_OF_FUNCTION_CALL|>get:\n{}\n", call(0, "get", "{}")),
    ("functionary-v1", "\na\n\nb\nc", [Text("a\n\nb\nc")]),
    ("functionary-v1", "<|START_OF_FUNCTION_CALL|>no colon", [Text("no colon")]),
    # v2: spaces that SentencePiece decodes after special tokens
    ("functionary-v2", ' get\n<|content|> {"a": 1}', call(0, "get", '{"a": 1}')),
    ("functionary-v2", " all\n<|content|> Hi\n\nthere", [Text("Hi\n\nthere")]),
    ("functionary-v2", f"all\n<|content|>A{V2_NEXT}all\n<|content|>B", [Text("AB")]),
    ("functionary-v2", "unknown\n<|content|>{}", call(0, "unknown", "{}")),
    (
        "functionary-v2",
        f"get\n<|content|>{V2_NEXT}get\n<|content|>{{}}",
        [*call(0, "get", "{}"), *call(1, "get", "{}")],
    ),
    ("functionary-v2", f'get\n<|content|>{{"a": 1{V2_NEXT}all\n<|content|>B', [*cut(0, "get", '{"a": 1\n'), Text("B")]),
    ("functionary-v2", "no content marker", [Text("no content marker")]),
    # v2.5
    (
        "functionary-v2.5",
        f"{SEP}get\n{{}}{SEP}get_weather\n{{}}",
        [*call(0, "get", "{}"), *call(1, "get_weather", "{}")],
    ),
    ("functionary-v2.5", f"{SEP}get\n{{}} trailing", [*call(0, "get", "{}"), Text(" trailing")]),
    ("functionary-v2.5", f"{SEP}no newline", [Text("no newline")]),
    # v3.1
    ("functionary-v3.1", "<function=get>\n{}\n</function>", call(0, "get", "{}")),
    ("functionary-v3.1", "<function=get></function>", call(0, "get", "{}")),
    ("functionary-v3.1", "<function=get>not JSON</function>", call(0, "get", "not JSON")),
    (
        "functionary-v3.1",
        '<function=get>{"a": "<b>x</b>"}</function>!',
        [*call(0, "get", '{"a": "<b>x</b>"}'), Text("!")],
    ),
    ("functionary-v3.1", "<function=get_weather>{}</function>", call(0, "get_weather", "{}")),
    ("functionary-v3.1", "<function=python>{}</function>", [Text("<function=python>{}</function>")]),
    ("functionary-v3.1", "<|python_tag|>a < b\n", call(0, "python", '{"code": "a < b\\n"}')),
    ("functionary-v3.1", "1 < 2 <func", [Text("1 < 2 <func")]),
    # v3.2
    ("functionary-v3.2", ">>>all\nHi", [Text("Hi")]),
    ("functionary-v3.2", "get\n{} \n  ", call(0, "get", "{}")),
    ("functionary-v3.2", "get\n{}\n>>>get_weather\n{}", [*call(0, "get", "{}"), *call(1, "get_weather", "{}")]),
    ("functionary-v3.2", "all\n>>> print(1)\n>>>get it", [Text(">>> print(1)\n>>>get it")]),
    ("functionary-v3.2", "all\nA>>>all\nB", [Text("AB")]),
    ("functionary-v3.2", "get\n>>>get\n{}", [*call(0, "get", "{}"), *call(1, "get", "{}")]),
    ("functionary-v3.2", "python\n1", [Text("python\n1")]),  # no code interpreter on offer
    # functionary-smol
    (
        "functionary-smol",
        f"Hi\n{SMOL}get\n{{}}\n{SMOL}get_weather\n{{}}\n",
        [Text("Hi"), *call(0, "get", "{}"), *call(1, "get_weather", "{}")],
    ),
    ("functionary-smol", f"{SMOL}get\n{SMOL}get_weather\n{{}}", [*call(0, "get", "{}"), *call(1, "get_weather", "{}")]),
    ("functionary-smol", f"{SMOL}any\n{{}}\n\nDone.", [*call(0, "any", "{}"), Text("\n\nDone.")]),
    ("functionary-smol", f"{SMOL}{SMOL}get\n{{}}", call(0, "get", "{}")),
    ("functionary-smol", f"A{SMOL}no newline", [Text("Ano newline")]),
    ("functionary-smol", f"a\n{SMOL}\nb", [Text("a\n\nb")]),
    # hermes
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "get"}</tool_call>', call(0, "get", '{"a": 1}')),
    ("hermes", '<tool_call>\n{"id": [1, "}"], "name": "get", "parameters": {}}\n</tool_call>', call(0, "get", "{}")),
    ("hermes", '<tool_call>{"name": "get"}</tool_call>', call(0, "get", "{}")),
    ("hermes", '<tool_call>{"name": "get", "arguments": null}</tool_call>', call(0, "get", "{}")),
    ("hermes", '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', call(0, "get", '{"a": 1}')),
    ("hermes", '<tool_call>{"name": "any", "arguments": {}}', call(0, "any", "{}")),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1', cut(0, "get", '{"a": 1')),
    ("hermes", '<tool_call>{"name": "get"}</tool_call>\n\n', call(0, "get", "{}")),
    ("hermes", '<tool_call>{"name": "get"}</tool_call>\n\nDone', [*call(0, "get", "{}"), Text("\n\nDone")]),
    (
        "hermes",
        '<tool_call>{"name": "get"}</tool_call>\n \n<tool_call>{"name": "get"}</tool_call>',
        [*call(0, "get", "{}"), *call(1, "get", "{}")],
    ),
    ("hermes", "Use <tool_call> so.", [Text("Use <tool_call> so.")]),
    ("hermes", '<tool_call>{"nam', [Text('<tool_call>{"nam')]),
    ("hermes", "<think>\nhm\n</think>\n\nHi", [Reasoning("hm"), Text("Hi")]),
    ("hermes", "<think>\n\n</think>\n\nHi", [Text("Hi")]),
    ("hermes", "a </think> b <think>", [Text("a </think> b <think>")]),
    ("hermes", '<think>x</think><tool_call>{"name": "get"}</tool_call>', [Reasoning("x"), *call(0, "get", "{}")]),
    (
        "hermes",
        '<think>x\n<tool_call>{"name": "get"}</tool_call>\ny</think>z',
        [Reasoning("x"), *call(0, "get", "{}"), Reasoning("\ny"), Text("z")],
    ),
]


@pytest.mark.parametrize(("name", "text", "events"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_row(name: str, text: str, events: list[Event]) -> None:
    fmt = get_format(name)
    scanned = fmt.alphabet.of(text)
    offered = Offered(NAMES, python="json" if "python_tag" in text else None)
    for step in (1, 2, 1000):
        assert make.read(fmt, scanned, range(0, len(scanned), step), offered=offered) == events


# Cut by length inside the markup of a call: what was markup so far stays unsaid.
HEADERS = [
    ("functionary-v0", " to=functions.ge", []),
    ("functionary-v2", "get_wea", []),
    ("functionary-v3.2", "get_wea", []),
    ("functionary-v3.2", "all\nHi>>>get_wea", [Text("Hi>>>get_wea")]),  # in a text, `>>>` is text until the line ends
    ("functionary-smol", f"Hi\n{SMOL}get_wea", [Text("Hi")]),
    ("functionary-v3.1", '<function=get>{"a": 1}<', call(0, "get", '{"a": 1}')),
    ("hermes", 'Hi\n<tool_call>\n{"name": "ge', [Text("Hi")]),
]


@pytest.mark.parametrize(("name", "text", "events"), HEADERS)
def test_a_cut_header_stays_unsaid(name: str, text: str, events: list[Event]) -> None:
    fmt = get_format(name)
    scanned = fmt.alphabet.of(text)
    for step in (1, 1000):
        assert make.read(fmt, scanned, range(0, len(scanned), step), offered=Offered(NAMES), cut=True) == events


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_thinking_that_the_prompt_began(step: int) -> None:
    fmt = get_format("hermes")
    decoder = Decoder(fmt, Offered(NAMES), "<think>\n")
    text = fmt.alphabet.of('hm\n</think>\n\n<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>')
    events: list[Event] = []
    for start in range(0, len(text), step):
        events += decoder.feed_text(text[start : start + step])
    assert make.merge([*events, *decoder.finish()]) == [Reasoning("hm"), *call(0, "get", "{}")]


def test_code_is_json_or_raw() -> None:
    for name, text in (
        ("functionary-v2", 'python\n<|content|>print("é")\n'),
        ("functionary-v3.2", 'python\nprint("é")\n'),
        ("functionary-v3.1", '<|python_tag|>print("é")\n'),
        ("functionary-v2.5", f'{SEP}python\nprint("é")\n'),
        ("hermes", '<tool_call>\n{"name": "python", "arguments": {"code": "print(\\"é\\")\\n"}}\n</tool_call>'),
        ("functionary-v1", '\n<|START_OF_FUNCTION_CALL|>python:\n{"code": "print(\\"\\u00e9\\")\\n"}'),
    ):
        fmt = get_format(name)
        options: dict[str, Any] = {"raw": 'print("é")\n', "json": '{"code": "print(\\"é\\")\\n"}'}
        for python, expected in options.items():
            events = make.read(fmt, fmt.alphabet.of(text), offered=Offered(NAMES, python=python))  # type: ignore[arg-type]
            if name == "functionary-v1" and python == "json":
                expected = expected.replace("é", "\\u00e9")  # the model's own characters
            assert events == call(0, "python", expected), name


def test_cut_code_is_not_closed() -> None:
    fmt = get_format("functionary-v3.2")
    events = make.read(fmt, "python\nprint(", offered=Offered(NAMES, python="json"), cut=True)
    assert events == cut(0, "python", '{"code": "print(')
