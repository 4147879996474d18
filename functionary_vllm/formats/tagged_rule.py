"""Arguments as tags around values: the engine's rule for them, as exact as their reader.

In: a function's schema, and how a family writes a member. Out: its members in the schema's order, the optional ones
left out at will; or the place of what cannot be held (`Unenforceable`). xgrammar's own styles let a model put white
space around a value, which readers rightly take for a part of a string, so they serve only where any object will do.
A string stands raw, so it may not hold what would end it; where no markup says that a value is a string, it may not
look like another type that its schema allows. Refuses to know any family's markup.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import orjson

from functionary_vllm.conversation import Function
from functionary_vllm.formats import constraint as rule
from functionary_vllm.formats.base import Format
from functionary_vllm.formats.constraint import Element
from functionary_vllm.formats.reading.envelope import NAME_LIMIT
from functionary_vllm.formats.reading.notation import REFUSED, Unenforceable, enumerated
from functionary_vllm.formats.reading.values import json_types, scalar
from functionary_vllm.recent import Recent

_KINDS = ("string", "number", "boolean", "null", "array", "object")
_IMPLIED = {"properties": "object", "items": "array"}  # a type that is not said, as readers take it
_EITHER = ("anyOf", "oneOf")
# Shorter than the longest that readers hold, xgrammar knows no end of them.
_INTEGER = r"-?(0|[1-9][0-9]{0,29})"
_NUMBERS = {"integer": _INTEGER, "number": _INTEGER + r"(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?"}
# What no reader takes for JSON from its first character on, nor for a tag.
_WORDS = r'[^\s{\[<"][^<]*'
_KEY = re.compile(r'[^<>"\x00-\x1f]+')
_ATOM = re.compile(r"\[\^?(?:\\.|[^\]\\])*\]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\.|\(\?:?|.", re.DOTALL)
_NARROWER = {".": r"[^\r\n<]", r"\S": r"[^\s<]", r"\D": r"[^\d<]", r"\W": r"[^\w<]"}


class TaggedArguments(Format):
    """A format whose calls hold a member for each argument: `member_open`, the value, `member_close`."""

    style: ClassVar[str]  # what xgrammar calls it
    member_close: ClassVar[str]
    value_ends: ClassVar[tuple[str, ...]]  # no string may hold one, all tokens or all text; the first character is `<`
    says_type: ClassVar[bool] = False  # whether the markup says which values are strings
    no_members: ClassVar[str] = ""  # what stands in a call without any

    @abstractmethod
    def member_open(self, key: str, kind: str) -> str:
        """What stands before a value of this JSON type."""

    def unenforceable(self, function: Function) -> str | None:
        try:
            self._members(function.parameters)
        except Unenforceable as error:
            return str(error)
        return None

    def arguments_rule(self, function: Function, *, exact: bool) -> Element:
        """The rule in the family's own words; any object where it cannot hold the schema."""
        if exact and function.parameters:
            with suppress(Unenforceable):
                return self._members(function.parameters)
        return {**rule.arguments(function, exact=False), "style": self.style}

    @cached_property
    def _rules(self) -> Recent[bytes, Element | str]:
        """The rules made lately by the JSON of their schemas, or why there is none."""
        return Recent(2 << 20)

    def _members(self, schema: Mapping[str, Any]) -> Element:
        key = orjson.dumps(schema)
        found = self._rules.get(key)
        if found is None:
            try:
                found = self._made(schema)
            except Unenforceable as error:
                found = str(error)
            self._rules.put(key, found, 2 * len(key))
        if isinstance(found, str):
            raise Unenforceable(found)
        return found

    def _made(self, schema: Mapping[str, Any]) -> Element:
        if refused := sorted((REFUSED | {*_EITHER, "const", "enum"}) & schema.keys()):
            raise Unenforceable(f"$: '{refused[0]}'")
        if "object" not in (json_types(schema) or {"object"}):
            raise Unenforceable("$: arguments are an object")
        properties, required = schema.get("properties") or {}, set(schema.get("required") or ())
        if required - properties.keys():
            raise Unenforceable(f"$.required: {min(required - properties.keys())!r} is not declared")
        members = []
        for key, declared in properties.items():
            member = self._member(key, declared, f"$.properties.{key}")
            members.append(member if key in required else rule.optional(member))
        nothing = [rule.constant(self.no_members)] if self.no_members or not members else []
        if not members:
            return nothing[0]
        return rule.sequence(*members) if required else rule.either(*nothing, rule.sequence(*members))

    def _member(self, key: str, schema: Any, place: str) -> Element:
        if not _KEY.fullmatch(key) or len(key) >= NAME_LIMIT:
            raise Unenforceable(f"{place}: the name cannot be written")
        values = list(_values(schema, place))
        if not self.says_type:
            values = _told_apart(values, json_types(schema), place)
        written: dict[str, list[Element]] = {}
        for value in values:
            written.setdefault(self.member_open(key, value.kind), []).append(self._value(value, place))
        members = (
            rule.sequence(*self._literal(before), rule.either(*elements), *self._literal(self.member_close))
            for before, elements in written.items()
        )
        return rule.either(*members)

    def _value(self, value: _Value, place: str) -> Element:
        if value.text is not None and any(end in value.text for end in self.value_ends):
            raise Unenforceable(f"{place}: a value that holds markup")
        if value.element is not None:
            return value.element
        return self.any_string()

    def any_string(self) -> Element:
        """A string that holds nothing of what would end it."""
        ids = self.alphabet.ids
        if all(end in ids for end in self.value_ends):
            ends = dict.fromkeys((*(ids[end] for end in self.value_ends), *self.stop_token_ids))
            return {"type": "any_tokens", "exclude_tokens": list(ends)}
        return {**rule.ANY_TEXT, "excludes": list(self.value_ends)}


