"""formats/vllm_parser.py: vLLM's own parsers behind our decoder, on real tokenizers; what happens where they fail."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from tokenizers import AddedToken

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM and torch warn of their own deprecations while they are imported
    pytest.importorskip("vllm", reason="vLLM is not installed: its parsers cannot be had")
    import xgrammar
    from vllm.tokenizers.hf import get_cached_tokenizer

from functionary_vllm.api.app import create_app
from functionary_vllm.conversation import AUTO, NONE, REQUIRED, Choice, Conversation, Function, Message
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text, merge
from functionary_vllm.formats import UnknownFormat, get_format
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.machine import Offered, ReadingPolicy
from functionary_vllm.formats.vllm_parser import VllmParser, begun_to_think
from functionary_vllm.settings import Settings
from tests.apps import PATH, TOOLS, USER
from tests.fakes import FakeEngine
from tests.real_tokenizers import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

WEATHER = Function(
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    }
)
OFFERED = Offered.of([WEATHER])
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined %}<think>\n{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
    "{% endif %}"
)
BEGIN = "<|im_start|>assistant\n"


@pytest.fixture(scope="module", autouse=True)
def same_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@cache
def with_template(name: str, *added: str) -> Any:
    """A copy of this tokenizer with a chat template and more tokens, as vLLM's engine has it."""
    own = copy.deepcopy(load_tokenizer(name))
    own.chat_template = TEMPLATE
    own.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return get_cached_tokenizer(own)


def fmt(name: str, tokenizer: str = "qwen3", *added: str) -> VllmParser:
    made = get_format(name, with_template(tokenizer, *added))
    assert isinstance(made, VllmParser)
    assert made.lacks() is None
    return made


def ids(made: VllmParser, text: str) -> list[int]:
    """What a model says after its prompt; SentencePiece puts a space in front of a text by itself."""
    assert made.tokenizer is not None
    front = made.tokenizer.encode("\n", add_special_tokens=False) if made.alphabet.spaced else []
    return list(made.tokenizer.encode("\n" * bool(front) + text, add_special_tokens=False))[len(front) :]


def read(
    made: VllmParser, token_ids: Sequence[int], size: int = 1, *, cut: bool = False, opened: str = BEGIN, **options: Any
) -> list[Event]:
    decoder = made.decode(options.pop("offered", OFFERED), opened, **options)
    events: list[Event] = []
    for start in range(0, len(token_ids), size):
        events += decoder.feed(token_ids[start : start + size])
    return merge([*events, *decoder.finish(cut=cut)])


def call(arguments: str, index: int = 0, name: str = "get_weather") -> list[Event]:
    return [CallStart(index, name), CallArguments(index, arguments), CallEnd(index)]


