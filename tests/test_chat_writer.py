"""The writer alone: the truth table of finish reasons, OpenAI's shapes, and stream == whole for any events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functionary_vllm.api.chat_writer import ChatAnswer, ChatChunks, Shape
from functionary_vllm.engine.base import TokenLogprob
from functionary_vllm.errors import EngineFailure
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Finish, FinishReason, Reasoning, Text
from functionary_vllm.pipeline import Delta
from tests.folding import folded_stream, folded_whole

CALL = [CallStart(0, "f"), CallArguments(0, '{"a":'), CallArguments(0, "1}"), CallEnd(0)]
CUT_CALL = CALL[:2]
TEXT = [Text("Hello"), Text(" there")]


def shape(**options: Any) -> Shape:
    values = {"id": "chatcmpl-1", "model": "m", "created": 7, "fingerprint": "fp_1", "prompt_tokens": 5}
    return Shape(**{**values, **options})


def deltas(*steps: Sequence[Event], choice: int = 0) -> list[Delta]:
    return [Delta(choice, events, tokens) for events, tokens in zip(steps, count(1), strict=False)]


def one_by_one(events: Sequence[Event], reason: FinishReason = "stop") -> list[Delta]:
    return deltas(*([event] for event in events), [Finish(reason)])


def chunks_of(look: Shape, steps: Sequence[Delta]) -> list[dict[str, Any]]:
    writer = ChatChunks(look)
    raw = b"".join([*(writer.write(step) for step in steps), writer.end()])
    frames = raw.split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: ") for frame in frames)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def whole_of(look: Shape, steps: Sequence[Delta]) -> dict[str, Any]:
    answer = ChatAnswer(look)
    for step in steps:
        assert answer.write(step) == b""
    return answer.response()


def same_in_both_modes(look: Shape, steps: Sequence[Delta]) -> dict[int, dict[str, Any]]:
    streamed = folded_stream(chunks_of(look, steps))
    assert streamed == folded_whole(whole_of(look, steps))
    return streamed


AUTO: dict[str, Any] = {}
NAMED = {"call_finish": "stop"}
NAMED_BY_FLAG = {"call_finish": "tool_calls"}
LEGACY = {"call_finish": "function_call", "legacy": True, "max_calls": 1}

TRUTH: list[tuple[str, dict[str, Any], list[Event], FinishReason, str]] = [
    ("auto call", AUTO, CALL, "stop", "tool_calls"),
    ("auto call, then cut", AUTO, CALL, "length", "length"),
    ("auto cut call", AUTO, CUT_CALL, "length", "length"),
    ("auto call ended by a stop string", AUTO, CUT_CALL, "stop", "stop"),
    ("auto text", AUTO, TEXT, "stop", "stop"),
    ("auto cut text", AUTO, TEXT, "length", "length"),
    ("auto second call cut short by a stop string", AUTO, [*CALL, CallStart(1, "g")], "stop", "tool_calls"),
    ("auto second call cut by length", AUTO, [*CALL, CallStart(1, "g")], "length", "length"),
    ("named call", NAMED, CALL, "stop", "stop"),
    ("named cut call", NAMED, CUT_CALL, "length", "length"),
    ("named call, by flag", NAMED_BY_FLAG, CALL, "stop", "tool_calls"),
    ("named cut call, by flag", NAMED_BY_FLAG, CUT_CALL, "length", "length"),
    ("legacy call", LEGACY, CALL, "stop", "function_call"),
    ("legacy cut call", LEGACY, CUT_CALL, "length", "length"),
    ("legacy call ended by a stop string", LEGACY, CUT_CALL, "stop", "stop"),
    ("legacy text", LEGACY, TEXT, "stop", "stop"),
    ("legacy cut text", LEGACY, TEXT, "length", "length"),
    ("nothing", AUTO, [], "stop", "stop"),
    ("nothing, cut", AUTO, [], "length", "length"),
]


@pytest.mark.parametrize(
    ("options", "events", "reason", "finish"), [row[1:] for row in TRUTH], ids=[r[0] for r in TRUTH]
)
def test_finish_reason(options: dict[str, Any], events: list[Event], reason: FinishReason, finish: str) -> None:
    for steps in (one_by_one(events, reason), deltas([*events, Finish(reason)])):
        assert same_in_both_modes(shape(**options), steps)[0]["finish"] == finish


def test_stream_of_a_text_has_openais_shape() -> None:
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp_1",
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    assert chunks_of(shape(), one_by_one(TEXT)) == [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "Hello"}),
        chunk({"content": " there"}),
        chunk({}, "stop"),
    ]


def test_stream_of_calls_has_openais_shape() -> None:
    events = [*CALL, CallStart(1, "g"), CallArguments(1, "{}"), CallEnd(1)]
    chunks = chunks_of(shape(), one_by_one(events))
    ids = [call["id"] for c in chunks for call in c["choices"][0]["delta"].get("tool_calls", []) if "id" in call]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"call_[A-Za-z0-9]{24}", call_id) for call_id in ids)

    def opening(index: int, name: str) -> dict[str, Any]:
        return {"index": index, "id": ids[index], "type": "function", "function": {"name": name, "arguments": ""}}

    assert [c["choices"][0]["delta"] for c in chunks] == [
        {"role": "assistant", "content": None, "tool_calls": [opening(0, "f")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [opening(1, "g")]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]


def test_legacy_stream_names_the_function_once_and_shows_one_call() -> None:
    events = [*CALL, CallStart(1, "g"), CallArguments(1, "{}"), CallEnd(1)]
    chunks = chunks_of(shape(**LEGACY), one_by_one(events))
    assert [c["choices"][0]["delta"] for c in chunks] == [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"a":'}},
        {"function_call": {"arguments": "1}"}},
        {},
    ]
    message = whole_of(shape(**LEGACY), one_by_one(events))["choices"][0]["message"]
    expected = {"role": "assistant", "content": None, "refusal": None}
    assert message == {**expected, "function_call": {"name": "f", "arguments": '{"a":1}'}}


def test_whole_response_has_openais_shape() -> None:
    response = whole_of(shape(), one_by_one([Text("Let me see. "), *CALL]))
    call = response["choices"][0]["message"]["tool_calls"][0]
    assert re.fullmatch(r"call_[A-Za-z0-9]{24}", call.pop("id"))
    assert response == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Let me see. ",
                    "refusal": None,
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 6,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": "fp_1",
    }


@pytest.mark.parametrize(
    ("events", "content"),
    [([], ""), (TEXT, "Hello there"), (CALL, None), ([Text("a"), *CALL, Text("b")], "ab"), ([Reasoning("r")], "")],
    ids=["nothing", "text", "call", "text around a call", "reasoning alone"],
)
def test_content_is_null_only_beside_calls(events: list[Event], content: str | None) -> None:
    assert same_in_both_modes(shape(), one_by_one(events))[0]["content"] == content


def test_a_text_answer_has_no_key_for_calls_or_reasoning() -> None:
    message = whole_of(shape(), one_by_one(TEXT))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello there", "refusal": None}


def test_a_step_is_one_write_and_a_silent_step_writes_nothing() -> None:
    writer = ChatChunks(shape())
    first, silent = writer.write(Delta(0, [Text("a"), *CALL], 1)), writer.write(Delta(0, [], 2))
    assert first.count(b"data: ") == 5
    assert silent == b""


def test_usage_is_the_last_chunk_and_null_before() -> None:
    steps = [Delta(0, [Text("a")], 1, cached_tokens=4), Delta(0, [Finish("stop")], 3, cached_tokens=4)]
    *chunks, last = chunks_of(shape(include_usage=True), steps)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == whole_of(shape(), steps)["usage"]
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, **details}
    assert "usage" not in chunks_of(shape(), steps)[0]


def test_continuous_usage_counts_up() -> None:
    chunks = chunks_of(shape(include_usage=True, continuous_usage=True), one_by_one(TEXT))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 2, 3, 3]


def token_text(token_id: int) -> tuple[str, bytes]:
    raw = bytes([token_id])
    return raw.decode(errors="replace"), raw


def test_logprobs_are_the_same_in_both_modes() -> None:
    look = shape(token_text=token_text)
    a, b, c = TokenLogprob(97, -0.5, ((97, -0.5), (98, -1.5))), TokenLogprob(0xE2, float("-inf")), TokenLogprob(99, -2)
    steps = [
        Delta(0, [], 1, [a]),  # its character is still held back
        Delta(0, [Text("a"), Text("b")], 2, [b]),
        Delta(0, CALL[:1], 3),
        Delta(0, [*CALL[1:], Text("c"), Finish("stop")], 4, [c]),
    ]
    logprobs = same_in_both_modes(look, steps)[0]["logprobs"]
    assert logprobs == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -1.5, "bytes": [98]},
            ],
        },
        {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xE2], "top_logprobs": []},
        {"token": "c", "logprob": -2.0, "bytes": [99], "top_logprobs": []},
    ]


@pytest.mark.parametrize("events", [CALL, TEXT, [], [Reasoning("r")]], ids=["call", "text", "nothing", "reasoning"])
def test_asked_for_logprobs_are_a_list_even_when_empty(events: list[Event]) -> None:
    assert same_in_both_modes(shape(token_text=token_text), one_by_one(events))[0]["logprobs"] == []


def test_aborted_and_unfinished_answers_are_errors() -> None:
    for writer in (ChatChunks(shape()), ChatAnswer(shape())):
        with pytest.raises(EngineFailure):
            writer.write(Delta(0, [Finish("abort")], 1))
        with pytest.raises(EngineFailure):
            writer.end()


TEXTS = st.text(st.characters(codec=None), max_size=8)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """Any answer: reasoning, texts and calls in any order, the last call perhaps cut, at any place."""
    events: list[Event] = [Reasoning(text) for text in draw(st.lists(TEXTS, max_size=2))]
    for index in range(draw(st.integers(0, 3))):
        events += [Text(text) for text in draw(st.lists(TEXTS, max_size=2))]
        events += [CallStart(index, draw(TEXTS)), *(CallArguments(index, t) for t in draw(st.lists(TEXTS, max_size=3)))]
        events.append(CallEnd(index))
    events += [Text(text) for text in draw(st.lists(TEXTS, max_size=2))]
    return [*events[: draw(st.integers(0, len(events)))], Finish(draw(st.sampled_from(["stop", "length"])))]


@settings(deadline=None)
@given(data=st.data(), choices=st.integers(1, 4), options=st.sampled_from([AUTO, NAMED, LEGACY]))
def test_stream_and_whole_agree(data: st.DataObject, choices: int, options: dict[str, Any]) -> None:
    queues = []
    for choice in range(choices):
        events = data.draw(answers())
        cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=4)))
        bounds = zip([0, *cuts], [*cuts, len(events)], strict=True)
        queues.append(deltas(*(events[a:b] for a, b in bounds), choice=choice))
    steps = []
    while any(queues):
        steps.append(data.draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    look = shape(choices=choices, include_usage=True, **options)
    assert set(same_in_both_modes(look, steps)) == set(range(choices))
    assert chunks_of(look, steps)[-1]["usage"] == whole_of(look, steps)["usage"]
