"""JSON Schema: shown to models as TypeScript declarations, and checked before an engine enforces it.

In: functions, and schemas as clients sent them, which may be hostile. Out: the namespace block of the functionary
prompts, and refusals that name the place (`tools[3].function.parameters.properties.ids.items.pattern`).
Two degrees of trust: `check_shape` for a schema that is only shown (models have been trained on `"type": "float"`
and `"required": true`, so those stay), `check_schema` for one that is enforced (JSON Schema draft 2020-12).
Refuses to know engines and prompts; `find_refused` is handed the engine's opinion as a function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from functionary_vllm.conversation import Function
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.refs import MAPS, Path, Schema, SchemaError, dotted, shorten, survey

MAX_PROBES: Final = 256  # questions to the engine when it has refused a schema

# --- TypeScript, as functionary v1 to v3.2 were trained to read it -------------------------------------------------

_HEAD = "// Supported function definitions that should be called when necessary.\nnamespace functions {\n\n"
_TAIL = "} // namespace functions"
_INDENT = "    "
_LIMITS = (
    ("maximum", "Maximum"),
    ("minimum", "Minimum"),
    ("maxLength", "Maximum length"),
    ("minLength", "Minimum length"),
)


def typescript(functions: Sequence[Function]) -> str:
    """The namespace block of the prompts. Expects schemas that passed check_shape: it recurses as they do."""
    return "".join((_HEAD, *(function.once(_declaration) for function in functions), _TAIL))


def _declaration(function: Function) -> str:
    lines = [f"// {function.description}"]
    if _properties(function.parameters):
        lines.append(f"type {function.name} = (_: {{")
        _members(function.parameters, 0, lines)
        lines.append("}) => any;\n\n")
    else:
        lines.append(f"type {function.name} = () => any;\n\n")
    return "\n".join(lines)


def typescript_v0(functions: Sequence[Function] | None) -> str:
    """The flat block of July 2023: no nesting, no remarks but the description. None shows nothing at all."""
    if functions is None:
        return ""
    parts = [_HEAD]
    for function in functions:
        parts.append(f"// {function.description}\ntype {function.name} = ")
        # The seed told `"parameters": {}` from none, so the definition is asked.
        if function.definition.get("parameters") is None:
            parts.append("() => any;\n\n")
            continue
        parts.append("(_: {\n")
        optional = _optional(function.parameters)
        for name, schema in _properties(function.parameters).items():
            if schema.get("description") is not None:
                parts.append(f"// {schema['description']}\n")
            kind = " | ".join(f'"{value}"' for value in _options(schema)) or _type(schema) or "any"
            parts.append(f"{name}{'?' if optional(name) else ''}: {kind},\n")
        parts.append("}) => any;\n\n")
    return "".join(parts) + _TAIL


def _properties(schema: Schema) -> dict[str, Schema]:
    """The parameters that can be shown. `true` is the schema of anything; other values are slips of the client."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    shown = {name: {} if value is True else value for name, value in properties.items()}
    return {name: value for name, value in shown.items() if isinstance(value, Mapping)}


def _optional(schema: Schema) -> Callable[[str], bool]:
    required = schema.get("required", [])
    if not isinstance(required, (list, str)):  # `"required": true` makes all required
        return lambda name: False
    names = {required} if isinstance(required, str) else {name for name in required if isinstance(name, str)}
    return lambda name: name not in names


def _members(schema: Schema, depth: int, lines: list[str]) -> None:
    indent = _INDENT * depth
    optional = _optional(schema)
    for name, member in _properties(schema).items():
        kind = _type(member)
        items = member.get("items")
        typed_items = kind == "array" and isinstance(items, Mapping) and "type" in items
        remarks = _remarks(member)
        if remarks:
            lines.append(f"{indent}// {' '.join(remarks)}")
        examples = member.get("examples")
        # The prompts of the checkpoints show examples of scalars only below a remark.
        if isinstance(examples, list) and (remarks or kind == "object" or typed_items):
            lines.append(f"{indent}// Example {name}:")
            lines.extend(f"{indent}// {_example(example)}" for example in examples)
        declaration = f"{indent}{name}{'?' if optional(name) else ''}: "
        if kind == "object":
            lines.append(declaration + "{")
            _members(member, depth + 1, lines)
            lines.append(indent + "},")
        elif kind == "array":
            lines.append(f"{declaration}{_array(member, depth) if typed_items else '[]'},")
        else:
            union = _union(member) or kind or "any"
            lines.append(f"{declaration}{union}{' | null' if member.get('nullable') else ''},")