ROWS: list[tuple[str, tuple[str, ...], str, list[Event]]] = [
    (  # text around a marker token, thoughts by a parser of another kind
        "vllm:hermes:qwen3",
        ("qwen3",),
        "<think>\nWhere?\n</think>\n\nSo: a < b ☂\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Łódź ☂", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call><|im_end|>',
        [
            Reasoning("\nWhere?\n"),
            Text("\n\nSo: a < b ☂\n"),
            *call('{"city": "Łódź ☂", "days": 2}'),
            *call("{}", 1),
        ],
    ),
    (  # one of the parsers that are driven by token ids; values are converted by the schema
        "vllm:qwen3_coder",
        ("qwen3",),
        "Hm.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n12\n"
        "</parameter>\n</function>\n</tool_call><|im_end|>",
        [Text("Hm.\n"), *call('{"city": "Rome", "days": 12}')],
    ),
    (
        "vllm:seed_oss",
        ("qwen3", "<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
        "Hm.\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Rome</parameter>\n<parameter=days>12</parameter>"
        "\n</function>\n</seed:tool_call><|im_end|>",
        [Text("Hm.\n"), *call('{"city": "Rome", "days": 12}')],
    ),
    (  # bare JSON
        "vllm:llama3_json",
        ("llama31",),
        '{"name": "get_weather", "parameters": {"city": "Rome", "days": 2}}<|eot_id|>',
        call('{"city": "Rome", "days": 2}'),
    ),
    (  # text alone, on SentencePiece
        "vllm:pythonic",
        ("spm_v0",),
        '[get_weather(city="Rome", days=2), get_weather(city="Łódź", days=3)]</s>',
        [*call('{"city": "Rome", "days": 2}'), *call('{"city": "Łódź", "days": 3}', 1)],
    ),
    ("vllm:xlam", ("spm_v0",), "Hello there  ☂!</s>", [Text("Hello there  ☂!")]),
]


@pytest.mark.parametrize(("name", "tokenizer", "answer", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_any_grouping_gives_the_same_events(
    name: str, tokenizer: tuple[str, ...], answer: str, expected: list[Event]
) -> None:
    made = fmt(name, *tokenizer)
    token_ids = ids(made, answer)
    for size in (1, 2, 5, len(token_ids)):
        assert read(made, token_ids, size) == expected, size


def test_arguments_come_as_they_are_written() -> None:
    made = fmt("vllm:hermes")
    decoder = made.decode(OFFERED, BEGIN)
    arguments = json.dumps({"city": "a " * 200, "days": 1})
    told = [
        sum(len(event.text) for event in decoder.feed([token_id]) if isinstance(event, CallArguments))
        for token_id in ids(made, f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>')
    ]
    assert sum(told) == len(arguments)
    assert max(told) < 20


def test_a_prompt_that_begins_the_thoughts() -> None:
    made = fmt("vllm:hermes:deepseek_r1")
    opened = made.render(Conversation((Message("user", "?"),), (WEATHER,), AUTO, thinking=True)).opened
    assert opened == f"{BEGIN}<think>\n"
    assert read(made, ids(made, "Hm.</think>Yes.<|im_end|>"), opened=opened) == [Reasoning("Hm."), Text("Yes.")]
    closed = made.render(Conversation((Message("user", "?"),), (WEATHER,), AUTO, thinking=False)).opened
    assert read(made, ids(made, "Yes.<|im_end|>"), opened=closed) == [Text("Yes.")]


@pytest.mark.parametrize(
    ("begin", "thinking"),
    [
        ("<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("assistant\n", None),
        ("<|START_THINKING|>", True),
        ("<|END_THINKING|>", False),
        ("[THINK]", True),
        ("<think> a", None),
    ],
)
def test_how_a_turn_begins(begin: str, thinking: bool | None) -> None:
    assert begun_to_think(begin) is thinking


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'


def test_what_ends_an_answer() -> None:
    made = fmt("vllm:hermes")
    assert made.stop_token_ids == (made.alphabet.ids["<|im_end|>"],)
    decoder = made.decode(OFFERED, BEGIN)
    assert decoder.feed(ids(made, "Hi<|im_end|>there")) == [Text("Hi")]
    assert decoder.done
    assert decoder.received == 2
    assert decoder.feed(ids(made, "more")) == decoder.finish() == []

    decoder = made.decode(OFFERED, BEGIN, max_calls=1)
    events = [event for token_id in ids(made, f"{CALL}\n{CALL}") for event in decoder.feed([token_id])]
    assert merge(events) == call('{"city": "Rome", "days": 2}')
    assert decoder.done

    for size in (1, 3, 100):
        text = read(made, ids(made, f"One. Two. Three.{CALL}"), size, stops=["Three"])
        assert text == [Text("One. Two. ")]


def test_a_cut_call_stays_cut() -> None:
    for name, answer in (
        ("vllm:hermes", CALL[:70]),
        ("vllm:qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nRo"),
    ):
        made = fmt(name)
        events = read(made, ids(made, answer), cut=True)
        assert events[0] == CallStart(0, "get_weather")
        assert "".join(e.text for e in events if isinstance(e, CallArguments)).startswith('{"city": "R')
        assert CallEnd(0) not in events


def test_a_character_that_never_ends() -> None:
    made = fmt("vllm:hermes")
    half = ids(made, "☂☂𓀀")[:-1]
    decoder = made.decode(OFFERED, BEGIN)
    events = decoder.feed(half)
    assert decoder.pending
    assert merge([*events, *decoder.finish(cut=True)])[0] in (Text("☂☂\ufffd"), Text("☂☂\ufffd\ufffd"))


def test_without_calls_nothing_is_one() -> None:
    made = fmt("vllm:hermes")
    assert read(made, ids(made, f"{CALL}<|im_end|>"), offered=Offered(calls=False)) == [Text(CALL)]
    thoughtful = fmt("vllm:hermes:qwen3")
    told = read(thoughtful, ids(thoughtful, f"<think>a</think>{CALL}"), offered=Offered(calls=False))
    assert told == [Reasoning("a"), Text(CALL)]


def test_unknown_functions_and_raw_code_go_by_the_settings() -> None:
    made = fmt("vllm:hermes")
    offered = Offered(("other",), reading=ReadingPolicy(unknown_function="text"))
    decoder = made.decode(offered, BEGIN)
    events = merge([*decoder.feed(ids(made, CALL)), *decoder.finish()])
    assert events == [Text('{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}')]
    assert decoder.machine.unknown_calls == 1
    code = '<tool_call>\n{"name": "python", "arguments": {"code": "print(\\"a\\")"}}\n</tool_call>'
    assert read(made, ids(made, code), offered=Offered(python="raw")) == call('print("a")', name="python")


# -- where vLLM's parser fails ---------------------------------------------------------------------------------------


class Broken:
    """Raises at the n-th token, and is vLLM's parser before."""

    def __init__(self, parser: Any, at: int) -> None:
        self._parser, self._left = parser, at

    def parse_delta(self, *args: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise IndexError("list index out of range")
        return self._parser.parse_delta(*args, **options)


def breaking(made: VllmParser, at: int) -> Decoder:
    decoder: Any = made.decode(OFFERED, BEGIN)
    decoder._parser = Broken(decoder._parser, at)
    assert isinstance(decoder, Decoder)
    return decoder


def test_a_parser_that_fails_leaves_text(caplog: pytest.LogCaptureFixture) -> None:
    made = fmt("vllm:hermes")
    failures: list[int] = []
    made.on_failure = lambda: failures.append(1)
    token_ids = ids(made, f"So: {CALL}<|im_end|>")
    for at in range(len(token_ids) + 1):
        decoder = breaking(made, at)
        events = merge([event for token_id in token_ids for event in decoder.feed([token_id])])
        assert decoder.done
        told = "".join(event.text for event in events if isinstance(event, Text | CallArguments))
        if not any(isinstance(event, CallStart) for event in events):
            assert told == f"So: {CALL}", at  # whatever the parser had swallowed is there again
        elif at < len(token_ids):
            assert '"city": "Rome", "days": 2}' in told, at
    assert len(failures) == len(token_ids)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_tokenizer_that_lacks_what_the_parser_needs() -> None:
    tokenizer = copy.deepcopy(load_tokenizer("llama31"))
    made = get_format("vllm:minimax_m2", tokenizer)
    assert "chat template" in (made.lacks() or "")
    tokenizer.chat_template = TEMPLATE
    made = get_format("vllm:mistral", tokenizer)
    assert isinstance(made, VllmParser)
    assert "cannot be used with this model's tokenizer: " in (made.lacks() or "")
    assert read(made, ids(made, "Still here.<|eot_id|>")) == [Text("Still here.")]
    assert "--format gpt-oss" in (get_format("vllm:openai", tokenizer).lacks() or "")


def test_unknown_parsers_are_told_with_those_there_are() -> None:
    with pytest.raises(UnknownFormat, match=r"vLLM has no tool parser 'hermez'; it has .*hermes.*qwen3_coder"):
        get_format("vllm:hermez")
    with pytest.raises(UnknownFormat, match=r"vLLM has no reasoning parser 'deep'; it has .*deepseek_r1"):
        get_format("vllm:hermes:deep")


# -- prompts and rules -----------------------------------------------------------------------------------------------


def asked(choice: Choice, *functions: Function, **options: Any) -> Conversation:
    return Conversation((Message("user", "Rain?"),), functions or (WEATHER,), choice, **options)


def test_the_prompt_is_the_templates() -> None:
    made = fmt("vllm:hermes")
    prompt = made.render(asked(AUTO))
    assert prompt.text.endswith(f"<|im_start|>user\nRain?<|im_end|>\n{BEGIN}")
    assert prompt.opened == BEGIN
    assert prompt.stop == ("<|im_end|>",)
    assert made.constraint(asked(AUTO), prompt.opened) is None
    # A message that quotes the mark of the turn's begin moves nothing.
    quoting = made.render(Conversation((Message("user", "\ue002?"),), (), NONE))
    assert (quoting.opened, "\ue002?" in quoting.text) == (BEGIN, True)


def accepts(made: VllmParser, rule: str, answer: str) -> bool:
    tokenizer: Any = made.tokenizer
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_structural_tag(rule))
    return all(matcher.accept_token(i) for i in ids(made, answer)) and matcher.accept_token(tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("choice", "opened", "answer", "wrong"),
    [
        (
            REQUIRED,
            '[{"name": "',
            'get_weather", "parameters": {"city": "Rome", "days": 2}}, '
            '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 1}}]',
            'get_time", "parameters": {}}]',
        ),
        (
            Choice("named", "get_weather"),
            '[{"name": "get_weather", "parameters',
            '": {"city": "Rome", "days": 2}}]',
            '": {"city": "Rome"}}]',
        ),
    ],
)
def test_forced_calls_are_a_json_list(choice: Choice, opened: str, answer: str, wrong: str) -> None:
    made = fmt("vllm:hermes:qwen3")
    conversation = asked(choice)
    prompt = made.render(conversation)
    assert prompt.opened == opened
    assert prompt.text.endswith(BEGIN + opened)
    rule = made.constraint(conversation, opened, frozenset(["get_weather"]))
    assert rule is not None
    assert accepts(made, rule, answer)
    assert not accepts(made, rule, wrong)
    events = read(made, ids(made, f"{answer}<|im_end|>"), opened=opened)
    assert events[:3] == call('{"city": "Rome", "days": 2}')
    assert events[3:] == (call('{"city": "Oslo", "days": 1}', 1) if choice == REQUIRED else [])


@pytest.mark.parametrize(
    ("name", "conversation", "param"),
    [
        ("vllm:hermes", asked(AUTO, Function(WEATHER.definition, strict=True)), "tools"),
        ("vllm:hermes", asked(AUTO, response_schema={"type": "object"}), "response_format"),
        ("vllm:hermes:qwen3", Conversation((Message("user", "?"),), response_schema=True), "response_format"),
        ("vllm:hermes", asked(REQUIRED, thinking=True), "tool_choice"),
    ],
)
def test_what_cannot_be_enforced_is_refused(name: str, conversation: Conversation, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fmt(name).render(conversation)
    assert caught.value.param == param
    assert name in caught.value.message


async def test_the_server_answers_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fmt("vllm:hermes")
    engine = FakeEngine(tokenizer=made.tokenizer)
    engine.scripts = [engine.play(CALL)]
    app = create_app(Settings(served_model_names=("m",)), engine, made)
    labels = {"format": "vllm:hermes", "parser": "vllm"}
    assert REGISTRY.get_sample_value("functionary_format_info", labels) == 1
    body = {"model": "m", "messages": USER, "tools": TOOLS}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        choice = (await client.post(PATH, json=body)).json()["choices"][0]
        assert choice["message"]["tool_calls"][0]["function"] == {
            "name": "get_weather",
            "arguments": '{"city": "Rome", "days": 2}',
        }
        assert choice["finish_reason"] == "tool_calls"
        strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]  # type: ignore[dict-item]
        refused = await client.post(PATH, json={**body, "tools": strict})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")

        counted = "functionary_parser_failures_total"
        before = REGISTRY.get_sample_value(counted, {"format": "vllm:hermes"}) or 0
        monkeypatch.setitem(made.parsers, True, lambda *args, **options: 1 / 0)
        choice = (await client.post(PATH, json=body)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert REGISTRY.get_sample_value(counted, {"format": "vllm:hermes"}) == before + 1