class _Value(NamedTuple):
    """One form that a member's value may have; without an element, any text. `text` is that of a string it has to be,
    `free` are all values of its type."""

    kind: str
    element: Element | None = None
    text: str | None = None
    free: bool = False


def _values(schema: Any, place: str) -> Iterable[_Value]:
    """All forms of values that the schema allows."""
    if not isinstance(schema, Mapping | bool) or schema is False:
        raise Unenforceable(f"{place}: no value is allowed")
    schema = {} if schema is True else schema
    refused = REFUSED & schema.keys()
    named, kinds = "const" in schema or "enum" in schema, _kinds(schema)
    if (named and refused) or (refused and not kinds):
        raise Unenforceable(f"{place}: '{min(refused)}'")
    if named:
        yield from map(_named, enumerated(schema, place))
    elif kinds and "string" not in kinds:
        yield from (_as_json(kind, schema) for kind in kinds)
    elif words := [word for word in _EITHER if word in schema]:
        if kinds or refused or len(words) > 1:
            raise Unenforceable(f"{place}: '{words[0]}' beside other rules")
        for i, part in enumerate(schema[words[0]]):
            yield from _values(part, f"{place}.{words[0]}[{i}]")
    else:
        yield from (_string(schema, place) if k == "string" else _as_json(k, schema) for k in kinds or _KINDS)
    if schema.get("nullable") is True and "null" not in kinds:
        yield _Value("null", rule.constant("null"), free=True)


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """The types of a schema that says them."""
    said = schema.get("type")
    if said is None:
        return [_IMPLIED[word] for word in _IMPLIED if word in schema][:1]
    return [said] if isinstance(said, str) else list(said)


def _named(value: Any) -> _Value:
    if isinstance(value, str):
        return _Value("string", rule.constant(value) if value else rule.NOTHING, value)
    return _Value(_kind(value), rule.constant(json.dumps(value, ensure_ascii=False)))


def _kind(value: Any) -> str:
    return next(iter(json_types({"const": value})))


def _as_json(kind: str, schema: Mapping[str, Any]) -> _Value:
    if kind == "null":
        return _Value(kind, rule.constant("null"), free=True)
    free = not schema.keys() & (REFUSED | {*_EITHER})
    if free and kind in _NUMBERS:
        return _Value(kind, rule.regex(_NUMBERS[kind]), free=True)
    content = {word: value for word, value in schema.items() if word != "nullable"}
    return _Value(kind, rule.json_value({**content, "type": kind}), free=free)


def _string(schema: Mapping[str, Any], place: str) -> _Value:
    if refused := sorted(REFUSED & schema.keys() - {"pattern"}):
        raise Unenforceable(f"{place}: '{refused[0]}'")
    if "pattern" in schema:
        return _Value("string", rule.regex(_without_markup(schema["pattern"], place)))
    return _Value("string", free=True)


def _told_apart(values: list[_Value], types: frozenset[str], place: str) -> list[_Value]:
    """The forms that a reader, who knows the types only, takes for what they are."""
    kinds = {value.kind for value in values}
    if not types and kinds == {*_KINDS}:  # anything: by its looks
        return [value for value in values if value.kind != "string"] + [_Value("string", rule.regex(_WORDS))]
    if not kinds <= types:
        raise Unenforceable(f"{place}: its types are not said")
    if types == {"string"} or "string" not in kinds:
        return values
    free = {value.kind for value in values if value.free}
    for value in values:
        if value.text is not None:
            if scalar(value.text, types) is not None or value.text.lstrip().startswith(("{", "[")):
                raise Unenforceable(f"{place}: {value.text!r} would be read as another type")
        elif value.kind == "string":
            others = types - {"string"}
            unsure = others - ({"null", "boolean", "number"} & free if value.free else {"null"} & free)
            if unsure:
                raise Unenforceable(f"{place}: strings beside the type '{min(unsure)}'")
    return values


def _without_markup(pattern: str, place: str) -> str:
    """A regular expression for whole texts, narrower than the pattern: none of them holds `<`, so none holds a tag."""
    whole = pattern.removeprefix("^")
    if whole.endswith("$") and not whole.endswith("\\$"):
        whole = whole[:-1]
    parts = []
    for atom in _ATOM.findall(whole):
        if atom in ("^", "$", "(?") or re.fullmatch(r"\\[bBAZzGkpPcC0-9]", atom):
            raise Unenforceable(f"{place}: 'pattern' with {atom}")
        if atom not in _NARROWER and not _matches_markup(atom):
            parts.append(atom)
        elif atom in _NARROWER:
            parts.append(_NARROWER[atom])
        elif atom.startswith("[^"):
            parts.append(f"[^<{atom[2:]}")
        else:
            raise Unenforceable(f"{place}: 'pattern' that matches '<'")
    if not parts:
        raise Unenforceable(f"{place}: 'pattern' of nothing")
    return "".join(parts)


def _matches_markup(atom: str) -> bool:
    if len(atom) == 1 or atom == "(?:":
        return atom == "<"
    try:
        return re.fullmatch(atom, "<") is not None
    except re.error:
        return True
