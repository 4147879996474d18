"""References inside a JSON Schema: replaced by what they point to, as the prompts and the engine want them.

In: a schema as a client sent it, which may be hostile. Out: the same schema without references, or a SchemaError
that leads to the place. Bounded by MAX_DEPTH (nesting) and MAX_RESOLVED (growth: references can double a schema a
level). Refuses to know the network: a reference out of the schema is never fetched.

Specification: JSON Schema draft 2020-12, RFC 6901 (JSON Pointer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote

MAX_DEPTH: Final = 64  # levels of JSON, about 30 objects inside each other
MAX_RESOLVED: Final = 500_000  # characters, roughly: more than any model can read

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

MAPS: Final = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")  # name -> schema
_DATA = frozenset({"const", "default", "enum", "example", "examples"})  # values: a "$ref" in them is no reference
_NOTES = frozenset({"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"})


class SchemaError(ValueError):
    """A schema that cannot be used. `path` leads from its root to the place, `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{dotted('', path) or 'schema'}: {reason}")
        self.path = path
        self.reason = reason


def dotted(prefix: str, path: Iterable[str | int]) -> str:
    """OpenAI's way to name a place: `tools[3].function.name`. Keys that would be misread are quoted."""
    text = prefix
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w$-]{1,64}", step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(shorten(step, 64), ensure_ascii=False)}]"
    return text


def shorten(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def resolve_refs(schema: Schema) -> Schema:
    """The schema with its local references (`#/...`) replaced by what they point to.

    A recursive schema is unrolled once and then keeps its reference, which stays valid against the result's root
    because `$defs` are kept. Keywords beside a reference count too, as in draft 2020-12. Raises SchemaError for a
    reference that points nowhere, outside the schema or to itself, and when the result is too large or deep.
    """
    return _Resolver(schema).schema(schema, (), frozenset({()}), 0) if survey(schema) else schema


class _Resolver:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._left = MAX_RESOLVED

    def schema(self, value: Any, path: Path, following: frozenset[Path], depth: int) -> Any:
        """`path` is where `value` stands in the source, `following` what the references entered so far point to."""
        if depth > MAX_DEPTH:
            raise SchemaError(path, f"nested more than {MAX_DEPTH} levels when its references are resolved")
        self._spend(path, 8 + len(value) if isinstance(value, str) else 8)
        if isinstance(value, list):
            return [self.schema(item, (*path, i), following, depth + 1) for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        ref = value.get("$ref")
        if not isinstance(ref, str):
            return self._keywords(value, path, following, depth)
        target, place = self._find(ref, (*path, "$ref"))
        if place in following:
            self._spend(path, _weight(value))
            return value
        beside = {key: item for key, item in value.items() if key != "$ref"}
        resolved = self.schema(target, place, following | {place}, depth + 1)
        return _both(resolved, self._keywords(beside, path, following, depth))

    def _keywords(self, schema: Schema, path: Path, following: frozenset[Path], depth: int) -> dict[str, Any]:
        resolved: dict[str, Any] = {}
        for key, value in schema.items():
            self._spend(path, len(key))
            if key in _DATA:
                self._spend(path, _weight(value))
                resolved[key] = value
            elif key in MAPS and isinstance(value, Mapping):
                resolved[key] = {}
                for name, item in value.items():
                    self._spend(path, len(name))
                    resolved[key][name] = self.schema(item, (*path, key, name), following, depth + 2)
            else:
                resolved[key] = self.schema(value, (*path, key), following, depth + 1)
        return resolved

    def _find(self, ref: str, path: Path) -> tuple[Any, Path]:
        """What `ref` points to, and where that stands. A chain of references must end somewhere."""
        found = target, place = self._point(ref, path)
        passed = {place}
        while isinstance(target, Mapping) and isinstance(target.get("$ref"), str):
            target, place = self._point(target["$ref"], (*place, "$ref"))
            if place in passed or len(passed) > MAX_DEPTH:
                raise SchemaError(path, f"'{shorten(ref, 80)}' leads back to itself or through too many references")
            passed.add(place)
        return found

    def _point(self, ref: str, path: Path) -> tuple[Any, Path]:
        self._spend(path, 8 + len(ref))  # as work
        shown = shorten(ref, 80)
        if ref != "#" and not ref.startswith("#/"):
            raise SchemaError(path, f"only references inside the schema ('#/...') are followed, not '{shown}'")
        target: Any = self._root
        place: list[str | int] = []
        for token in unquote(ref[1:]).split("/")[1:]:
            step = token.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and re.fullmatch(r"[0-9]{1,6}", step):
                place.append(int(step))
                target = target[int(step)] if int(step) < len(target) else None
            else:
                place.append(step)
                target = target.get(step) if isinstance(target, Mapping) else None
        if isinstance(target, bool):
            target = {} if target else {"not": {}}
        if not isinstance(target, Mapping):
            raise SchemaError(path, f"'{shown}' points to no schema")
        return target, tuple(place)

    def _spend(self, path: Path, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise SchemaError(path, f"the schema grows beyond {MAX_RESOLVED} characters when references are resolved")


def _both(target: Schema, beside: Schema) -> Schema:
    """One schema that says what both say. Remarks beside a reference are about its use, so they win."""
    clash = [key for key in beside if key in target and key not in _NOTES and target[key] != beside[key]]
    if not clash:
        return {**target, **beside}
    more = beside.get("allOf")
    return {**beside, "allOf": [*more, target] if isinstance(more, list) else [target]}


def survey(schema: Any) -> bool:
    """Whether a reference may be in it. Raises SchemaError when it is too deep, or text in it is not Unicode."""
    found = False
    level = [schema]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):  # most are
                if not value.isascii():
                    _check_unicode(value)
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, Mapping):
                found = found or "$ref" in value
                below.extend(value.keys())
                below.extend(value.values())
        if not below:
            return found
        level = below
    raise SchemaError((), f"nested more than {MAX_DEPTH} levels")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SchemaError((), "holds half of a surrogate pair, which no tokenizer can read") from None


def _weight(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))
