"""Messages of both generations: what they become, which results are refused, and that nothing else ever happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functionary_vllm.conversation import Call, Message
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.history import normalise
from tests.reference import load, needs_reference
from tests.test_schema import JSON, steady

USER = {"role": "user", "content": "Weather?"}


def calls(*names: str, ids: bool = True) -> dict[str, Any]:
    made: list[dict[str, Any]] = [{"type": "function", "function": {"name": name, "arguments": "{}"}} for name in names]
    for name, call in zip(names, made, strict=True):
        call.update({"id": f"id-{name}"} if ids else {})
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"id-{name}", "content": name}


def results(*messages: dict[str, Any]) -> list[tuple[str | None, str]]:
    """Name and content of the tool messages, in the order in which they will be rendered."""
    return [(message.name, message.content) for message in normalise(messages) if message.role == "tool"]


def refusal(*messages: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        normalise(messages)
    assert caught.value.status == 400
    return caught.value


def test_tools_generation() -> None:
    first = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert normalise(
        [
            {"role": "developer", "content": "Be terse."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}],
                "name": "Ann",
            },
            {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": [first]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "1"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "function_call": None},
        ]
    ) == (
        Message("system", "Be terse."),
        Message("user", "Hi there"),
        Message("assistant", "Well.", calls=(Call("call_1", "f", '{"a": 1}'),), reasoning="Hm."),
        Message("tool", "1", name="f", call_id="call_1"),
        Message("assistant", "No."),
    )


def test_functions_generation() -> None:
    made_id = "call_00000000"
    assert normalise(
        [
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ]
    ) == (
        Message("user", "Weather?"),
        Message("assistant", "", calls=(Call(made_id, "f", "{}"),)),
        Message("tool", "1", name="f", call_id=made_id),
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"b": 1,"a":"é"}', '{"b": 1,"a":"é"}'),
        ('{"a": ', '{"a": '),
        ("print(1)", "print(1)"),
        ("", ""),
        (None, ""),
        ({"b": 1, "a": "é"}, '{"b": 1, "a": "é"}'),
        ([], "[]"),
        (0, "0"),
        ("\ud800", "\ufffd"),
    ],
)
def test_arguments_are_kept(arguments: Any, text: str) -> None:
    call = {"name": "f", "arguments": arguments}
    (new,) = normalise([{"role": "assistant", "tool_calls": [{"function": call}]}])
    (old,) = normalise([{"role": "assistant", "function_call": call}])
    assert new.calls[0].arguments == old.calls[0].arguments == text


@pytest.mark.parametrize("content", [None, "", []])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_empty_content(role: str, content: Any) -> None:
    assert normalise([{"role": role, "content": content}]) == normalise([{"role": role}])
    assert normalise([{"role": role}])[0].content == ""


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"reasoning": "a"}, "a"),
        ({"reasoning": "a", "reasoning_content": "b"}, "b"),
        ({"reasoning": "a", "reasoning_content": ""}, "a"),
        ({"reasoning": ""}, None),
        ({}, None),
    ],
)
def test_reasoning(fields: dict[str, str], reasoning: str | None) -> None:
    assert normalise([{"role": "assistant", "content": "x", **fields}])[0].reasoning == reasoning


def test_refusal_stands_in_for_content() -> None:
    assert normalise([{"role": "assistant", "content": None, "refusal": "No."}])[0].content == "No."
    assert normalise([{"role": "assistant", "content": "Yes.", "refusal": "No."}])[0].content == "Yes."


def test_made_up_ids_are_new_and_the_same_each_time() -> None:
    taken = {"id": "call_00000000", "function": {"name": "g"}}
    messages = [calls("a", "b", ids=False), {"role": "assistant", "tool_calls": [taken]}]
    ids = [call.id for message in normalise(messages) for call in message.calls]
    assert len(set(ids)) == 3
    assert ids[2] == "call_00000000"
    assert normalise(messages) == normalise(messages)
    assert [call.id for message in normalise(messages[:1]) for call in message.calls][1] == ids[1]


def test_tool_calls_win_over_function_call() -> None:
    (message,) = normalise([{**calls("f"), "function_call": {"name": "f", "arguments": "{}"}}])
    assert [call.id for call in message.calls] == ["id-f"]


# --- Results ------------------------------------------------------------------------------------------------------


def test_results_are_put_in_the_order_of_the_calls() -> None:
    assert results(calls("a", "b", "c"), result("c"), result("a"), result("b")) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_each_turn_is_ordered_by_itself() -> None:
    messages = [calls("a", "b"), result("b"), result("a"), USER, calls("c", "d"), result("d"), result("c")]
    assert [content for _, content in results(*messages)] == ["a", "b", "c", "d"]
    assert [message.role for message in normalise(messages)][3] == "user"


def test_missing_results_are_rendered() -> None:
    assert results(calls("a", "b", "c"), result("c"), result("a"), USER) == [("a", "a"), ("c", "c")]
    assert results(calls("a")) == []


def test_results_without_ids_keep_their_order() -> None:
    bare = [{"role": "tool", "content": content} for content in "xy"]
    assert results(calls("a", "b"), *bare) == [("a", "x"), ("b", "y")]
    assert results(calls("a", "a", ids=False), *bare) == [("a", "x"), ("a", "y")]


def test_results_without_ids_go_by_name_first() -> None:
    named = [{"role": "tool", "name": name, "content": name} for name in "ba"]
    assert results(calls("a", "b"), *named) == [("a", "a"), ("b", "b")]


def test_results_with_and_without_ids() -> None:
    bare = {"role": "tool", "content": "x"}
    assert results(calls("a", "b"), result("a"), bare) == [("a", "a"), ("b", "x")]


def test_the_given_name_is_kept() -> None:
    assert results(calls("a"), {**result("a"), "name": "A"}) == [("A", "a")]
    other = {"role": "function", "name": "other", "content": "1"}
    assert results({"role": "assistant", "function_call": {"name": "f"}}, other) == [("other", "1")]
    assert results(calls("f"), {"role": "function", "content": "1"}) == [("f", "1")]


def test_one_id_used_twice() -> None:
    twice = calls("a", "b")
    for call in twice["tool_calls"]:
        call["id"] = "same"
    first, second = ({"role": "tool", "tool_call_id": "same", "content": content} for content in "xy")
    assert results(twice, first, second) == [("a", "x"), ("b", "y")]


def test_two_results_of_one_call() -> None:
    assert results(calls("a", "b"), result("b"), result("a"), result("a")) == [("a", "a"), ("a", "a"), ("b", "b")]


def test_late_result() -> None:
    assert results(calls("a"), USER, result("a")) == [("a", "a")]
    assert results(calls("a"), USER, calls("b"), result("b"), result("a")) == [("a", "a"), ("b", "b")]


def test_calls_spread_over_assistant_messages() -> None:
    bare = [{"role": "tool", "content": content} for content in "xy"]
    assert results(calls("a"), calls("b"), *bare) == [("a", "x"), ("b", "y")]


def test_a_call_left_open_does_not_take_later_results() -> None:
    bare = {"role": "tool", "content": "x"}
    assert results(calls("a"), USER, calls("b"), bare) == [("b", "x")]
    assert results(calls("a", "b"), bare, calls("c"), bare) == [("a", "x"), ("c", "x")]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([result("a")], "messages[0].tool_call_id"),
        ([USER, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        ([calls("a"), result("b")], "messages[1].tool_call_id"),
        ([result("a"), calls("a")], "messages[0].tool_call_id"),
        ([calls("a"), {"role": "tool", "content": "x"}, {"role": "tool", "content": "x"}], "messages[2].tool_call_id"),
        ([USER, {"role": "function", "name": "f", "content": "x"}], "messages[1].name"),
    ],
)
def test_result_of_no_call(messages: list[Any], param: str) -> None:
    error = refusal(*messages)
    assert error.param == param
    assert "does not belong to any call" in error.message


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ("Hi", "messages[1]", "invalid_type"),
        ({}, "messages[1].role", "missing_required_parameter"),
        ({"role": 1}, "messages[1].role", "invalid_type"),
        ({"role": "ipython"}, "messages[1].role", "invalid_value"),
        ({"role": "user", "content": 1}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": {"type": "text"}}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": ["Hi"]}, "messages[1].content[0]", "invalid_type"),
        ({"role": "user", "content": [{"text": "Hi"}]}, "messages[1].content[0].type", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content[0].text", "invalid_type"),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": ""}, {"type": "image_url", "image_url": {"url": "x"}}],
            },
            "messages[1].content[1]",
            "invalid_value",
        ),
        ({"role": "user", "content": [{"type": ["x"]}]}, "messages[1].content[0]", "invalid_value"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls", "invalid_type"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[1].tool_calls[0]", "invalid_type"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function", "missing_required_parameter"),
        (
            {"role": "assistant", "tool_calls": [{"id": 7, "function": {"name": "f"}}]},
            "messages[1].tool_calls[0].id",
            "invalid_type",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": ""}}]},
            "messages[1].tool_calls[0].function.name",
            "missing_required_parameter",
        ),
        ({"role": "assistant", "function_call": "f"}, "messages[1].function_call", "invalid_type"),
        ({"role": "assistant", "function_call": {"name": 1}}, "messages[1].function_call.name", "invalid_type"),
        ({"role": "assistant", "reasoning": {}}, "messages[1].reasoning", "invalid_type"),
        ({"role": "assistant", "refusal": 1}, "messages[1].refusal", "invalid_type"),
        ({"role": "tool", "tool_call_id": 1}, "messages[1].tool_call_id", "invalid_type"),
    ],
)
def test_refused(message: Any, param: str, code: str) -> None:
    error = refusal(USER, message)
    assert (error.param, error.code) == (param, code)
    assert param in error.message or code == "invalid_value"


@pytest.mark.parametrize("messages", [None, "Hi", {"role": "user"}, 1])
def test_messages_must_be_an_array(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise(messages)
    assert (caught.value.param, caught.value.code) == ("messages", "invalid_type")


def test_no_messages() -> None:
    assert refusal().code == "empty_array"


def test_refusals_are_short_and_readable() -> None:
    for message in ({"role": "x" * 10_000}, {"role": "\ud800"}, {"role": "tool", "tool_call_id": "x" * 10_000}):
        error = refusal(message)
        assert len(error.message) < 300
        json.dumps(error.envelope()).encode()
        error.message.encode()


# --- Properties ---------------------------------------------------------------------------------------------------

ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
NAMES = st.sampled_from(["f", "g", "id-f"])
PARTS = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "refusal", "image_url"]), "text": st.text()}))
FUNCTION = st.fixed_dictionaries({}, optional={"name": NAMES | JSON, "arguments": JSON | st.text()}) | JSON
TOOL_CALL = st.fixed_dictionaries({}, optional={"id": NAMES | JSON, "function": FUNCTION}) | JSON
MESSAGE = (
    st.fixed_dictionaries(
        {"role": ROLES},
        optional={
            "content": st.text() | PARTS | JSON,
            "name": NAMES | JSON,
            "tool_call_id": NAMES | JSON,
            "tool_calls": st.lists(TOOL_CALL, max_size=4) | JSON,
            "function_call": FUNCTION,
            "reasoning": JSON,
            "refusal": JSON,
        },
    )
    | JSON
)
GOOD_CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": NAMES, "arguments": JSON})}, optional={"id": NAMES}
)
GOOD_MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}),
    st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.lists(GOOD_CALL, max_size=4)}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": st.text()}, optional={"tool_call_id": NAMES}),
    st.fixed_dictionaries({"role": st.just("function"), "name": NAMES, "content": st.text()}),
)


@steady
@given(st.lists(MESSAGE, max_size=8))
def test_total(messages: list[Any]) -> None:
    try:
        normal = normalise(messages)
    except InvalidRequest as error:
        json.dumps(error.envelope(), ensure_ascii=False).encode()
        return
    assert all(isinstance(message.content, str) for message in normal)


@steady
@given(st.lists(GOOD_MESSAGE, min_size=1, max_size=12))
def test_nothing_is_lost_and_every_result_has_its_call(messages: list[Any]) -> None:
    param = None
    try:
        normal = normalise(messages)
    except InvalidRequest as error:
        param = error.param or ""
    if param is not None:
        assert param.endswith(("].tool_call_id", "].name"))
        return
    assert len(normal) == len(messages)
    seen: set[str] = set()
    for message, sent in zip(normal, messages, strict=True):
        # Reordering happens inside runs of results, so roles keep their places.
        assert message.role == sent["role"].replace("function", "tool")
        seen.update(call.id for call in message.calls)
        if message.role == "tool":
            assert message.call_id in seen
            assert message.name
    assert sorted(m.content for m in normal) == sorted(sent.get("content") or "" for sent in messages)


def test_many_calls_in_one_turn() -> None:
    """Twenty thousand results without ids: a search among the open calls for each would take minutes."""
    many = 20_000
    bare = [{"role": "tool", "name": "g", "content": str(i)} for i in range(many)]
    found = results(calls(*["f"] * many, ids=False), *bare)
    assert [content for _, content in found] == [str(i) for i in range(many)]


# --- Reference ----------------------------------------------------------------------------------------------------


def reference_messages() -> list[Any]:
    cases = [
        row["messages"] for row in load("functionary/reference_prompts.json") if "image_url" not in str(row["messages"])
    ]
    cases += [row["messages"] for row in (load("functionary/reference_seed_v0.json") or {"cases": []})["cases"]]
    return cases


@needs_reference
def test_reference_conversations() -> None:
    for messages in reference_messages():
        normal = normalise(messages)
        assert len(normal) == len(messages)
        results = [message.call_id for message in normal if message.role == "tool"]
        assert results == [call.id for message in normal for call in message.calls if call.id in results]
