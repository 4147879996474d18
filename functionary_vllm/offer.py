"""What the model is offered and what it may do: OpenAI's tools and functions, tool_choice and function_call.

In: the request's own dicts, of either generation, as orjson reads them. Out: Functions ready to render (known keys
only, references resolved, names sure to be readable in every format) and a Choice. Refused with the place in the
request (InvalidRequest): illegal, reserved or doubled names, unknown types, schemas that cannot be shown, choices of
what is not offered. A schema that will be enforced is checked further with `schema.check_parameters`, for which
`parameter_paths` gives the place. Refuses to know formats and engines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from functionary_vllm.conversation import AUTO, NONE, PYTHON, REQUIRED, Choice, Function, unicode_text
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.recent import Recent
from functionary_vllm.refs import SchemaError, resolve_refs, shorten
from functionary_vllm.schema import check_shape, refused

MAX_TOOLS: Final = 128  # OpenAI's own limit
MAX_NAME: Final = 64
ALL: Final = "all"  # the recipient of plain text in functionary v2 and v3

Offered = tuple[tuple[Function, ...], bool]

# Functions that were accepted, by their JSON: one to two kilobytes each, and ten times that as objects and texts.
_accepted: Recent[bytes, Function] = Recent(4 << 20)


def functions_from_tools(tools: Sequence[Any] | None, max_tools: int = MAX_TOOLS) -> Offered:
    """The functions among the tools, and whether the code interpreter is one of them."""
    functions: list[Function] = []
    interpreter = False
    taken: dict[str, str] = {}
    for i, tool in enumerate(_array(tools, "tools", max_tools)):
        path = f"tools[{i}]"
        kind = _member(tool, "type", path)
        if kind == "code_interpreter":
            interpreter = True
        elif kind == "function":
            functions.append(_function(_member(tool, "function", path), f"{path}.function", taken))
        else:
            raise _unsupported(kind, f"{path}.type", "'function' and 'code_interpreter'")
    if interpreter and PYTHON in taken:
        path = taken[PYTHON]
        reason = f"Invalid '{path}': '{PYTHON}' is the name of the code interpreter, which is offered too."
        raise InvalidRequest(reason, param=path, code="reserved_function_name")
    return tuple(functions), interpreter


def functions_from_legacy(functions: Sequence[Any] | None, max_functions: int = MAX_TOOLS) -> tuple[Function, ...]:
    taken: dict[str, str] = {}
    listed = _array(functions, "functions", max_functions)
    return tuple(_function(function, f"functions[{i}]", taken) for i, function in enumerate(listed))


def parameter_paths(tools: Sequence[Any] | None = None, functions: Sequence[Any] | None = None) -> dict[str, str]:
    """Name of a function -> where its parameters stand in the request. For tools and functions that were accepted."""
    paths = {}
    for i, tool in enumerate(tools or ()):
        if tool["type"] == "function":
            paths[tool["function"]["name"]] = f"tools[{i}].function.parameters"
    for i, function in enumerate(functions or ()):
        paths[function["name"]] = f"functions[{i}].parameters"
    return paths


def choice_from_tools(
    tool_choice: Any, functions: tuple[Function, ...], code_interpreter: bool = False
) -> tuple[Choice, tuple[Function, ...], bool]:
    """The choice, and what is left of the offer: `allowed_tools` makes it smaller."""
    offered = bool(functions or code_interpreter)
    if tool_choice is None:
        return AUTO if offered else NONE, functions, code_interpreter
    modes = {"none": NONE, "auto": AUTO, "required": REQUIRED}
    if isinstance(tool_choice, str) and tool_choice not in modes:
        raise _unsupported(tool_choice, "tool_choice", "'none', 'auto', and 'required'")
    if not offered:
        raise _invalid_choice("tool_choice", "'tool_choice' is only allowed when 'tools' are specified.")
    if isinstance(tool_choice, str):
        return modes[tool_choice], functions, code_interpreter
    kind = _member(tool_choice, "type", "tool_choice")
    names = [function.name for function in functions] + ([PYTHON] if code_interpreter else [])
    if kind == "allowed_tools":
        choice, allowed = _allowed(tool_choice, names)
        return choice, tuple(f for f in functions if f.name in allowed), code_interpreter and PYTHON in allowed
    return Choice("named", _named(tool_choice, "tool_choice", names)), functions, code_interpreter


def choice_from_legacy(function_call: Any, functions: tuple[Function, ...]) -> Choice:
    if function_call is None:
        return AUTO if functions else NONE
    if isinstance(function_call, str) and function_call not in ("none", "auto"):
        raise _unsupported(function_call, "function_call", "'none' and 'auto'")
    if not functions:
        raise _invalid_choice("function_call", "'function_call' is only allowed when 'functions' are specified.")
    if isinstance(function_call, str):
        return NONE if function_call == "none" else AUTO
    name = _member(function_call, "name", "function_call")
    if not any(function.name == name for function in functions):
        raise _unknown(name, "function_call", "functions")
    return Choice("named", name)


# --- Functions ---------------------------------------------------------------------------------------------------


def _function(definition: Any, path: str, taken: dict[str, str]) -> Function:
    name = _member(definition, "name", path)
    _check_name(name, f"{path}.name", taken)
    taken[name] = f"{path}.name"
    key = _json(definition)
    known = None if key is None else _accepted.get(key)
    if known is not None:
        return known
    function = _read(definition, path)
    if key is not None:
        _accepted.put(key, function, 2 * len(key))
    return function


def _json(definition: Any) -> bytes | None:
    """JSON that no other definition has, its members' order included; None for what did not come as JSON."""
    try:
        return orjson.dumps(definition)
    except TypeError:
        return None


