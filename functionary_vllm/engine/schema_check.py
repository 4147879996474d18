"""Can xgrammar enforce this JSON Schema, and if not, which part of it?

In: a schema, and vLLM's own verdicts on features and nesting. Out: nothing, or a ValueError that names the place.
Refuses to know vLLM, and what the schema is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xgrammar

Verdict = Callable[[Any], bool]

# xgrammar's time and memory grow with size times depth, with the square of one object's optional properties, and with
# what counted repetitions in patterns amount to: what is allowed here takes it a few seconds at most. It does not
# compile a repetition above 128 (0.2.8).
_DEAREST = 2_000_000  # characters of JSON times levels
_MOST_OPTIONAL = 500
_MOST_REPEATED = 128
_LONGEST_PATTERN = 10_000
_MOST_REPETITIONS = 2_000  # in a whole schema; those inside of others multiply
_PATTERN_PARTS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(\d*)(?:,(\d*))?\}|.", re.DOTALL)

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTED = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})


def check_schema(
    schema: Mapping[str, Any] | bool, unsupported: Verdict, check_nesting: Callable[[Any], None] | None = None
) -> None:
    """Raise ValueError when the schema cannot be enforced. `unsupported` is true of one that is ignored in part."""
    if schema is True:
        return
    if schema is False:
        raise ValueError("$: the schema false allows no value")
    try:
        if check_nesting is not None:
            check_nesting(schema)
        _check_cost(schema)
        place, part = _innermost("$", schema, lambda inner: unsupported(inner) or _requires_undeclared(inner))
        if part is not None:
            raise ValueError(f"{place}: this cannot be enforced: {_shown(part)}")
        place, part = _innermost("$", schema, _compiles_not)
        if part is not None:
            raise ValueError(f"{place}: this is no usable JSON Schema: {_shown(part)}")
    except RecursionError:
        raise ValueError("$: the schema is nested too deeply") from None


def _check_cost(schema: Any) -> None:
    deepest = optional = repetitions = 0
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        part, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(part, Mapping):
            properties, required = part.get("properties"), part.get("required")
            if isinstance(properties, Mapping):
                needed = len(set(map(str, required)) & properties.keys()) if isinstance(required, list) else 0
                optional = max(optional, len(properties) - needed)
            repetitions += sum(map(_repetitions, _patterns(part)))
            waiting += ((value, depth + 1) for value in part.values() if isinstance(value, dict | list))
        else:
            waiting += ((value, depth + 1) for value in part if isinstance(value, dict | list))
    if deepest * len(json.dumps(schema)) > _DEAREST:
        raise ValueError(f"$: the schema is too large for its {deepest} levels of nesting")
    if optional > _MOST_OPTIONAL:
        raise ValueError(f"$: an object has {optional} properties that are not required; {_MOST_OPTIONAL} may be")
    if repetitions > _MOST_REPETITIONS:
        raise ValueError(f"$: the repetitions in patterns amount to {repetitions}; {_MOST_REPETITIONS} may be")


def _patterns(schema: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(pattern := schema.get("pattern"), str):
        yield pattern
    if isinstance(named := schema.get("patternProperties"), Mapping):
        yield from map(str, named)


def _repetitions(pattern: str) -> int:
    """What its counted repetitions amount to when they are written out. Raises ValueError for what is refused."""
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"$: a pattern has more than {_LONGEST_PATTERN} characters")
    groups = [0]
    last = 1  # what the part before a repetition amounts to
    for part in _PATTERN_PARTS.finditer(pattern):
        counts = [count for count in part.groups() if count]
        if counts:
            if any(len(count) > 3 or int(count) > _MOST_REPEATED for count in counts):
                raise ValueError(f"$: a pattern repeats a part more than {_MOST_REPEATED} times")
            last *= max(map(int, counts))
            groups[-1] += last
        elif part[0] == "(":
            groups.append(0)
        elif part[0] == ")" and len(groups) > 1:
            inner = groups.pop()
            groups[-1] += inner
            last = max(1, inner)
        else:
            last = 1
    return groups[0]


def _requires_undeclared(schema: Any) -> bool:
    """Whether a property is required that is not declared: xgrammar leaves it out of the object."""
    if not isinstance(schema, Mapping):
        return False
    required, declared = schema.get("required"), schema.get("properties")
    names = declared.keys() if isinstance(declared, Mapping) else ()
    if isinstance(required, list) and any(isinstance(name, str) and name not in names for name in required):
        return True
    return any(_requires_undeclared(inner) for _, inner in _parts("", schema))


def _compiles_not(schema: Any) -> bool:
    try:
        xgrammar.Grammar.from_json_schema(json.dumps(schema))
    except (RuntimeError, ValueError, TypeError):
        return True
    return False


def _innermost(place: str, schema: Any, fails: Verdict) -> tuple[str, Any]:
    """The smallest part of `schema` that fails by itself, and its JSON path; the part is None when nothing does."""
    if not fails(schema):
        return place, None
    for inner_place, inner in _parts(place, schema):
        found, part = _innermost(inner_place, inner, fails)
        if part is not None:
            return found, part
    return place, schema


def _parts(place: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Subschemas that mean something by themselves: one with a reference needs the definitions around it."""
    for keyword, value in schema.items():
        if keyword in _LISTED and isinstance(value, list):
            found = [(f"{place}.{keyword}[{index}]", inner) for index, inner in enumerate(value)]
        elif keyword in _NAMED and isinstance(value, Mapping):
            found = [(f"{place}.{keyword}.{name}", inner) for name, inner in value.items()]
        elif keyword in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
            found = [(f"{place}.{keyword}", value)]
        else:
            found = []
        for inner_place, inner in found:
            if isinstance(inner, Mapping) and '"$ref"' not in json.dumps(inner):
                yield inner_place, inner


def _shown(schema: Any) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."
