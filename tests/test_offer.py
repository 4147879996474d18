"""Tools and functions of both generations, and the choices among them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functionary_vllm.conversation import AUTO, NONE, REQUIRED, Choice, Function
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.offer import (
    choice_from_legacy,
    choice_from_tools,
    functions_from_legacy,
    functions_from_tools,
    parameter_paths,
)
from tests.test_schema import JSON, SCHEMAS, steady

# What orjson reads out of a request, which knows neither infinities nor numbers beyond 64 bits.
READ = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
INTERPRETER = {"type": "code_interpreter"}


def tool(name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def offered(*names: str) -> tuple[Function, ...]:
    return tuple(Function({"name": name}) for name in names)


def refusal(call: Any, *args: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*args)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400
    return caught.value


# --- Functions ----------------------------------------------------------------------------------------------------


def test_functions_from_tools() -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    tools = [
        {"type": "function", "function": {"parameters": schema, "strict": True, "name": "f", "x-more": 1}},
        INTERPRETER,
        {"type": "function", "function": {"name": "g", "description": None, "parameters": None, "strict": None}},
    ]
    (f, g), interpreter = functions_from_tools(tools)
    assert interpreter
    assert list(f.definition) == ["parameters", "name"]
    assert f.parameters["properties"] == {"x": {"type": "string"}}
    assert f.strict
    assert g.definition == {"name": "g", "description": ""}
    assert not g.strict


def test_functions_from_legacy() -> None:
    definition = {"name": "f", "description": "d", "parameters": {"required": True}}
    assert functions_from_legacy([definition]) == (Function(definition),)


def test_nothing_offered() -> None:
    assert functions_from_tools(None) == functions_from_tools([]) == ((), False)
    assert functions_from_legacy(None) == functions_from_legacy([]) == ()


@pytest.mark.parametrize("name", ["f", "get-it_2", "x" * 64, "python", "All", "functions"])
def test_legal_names(name: str) -> None:
    assert functions_from_tools([tool(name)])[0][0].name == name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "empty_string"),
        ("x" * 65, "string_above_max_length"),
        ("x" * 100_000, "string_above_max_length"),
        ("a.b", "invalid_value"),
        ("a\n", "invalid_value"),
        ("é", "invalid_value"),
        ("<|stop|>", "invalid_value"),
        ("all", "reserved_function_name"),
        (1, "invalid_type"),
        (None, "missing_required_parameter"),
    ],
)
def test_illegal_names(name: Any, code: str) -> None:
    error = refusal(functions_from_tools, [tool("ok"), tool(name)])
    assert (error.param, error.code) == ("tools[1].function.name", code)
    error = refusal(functions_from_legacy, [{"name": name}])
    assert (error.param, error.code) == ("functions[0].name", code)


def test_doubled_names() -> None:
    error = refusal(functions_from_tools, [tool(), tool("g"), tool()])
    assert (error.param, error.code) == ("tools[2].function.name", "duplicate_function_name")
    assert refusal(functions_from_legacy, [{"name": "f"}, {"name": "f"}]).param == "functions[1].name"


@pytest.mark.parametrize("tools", [[tool("python"), INTERPRETER], [INTERPRETER, tool("python")]])
def test_python_belongs_to_the_interpreter(tools: list[Any]) -> None:
    error = refusal(functions_from_tools, tools)
    assert error.param == f"tools[{tools.index(tool('python'))}].function.name"
    assert error.code == "reserved_function_name"


BAD_REF = {"properties": {"x": {"items": {"$ref": "other.json"}}}}


@pytest.mark.parametrize(
    ("bad", "param", "code"),
    [
        ("f", "tools[0]", "invalid_type"),
        ({}, "tools[0].type", "missing_required_parameter"),
        ({"type": "retrieval"}, "tools[0].type", "invalid_value"),
        ({"type": ["function"]}, "tools[0].type", "invalid_value"),
        ({"type": "function", "name": "f"}, "tools[0].function", "missing_required_parameter"),
        ({"type": "function", "function": []}, "tools[0].function", "invalid_type"),
        (tool(description=1), "tools[0].function.description", "invalid_type"),
        (tool(strict="yes"), "tools[0].function.strict", "invalid_type"),
        (tool(parameters="{}"), "tools[0].function.parameters", "invalid_type"),
        (
            tool(parameters=BAD_REF),
            "tools[0].function.parameters.properties.x.items.$ref",
            "invalid_function_parameters",
        ),
    ],
)
def test_refused_tools(bad: Any, param: str, code: str) -> None:
    error = refusal(functions_from_tools, [bad])
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize("tools", ["f", {"type": "function"}, 1])
def test_tools_must_be_an_array(tools: Any) -> None:
    assert refusal(functions_from_tools, tools).param == "tools"
    assert refusal(functions_from_legacy, tools).param == "functions"


def test_how_many() -> None:
    tools = [tool(f"f{i}") for i in range(129)]
    assert len(functions_from_tools(tools[:128])[0]) == 128
    error = refusal(functions_from_tools, tools)
    assert (error.param, error.code) == ("tools", "array_above_max_length")
    assert refusal(functions_from_tools, tools[:3], 2).param == "tools"
    assert refusal(functions_from_legacy, [t["function"] for t in tools]).param == "functions"


def test_parameter_paths() -> None:
    tools = [INTERPRETER, tool("f"), {**INTERPRETER, "function": 1}, tool("g")]
    functions_from_tools(tools)
    assert parameter_paths(tools) == {"f": "tools[1].function.parameters", "g": "tools[3].function.parameters"}
    assert parameter_paths(functions=[{"name": "f"}]) == {"f": "functions[0].parameters"}


# --- Functions that were accepted before ---------------------------------------------------------------------------


@given(st.lists(st.fixed_dictionaries({"default": READ, "const": READ, "description": READ}), min_size=2, max_size=4))
def test_a_function_is_read_as_if_for_the_first_time(schemas: list[dict[str, Any]]) -> None:
    """Near relations of one name: other values, types and orders of members are other functions."""
    schemas += [dict(reversed(schema.items())) for schema in schemas]
    for schema in schemas * 2:
        definition = {"name": "near", "parameters": {"type": "object", "properties": {"x": schema}}}
        (function,), _ = functions_from_tools([{"type": "function", "function": definition}])
        assert json.dumps(function.definition) == json.dumps(definition)  # 1, 1.0 and true are told apart


def test_an_accepted_function_is_given_again() -> None:
    first, second = (functions_from_tools([tool("f", parameters={"type": "object"})])[0][0] for _ in range(2))
    assert first is second
    assert functions_from_legacy([{"name": "f", "parameters": {"type": "object"}}])[0] is first
    assert functions_from_tools([tool("f", parameters={"type": "object"}, strict=True)])[0][0].strict
    assert refusal(functions_from_tools, [tool("f"), tool("f")]).param == "tools[1].function.name"


# --- Choices ------------------------------------------------------------------------------------------------------

NAMED_F = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("tool_choice", "choice"),
    [
        (None, AUTO),
        ("auto", AUTO),
        ("none", NONE),
        ("required", REQUIRED),
        (NAMED_F, Choice("named", "f")),
        (INTERPRETER, Choice("named", "python")),
        ({"type": "function", "function": {"name": "python"}}, Choice("named", "python")),
    ],
)
def test_tool_choice(tool_choice: Any, choice: Choice) -> None:
    functions = offered("f", "g")
    assert choice_from_tools(tool_choice, functions, True) == (choice, functions, True)


def test_the_interpreter_alone_is_an_offer() -> None:
    assert choice_from_tools(None, (), True) == (AUTO, (), True)
    assert choice_from_tools("required", (), True) == (REQUIRED, (), True)


def test_no_offer_no_choice() -> None:
    assert choice_from_tools(None, ()) == (NONE, (), False)
    assert choice_from_legacy(None, ()) == NONE
    for choice in ("none", "auto", "required", NAMED_F):
        error = refusal(choice_from_tools, choice, ())
        assert error.message == (
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        )
        assert error.param == "tool_choice"
    for function_call in ("none", "auto", {"name": "f"}):
        error = refusal(choice_from_legacy, function_call, ())
        assert error.message == (
            "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified."
        )
        assert error.param == "function_call"


def allowed(mode: Any, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def test_allowed_tools() -> None:
    functions = offered("f", "g")
    f, g = functions
    assert choice_from_tools(allowed("auto", NAMED_F), functions, True) == (AUTO, (f,), False)
    assert choice_from_tools(allowed("required", INTERPRETER), functions, True) == (REQUIRED, (), True)
    both = allowed("required", {"type": "function", "function": {"name": "g"}}, NAMED_F, NAMED_F)
    assert choice_from_tools(both, functions) == (REQUIRED, (f, g), False)


@pytest.mark.parametrize(
    ("tool_choice", "param"),
    [
        ("any", "tool_choice"),
        (1, "tool_choice"),
        ([], "tool_choice"),
        ({}, "tool_choice.type"),
        ({"type": "custom"}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": {}}, "tool_choice.function.name"),
        ({"type": "function", "function": {"name": "g"}}, "tool_choice"),
        ({"type": "function", "function": {"name": ["f"]}}, "tool_choice"),
        (INTERPRETER, "tool_choice"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        (allowed(None, NAMED_F), "tool_choice.allowed_tools.mode"),
        (allowed("none", NAMED_F), "tool_choice.allowed_tools.mode"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("auto", NAMED_F, INTERPRETER), "tool_choice.allowed_tools.tools[1]"),
        (allowed("auto", allowed("auto", NAMED_F)), "tool_choice.allowed_tools.tools[0].type"),
    ],
)
def test_refused_tool_choice(tool_choice: Any, param: str) -> None:
    assert refusal(choice_from_tools, tool_choice, offered("f")).param == param


def test_refused_texts() -> None:
    functions = offered("f")
    assert refusal(choice_from_tools, "requiredd", functions).message == (
        "Invalid value: 'requiredd'. Supported values are: 'none', 'auto', and 'required'."
    )
    assert refusal(choice_from_legacy, "required", functions).message == (
        "Invalid value: 'required'. Supported values are: 'none' and 'auto'."
    )
    assert "no function named 'g'" in refusal(choice_from_legacy, {"name": "g"}, functions).message
    assert refusal(choice_from_legacy, {"name": "g"}, functions).param == "function_call"


@pytest.mark.parametrize(
    ("function_call", "choice"), [(None, AUTO), ("auto", AUTO), ("none", NONE), ({"name": "f"}, Choice("named", "f"))]
)
def test_function_call(function_call: Any, choice: Choice) -> None:
    assert choice_from_legacy(function_call, offered("f")) == choice


@pytest.mark.parametrize("function_call", [1, [], {}, {"name": 1}, {"name": ["f"]}, "all"])
def test_refused_function_call(function_call: Any) -> None:
    assert str(refusal(choice_from_legacy, function_call, offered("f")).param).startswith("function_call")


# --- Properties ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["f", "g", "python", "all"])
DEFINITION = st.fixed_dictionaries(
    {}, optional={"name": NAMES | JSON, "description": JSON, "parameters": SCHEMAS | JSON, "strict": JSON}
)
TOOL = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["function"]) | JSON, "function": DEFINITION | JSON})
CHOICE = JSON | st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "code_interpreter", "allowed_tools"])},
    optional={
        "function": DEFINITION,
        "allowed_tools": JSON | st.fixed_dictionaries({"mode": JSON, "tools": st.lists(TOOL)}),
    },
)


@steady
@given(st.lists(TOOL | st.just(INTERPRETER), max_size=4) | JSON, CHOICE)
def test_total(tools: Any, tool_choice: Any) -> None:
    try:
        functions, interpreter = functions_from_tools(tools)
        choice, left, _ = choice_from_tools(tool_choice, functions, interpreter)
    except InvalidRequest:
        return
    assert set(parameter_paths(tools)) == {function.name for function in functions}
    assert set(map(id, left)) <= set(map(id, functions))
    assert (choice.mode == "named") == (choice.name is not None)


@steady
@given(st.lists(DEFINITION, max_size=4) | JSON, JSON | DEFINITION)
def test_total_legacy(functions: Any, function_call: Any) -> None:
    try:
        choice = choice_from_legacy(function_call, functions_from_legacy(functions))
    except InvalidRequest:
        return
    assert (choice.mode == "named") == (choice.name is not None)