def _read(definition: Mapping[str, Any], path: str) -> Function:
    strict = definition.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise _wrong_type(f"{path}.strict", "a boolean")
    kept: dict[str, Any] = {}
    for key, value in definition.items():  # in the client's order: prompts show it
        if key == "name":
            kept[key] = value
        elif key == "description":
            if value is not None and not isinstance(value, str):
                raise _wrong_type(f"{path}.description", "a string")
            kept[key] = unicode_text(value or "")
        elif key == "parameters" and value is not None:
            kept[key] = _parameters(value, f"{path}.parameters")
    return Function(kept, strict=bool(strict))


def _check_name(name: Any, path: str, taken: dict[str, str]) -> None:
    def invalid(reason: str, code: str) -> InvalidRequest:
        return InvalidRequest(f"Invalid '{path}': {reason}", param=path, code=code)

    if not isinstance(name, str):
        raise _wrong_type(path, "a string")
    if not name:
        raise invalid("empty string.", "empty_string")
    if len(name) > MAX_NAME:
        reason = f"string too long. Expected a string with maximum length {MAX_NAME}, but got one of {len(name)}."
        raise invalid(reason, "string_above_max_length")
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", name):
        raise invalid("the name must match the pattern '^[a-zA-Z0-9_-]+$'.", "invalid_value")
    if name == ALL:
        raise invalid(f"'{ALL}' is reserved: the model addresses its plain text to it.", "reserved_function_name")
    if name in taken:
        raise invalid(f"there is another function named '{name}'.", "duplicate_function_name")


def _parameters(value: Any, path: str) -> Mapping[str, Any]:
    check_shape(value, path)
    try:
        return resolve_refs(value)
    except SchemaError as error:
        raise refused(path, error) from None


# --- Choices -----------------------------------------------------------------------------------------------------


def _named(value: Any, path: str, names: Sequence[str]) -> str:
    """The name that `{"type": "function", "function": {"name": ...}}` or `{"type": "code_interpreter"}` means."""
    kind = _member(value, "type", path)
    if kind == "code_interpreter":
        name: Any = PYTHON
    elif kind == "function":
        name = _member(_member(value, "function", path), "name", f"{path}.function")
    else:
        raise _unsupported(kind, f"{path}.type", "'function', 'allowed_tools', and 'code_interpreter'")
    if not isinstance(name, str) or name not in names:
        raise _unknown(name, path, "tools")
    return name


def _allowed(tool_choice: Mapping[str, Any], names: Sequence[str]) -> tuple[Choice, frozenset[str]]:
    path = "tool_choice.allowed_tools"
    allowed = _member(tool_choice, "allowed_tools", "tool_choice")
    mode = _member(allowed, "mode", path)
    if mode not in ("auto", "required"):
        raise _unsupported(mode, f"{path}.mode", "'auto' and 'required'")
    listed = _array(_member(allowed, "tools", path), f"{path}.tools", MAX_TOOLS)
    if not listed:
        raise InvalidRequest(f"Invalid '{path}.tools': empty array.", param=f"{path}.tools", code="empty_array")
    chosen = frozenset(_named(tool, f"{path}.tools[{i}]", names) for i, tool in enumerate(listed))
    return (REQUIRED if mode == "required" else AUTO), chosen


# --- Values of the wrong kind ------------------------------------------------------------------------------------


def _array(value: Any, path: str, limit: int) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(path, "an array")
    if len(value) > limit:
        reason = f"Invalid '{path}': array too long. Expected at most {limit} items, but got {len(value)}."
        raise InvalidRequest(reason, param=path, code="array_above_max_length")
    return value


def _member(value: Any, key: str, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong_type(path, "an object")
    if value.get(key) is None:
        place = f"{path}.{key}"
        raise InvalidRequest(f"Missing required parameter: '{place}'.", param=place, code="missing_required_parameter")
    return value[key]


def _wrong_type(path: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{path}': expected {expected}.", param=path, code="invalid_type")


def _unsupported(value: Any, path: str, supported: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value: '{_shown(value)}'. Supported values are: {supported}.", param=path)


def _invalid_choice(path: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{path}': {reason}", param=path)


def _unknown(name: Any, path: str, where: str) -> InvalidRequest:
    return _invalid_choice(path, f"no function named '{_shown(name)}' was specified in the '{where}' parameter.")


def _shown(value: Any) -> str:
    return unicode_text(shorten(value, 80)) if isinstance(value, str) else type(value).__name__
