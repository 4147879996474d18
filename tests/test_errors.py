"""Every refusal: status, type, param and code in OpenAI's envelope, and a message for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from functionary_vllm import errors
from functionary_vllm.errors import ApiError
from tests.apps import PATH, TOOLS, USER, WEATHER, ask, client_of, engine_saying, error_of


def tree(error: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    yield error
    for below in error.__subclasses__():
        yield from tree(below)


@pytest.mark.parametrize("error", list(tree()), ids=lambda e: e.__name__)
def test_the_tree_gives_whole_envelopes(error: type[ApiError]) -> None:
    assert error("Why.", param="p", code="c").envelope() == {
        "error": {"message": "Why.", "type": error.type, "param": "p", "code": "c"}
    }
    assert 400 <= error.status < 600
    assert (error.type == "server_error") == (error.status >= 500)
    if error is not ApiError:
        assert isinstance(error("Why.").code, str)
        assert error.__name__ in (errors.__doc__ or "")


def tool(**definition: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **definition}}]}


def strict(parameters: Any) -> dict[str, Any]:
    return tool(parameters=parameters, strict=True)


def json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


TWICE = [*TOOLS, *TOOLS]
BAD_TYPE = {"type": "object", "properties": {"a": {"type": "wizard"}}}
ORPHAN = [*USER, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
CODE_TWICE = {"tools": [{"type": "code_interpreter"}, {"type": "function", "function": {"name": "python"}}]}

REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    # of the wrong shape
    ({"messages": None}, 422, "messages", "invalid_type"),
    ({"messages": "Hello"}, 422, "messages", "invalid_type"),
    ({"messages": ["Hello"]}, 422, "messages[0]", "invalid_type"),
    ({"temperature": "hot"}, 422, "temperature", "invalid_type"),
    ({"n": 1.5}, 422, "n", "invalid_type"),
    ({"n": True}, 422, "n", "invalid_type"),
    ({"stream": "yes"}, 422, "stream", "invalid_type"),
    ({"stop": 3}, 422, "stop", "invalid_type"),
    ({"stop": ["a", 3]}, 422, "stop[1]", "invalid_type"),
    ({"tools": {}}, 422, "tools", "invalid_type"),
    ({"tools": ["f"]}, 422, "tools[0]", "invalid_type"),
    ({"tool_choice": 1}, 422, "tool_choice", "invalid_type"),
    ({"metadata": {"a": 1}}, 422, "metadata.a", "invalid_type"),
    ({"logit_bias": {"1": "much"}}, 422, "logit_bias.1", "invalid_type"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, 422, "stream_options.include_usage", "invalid_type"),
    ({"response_format": {}}, 422, "response_format.type", "missing_required_parameter"),
    ({"response_format": {"type": "json_schema"}}, 422, "response_format.json_schema", "missing_required_parameter"),
    (json_schema("{}"), 422, "response_format.json_schema.schema", "invalid_type"),
    (
        {"chat_template_kwargs": {"enable_thinking": "no"}},
        422,
        "chat_template_kwargs.enable_thinking",
        "invalid_type",
    ),
    # of no sense
    ({"messages": []}, 400, "messages", "empty_array"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "invalid_type"),
    ({"messages": ORPHAN}, 400, "messages[1].tool_call_id", "invalid_value"),
    ({"temperature": 2.5}, 400, "temperature", "invalid_value"),
    ({"temperature": -1}, 400, "temperature", "invalid_value"),
    ({"top_p": 0}, 400, "top_p", "invalid_value"),
    ({"presence_penalty": 3}, 400, "presence_penalty", "invalid_value"),
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": 129}, 400, "n", "invalid_value"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": -1}, 400, "max_completion_tokens", "invalid_value"),
    ({"stop": ""}, 400, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, 400, "stop[1]", "invalid_value"),
    ({"stop": ["a"] * 17}, 400, "stop", "invalid_value"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"999999": 1}}, 400, "logit_bias.999999", "invalid_value"),
    ({"logit_bias": {"Hello": 1}}, 400, "logit_bias.Hello", "invalid_value"),
    ({"logit_bias": {"1": 101}}, 400, "logit_bias.1", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"response_format": {"type": "poem"}}, 400, "response_format.type", "invalid_value"),
    ({"max_tokens": 100_000}, 400, "messages", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "messages", "context_length_exceeded"),
    # tools and functions
    ({"tools": TOOLS, "functions": [WEATHER]}, 400, "functions", "invalid_value"),
    ({"functions": [WEATHER], "tool_choice": "auto"}, 400, "tool_choice", "invalid_value"),
    ({"function_call": "auto"}, 400, "function_call", "invalid_value"),
    ({"functions": [WEATHER], "function_call": {"name": "g"}}, 400, "function_call", "invalid_value"),
    ({"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": "perhaps"}, 400, "tool_choice", "invalid_value"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
        400,
        "tool_choice",
        "invalid_value",
    ),
    ({"tools": [{"type": "function"}]}, 400, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "oracle"}]}, 400, "tools[0].type", "invalid_value"),
    ({"tools": TWICE}, 400, "tools[1].function.name", "duplicate_function_name"),
    (tool(name="bad name!"), 400, "tools[0].function.name", "invalid_value"),
    (tool(name=""), 400, "tools[0].function.name", "empty_string"),
    (tool(name="f" * 65), 400, "tools[0].function.name", "string_above_max_length"),
    ({"functions": [{"name": "a b"}]}, 400, "functions[0].name", "invalid_value"),
    (CODE_TWICE, 400, "tools[1].function.name", "reserved_function_name"),
    # schemas
    (tool(parameters=3), 400, "tools[0].function.parameters", "invalid_type"),
    (
        strict(BAD_TYPE),
        400,
        "tools[0].function.parameters.properties.a.type",
        "invalid_function_parameters",
    ),
    (
        json_schema(BAD_TYPE),
        400,
        "response_format.json_schema.schema.properties.a.type",
        "invalid_function_parameters",
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"), REFUSED, ids=[f"{param}-{json.dumps(b)[:40]}" for b, _, param, _ in REFUSED]
)
async def test_bad_input(body: dict[str, Any], status: int, param: str, code: str) -> None:
    engine = engine_saying("Hello")
    response = await ask(engine, **body)
    error = error_of(response)
    told = (response.status_code, error["param"], error["code"], error["type"])
    assert told == (status, param, code, "invalid_request_error"), error["message"]
    assert not engine.requests
    assert "pydantic" not in error["message"]
    assert "\n" not in error["message"]


async def test_a_schema_that_only_the_engine_refuses_is_told_with_its_path() -> None:
    def refuse(schema: Any) -> None:
        if "uniqueItems" in json.dumps(schema):
            raise ValueError("uniqueItems is not implemented")

    engine = engine_saying("Hello")
    engine.refuse = refuse
    schema = {"type": "object", "properties": {"ids": {"type": "array", "uniqueItems": True}}}
    places = {
        "tools[0].function.parameters": strict(schema),
        "response_format.json_schema.schema": json_schema(schema),
    }
    for place, body in places.items():
        error = error_of(await ask(engine, **body))
        assert error["param"] == f"{place}.properties.ids.uniqueItems"
        assert error["code"] == "invalid_json_schema"
        assert "uniqueItems is not implemented" in error["message"]
    assert (await ask(engine, **tool(parameters=schema))).status_code == 200  # it is not enforced, so it may stand


async def test_an_unknown_model() -> None:
    response = await ask(engine_saying("Hello"), model="gpt-9")
    assert response.status_code == 404
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "gpt-9" in error["message"]


async def test_required_fields_are_named() -> None:
    async with client_of(engine_saying("Hello")) as client:
        response = await client.post(PATH, json={"model": "fake"})
    assert response.status_code == 422
    assert error_of(response) == {
        "message": "Missing required parameter: 'messages'.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "missing_required_parameter",
    }


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b'{"messages": [], "temperature": NaN}', 400, "invalid_json"),
        (b'{"model": "\xff"}', 400, "invalid_json"),
        (b'{"model": "\\ud800"}', 400, "invalid_json"),
        (b"[]", 422, "invalid_type"),
        (b"null", 422, "invalid_type"),
    ],
)
async def test_what_is_no_json_object(body: bytes, status: int, code: str) -> None:
    async with client_of(engine_saying("Hello")) as client:
        response = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert error_of(response)["code"] == code


async def test_deep_nesting_is_refused_not_fatal() -> None:
    async with client_of(engine_saying("Hello")) as client:
        body = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        response = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    error_of(response)