def _array(schema: Schema, depth: int) -> str:
    items = schema.get("items")
    if not isinstance(items, Mapping):
        return "[]"
    kind = _type(items)
    if kind == "object":
        lines = ["{"]
        _members(items, depth + 1, lines)
        return "\n".join([*lines, _INDENT * depth + "}[]"])
    if kind == "array":
        return _array(items, depth + 1) + "[]"  # one indent more a level, as the checkpoints saw it
    union = _union(items)
    return f"({union})[]" if union else f"{kind}[]"


def _type(schema: Schema) -> str:
    """The type's name in TypeScript; empty when the schema gives none."""
    if "type" in schema:
        return _convert(schema["type"])
    choices = schema.get("oneOf")
    if not isinstance(choices, list):
        return ""
    kinds = [_convert(choice["type"]) for choice in choices if isinstance(choice, Mapping) and "type" in choice]
    return " | ".join(dict.fromkeys(kinds))


def _convert(kind: Any) -> str:
    # The members of a list keep their names ("integer | null"): so did the prompts in training.
    name = " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    return "number" if name in ("integer", "float") else name


def _options(schema: Schema) -> list[Any]:
    options = schema.get("enum")
    return options if isinstance(options, list) else []


def _union(schema: Schema) -> str:
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in _options(schema))


def _remarks(schema: Schema) -> list[str]:
    remarks = []
    description = schema.get("description")
    if description is not None:
        text = str(description)
        remarks.append(text if text.endswith(".") else text + ".")
    if "default" in schema:
        default = schema["default"]
        remarks.append(f'Default="{default}".' if schema.get("type") == "string" else f"Default={default}.")
    formats = _formats(schema)
    if formats:
        remarks.append("Format=" + " or ".join(map(str, formats)))
    remarks.extend(f"{label}={schema[key]}" for key, label in _LIMITS if schema.get(key) is not None)
    return remarks


def _formats(schema: Schema) -> list[Any]:
    if "format" in schema:
        return [schema["format"]]
    choices = schema.get("oneOf")
    if not isinstance(choices, list):
        return []
    return [choice["format"] for choice in choices if isinstance(choice, Mapping) and "format" in choice]


def _example(example: Any) -> str:
    return json.dumps(example, ensure_ascii=False) if isinstance(example, (dict, list)) else str(example)


# --- Checks -----------------------------------------------------------------------------------------------------


def check_shape(schema: Any, path: str) -> None:
    """Refuse what cannot even be shown: no object, or too deep. `path` names the schema in the request."""
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"Invalid type for '{path}': expected an object.", param=path, code="invalid_type")
    try:
        survey(schema)
    except SchemaError as error:
        raise refused(path, error) from None


def check_schema(schema: Any, path: str) -> None:
    """Refuse what is no JSON Schema (draft 2020-12). The error's param names the keyword."""
    if not isinstance(schema, bool):
        check_shape(schema, path)
    error = _violation(schema)
    if error is not None:
        raise refused(path, error)


def check_parameters(schema: Any, path: str) -> None:
    """check_schema for the arguments of a function, which are always an object."""
    check_schema(schema, path)
    kind = schema.get("type", "object") if isinstance(schema, Mapping) else None
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        reason = f"schema must be a JSON Schema of 'type: \"object\"', got 'type: {json.dumps(kind)}'"
        raise refused(path, SchemaError(("type",), reason))


def refused(path: str, error: SchemaError) -> InvalidRequest:
    """The client's error for a schema that stands at `path` in the request."""
    place = dotted(path, error.path)
    return InvalidRequest(
        f"Invalid schema at '{place}': {error.reason}.", param=place, code="invalid_function_parameters"
    )


def _violation(schema: Any) -> SchemaError | None:
    """The rules of the meta-schema, without its generality: that takes a hundred times as long, or for ever."""
    waiting: list[tuple[Any, Path]] = [(schema, ())]
    while waiting:
        part, path = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            return SchemaError(path, f"expected a schema, but got {_shown(part)}")
        for key, value in part.items():
            if key not in _RULES:
                continue
            valid, expected = _RULES[key]
            if not valid(value):
                return SchemaError((*path, key), f"expected {expected}, but got {_shown(value)}")
            waiting.extend((item, (*path, *step)) for step, item in _parts(key, value))
    return None


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 80)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == value // 1


def _is_strings(value: Any) -> bool:
    strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return strings and len(set(value)) == len(value)


def _is_type(value: Any) -> bool:
    kinds = {"null", "boolean", "object", "array", "number", "string", "integer"}
    return value in kinds if isinstance(value, str) else _is_strings(value) and bool(value) and kinds.issuperset(value)


