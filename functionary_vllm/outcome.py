"""What became of a call: the model's arguments, held against the schema of the function that was offered.

In: the calls of one answer, as they were sent to the client, and the conversation that offered the functions. Out: one
word a call, for the metrics. Nothing is refused or repaired here, and nobody waits for it: it is asked after the last
byte of an answer. A schema is compiled once and kept by its content, bounded in bytes. Both come from outside, so
what a check may cost is bounded before it begins: references are never fetched, patterns are matched in linear time,
and what would take more than about 30 ms is not checked. Refuses to know how a call was written or sent.

JSON Schema draft 2020-12, by jsonschema-rs: 0.4 µs for three arguments, where jsonschema takes 14.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import jsonschema_rs
import orjson

from functionary_vllm.conversation import PYTHON, Conversation, Function
from functionary_vllm.recent import Recent

Outcome = Literal["valid", "invalid_json", "schema_violation", "unknown_tool", "truncated", "unchecked"]
OUTCOMES: Final[tuple[Outcome, ...]] = (
    *("valid", "invalid_json", "schema_violation", "unknown_tool"),
    *("truncated", "unchecked"),  # cut before its end; JSON, but of a schema that cannot be checked
)
Ended = tuple[str, Sequence[str]]  # the function's name, and its arguments in pieces

_LARGEST_SCHEMA = 100_000  # bytes of JSON
_PATTERN_SIZES = (1 << 14, 1 << 20)  # bytes of a compiled one: most, and those like `^.{1,255}$`
_DEAREST = 10**8  # bytes of arguments times bytes of schema
_PATTERN_COSTS = 2000  # as many bytes of schema
_ROOM = 64 << 20

# Compiled schemas by their JSON. False: one that cannot be checked.
_compiled: Recent[bytes, Any] = Recent(_ROOM)


def outcomes(conversation: Conversation, ended: Iterable[Ended], *, raw_code: bool = False) -> list[Outcome]:
    """One for each call that has ended. `raw_code`: the code interpreter's arguments are no JSON."""
    functions = {function.name: function for function in conversation.functions}
    if conversation.code_interpreter and PYTHON not in functions:
        functions[PYTHON] = _INTERPRETER
    return [
        "valid" if raw_code and functions.get(name) is _INTERPRETER else _outcome(functions.get(name), "".join(pieces))
        for name, pieces in ended
    ]


def _outcome(function: Function | None, arguments: str) -> Outcome:
    if function is None:
        return "unknown_tool"
    try:
        value = _loads(arguments)
    except ValueError:
        return "invalid_json"
    except RecursionError:
        return "unchecked"
    if not isinstance(value, dict):
        return "schema_violation"
    key = function.once(_key)
    validator = _validator(key)
    if not validator or len(arguments) * _cost(key) > _DEAREST:
        return "unchecked"
    try:
        return "valid" if validator.is_valid(value) else "schema_violation"
    except (ValueError, RecursionError):  # a value that the validator cannot take
        return "unchecked"


def _loads(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text, parse_constant=_refuse)  # which takes lone surrogates and long numbers, as JSON does


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _key(function: Function) -> bytes:
    try:
        return orjson.dumps(function.parameters)
    except orjson.JSONEncodeError:
        return b"null"  # no schema


def _cost(key: bytes) -> int:
    return len(key) + _PATTERN_COSTS * _patterns(key)


def _patterns(key: bytes) -> int:
    return key.count(b'"pattern')


def _validator(key: bytes) -> Any:
    validator = _compiled.get(key)
    if validator is None:
        validator, size = _compile(key)
        _compiled.put(key, validator, size)
    return validator


def _compile(key: bytes) -> tuple[Any, int]:
    """And its size. False for what is no schema, though models are shown it (`"type": "float"`), and for too much."""
    if len(key) <= _LARGEST_SCHEMA:
        for limit in _PATTERN_SIZES:
            size = 20 * len(key) + _patterns(key) * limit
            if size > _ROOM // 2:
                break
            options = jsonschema_rs.RegexOptions(size_limit=limit, dfa_size_limit=limit)
            try:
                return jsonschema_rs.Draft202012Validator(key.decode(), offline=True, pattern_options=options), size
            except (ValueError, RecursionError):
                continue
    return False, len(key)


_INTERPRETER = Function(
    {
        "name": PYTHON,
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    }
)
