"""Can xgrammar enforce this JSON Schema, and if not, which part of it?

In: a schema, and vLLM's own verdicts on features and nesting. Out: nothing, or a ValueError that names the place.
Refuses to know vLLM, and what the schema is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xgrammar

Verdict = Callable[[Any], bool]

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
        place, part = _innermost("$", schema, lambda inner: unsupported(inner) or _requires_undeclared(inner))
        if part is not None:
            raise ValueError(f"{place}: this cannot be enforced: {_shown(part)}")
        place, part = _innermost("$", schema, _compiles_not)
        if part is not None:
            raise ValueError(f"{place}: this is no usable JSON Schema: {_shown(part)}")
    except RecursionError:
        raise ValueError("$: the schema is nested too deeply") from None


def _requires_undeclared(schema: Any) -> bool:
    """Whether a property is required that is not declared: xgrammar leaves it out of the object."""
    if not isinstance(schema, Mapping):
        return False
    required, declared = schema.get("required"), schema.get("properties") or {}
    if isinstance(required, list) and any(name not in declared for name in required):
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