def _is_regex(pattern: Any) -> bool:
    """Whether it compiles, once what ECMA-262 writes differently from Python is written in Python's way.

    All characters beyond ASCII become one, because re spends milliseconds on each class that holds others.
    """
    if not isinstance(pattern, str) or len(pattern) > _MAX_PATTERN:
        return False
    with suppress(re.error, OverflowError, RecursionError):
        re.compile(_FOREIGN.sub(_python_regex, pattern))
        return True
    return False


def _python_regex(match: re.Match[str]) -> str:
    text = match[0]
    if text == "(?<":
        return "(?P<"
    if match["code"]:
        return f"\\x{min(int(text.strip('uU{}' + chr(92)), 16), 0x7F):02x}"
    return r"\x7f" if match["other"] else text


_MAX_PATTERN = 10_000
_FOREIGN = re.compile(
    r"(?P<code>\\u\{[0-9a-fA-F]{1,6}\}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8})"
    r"|(?P<other>\\[pP]\{[^{}]*\}|\\c[A-Za-z]|\\k|[^\x00-\x7f])"
    r"|\\.|\(\?<(?=[A-Za-z_$])",
    re.DOTALL,
)

Rule = tuple[Callable[[Any], bool], str]
_ANY_SCHEMA: Rule = (lambda value: True, "a schema")  # checked when it is its turn
_MAP: Rule = (lambda value: isinstance(value, Mapping), "an object")
_SCHEMAS: Rule = (lambda value: isinstance(value, list) and bool(value), "a list of schemas, at least one")
_STRING: Rule = (lambda value: isinstance(value, str), "a string")
_BOOLEAN: Rule = (lambda value: isinstance(value, bool), "true or false")
_NUMBER: Rule = (_is_number, "a number")
_COUNT: Rule = (_is_count, "a whole number that is not negative")
_LIST: Rule = (lambda value: isinstance(value, list), "a list")
_STRINGS: Rule = (_is_strings, "a list of different strings")

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = (
    *("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(MAPS, _MAP),
    **dict.fromkeys(_LISTS, _SCHEMAS),
    **dict.fromkeys(_SINGLES, _ANY_SCHEMA),
    **dict.fromkeys(("$id", "$schema", "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$comment"), _STRING),
    **dict.fromkeys(("title", "description", "format", "contentEncoding", "contentMediaType"), _STRING),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "uniqueItems"), _BOOLEAN),
    **dict.fromkeys(("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"), _NUMBER),
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems"), _COUNT),
    **dict.fromkeys(("maxContains", "minContains", "maxProperties", "minProperties"), _COUNT),
    **dict.fromkeys(("enum", "examples"), _LIST),
    "type": (_is_type, "a type of JSON Schema or a list of different ones"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above zero"),
    "pattern": (_is_regex, "a regular expression"),
    "patternProperties": (
        lambda value: isinstance(value, Mapping) and all(map(_is_regex, value)),
        "an object whose keys are regular expressions",
    ),
    "required": _STRINGS,
    "dependentRequired": (
        lambda value: isinstance(value, Mapping) and all(map(_is_strings, value.values())),
        "an object of lists of different strings",
    ),
}


def find_refused(schema: Schema, path: str, validate: Callable[[Schema], None]) -> str:
    """`path` followed down to the deepest part that `validate` refuses (ValueError) by itself, and its keyword."""
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    left = MAX_PROBES

    def fails(part: Schema) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            return False
        try:
            validate({**definitions, **part} if survey(part) else part)
        except ValueError:
            return True
        return False

    place: Path = ()
    # Parts without references first: another may fail only for what it refers to.
    while step := next((found for found in sorted(_subschemas(schema), key=_refers) if fails(found[1])), None):
        place, schema = (*place, *step[0]), step[1]
    # Without a type most engines check nothing, so that keyword is the last to be blamed.
    for keyword in sorted(schema, key=lambda key: key == "type"):
        if not fails({key: value for key, value in schema.items() if key != keyword}) and left >= 0:
            return dotted(path, (*place, keyword))
    return dotted(path, place)


def _refers(step: tuple[Path, Schema]) -> bool:
    return survey(step[1])


def _subschemas(schema: Schema) -> Iterator[tuple[Path, Schema]]:
    for key in (*MAPS, *_LISTS, *_SINGLES):
        yield from (step for step in _parts(key, schema.get(key)) if isinstance(step[1], Mapping))


def _parts(key: str, value: Any) -> Iterator[tuple[Path, Any]]:
    """The schemas inside a keyword's value, each with the way to it."""
    if key in MAPS and isinstance(value, Mapping):
        yield from (((key, name), item) for name, item in value.items())
    elif key in _LISTS and isinstance(value, list):
        yield from (((key, i), item) for i, item in enumerate(value))
    elif key in _SINGLES:
        yield (key,), value
