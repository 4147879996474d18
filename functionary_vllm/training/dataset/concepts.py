"""Concepts: functions that somebody could offer to a model, and how people ask for them.

In: the YAML of ../concepts (its form is told in docs/dataset.md), or the same made by `families`. Out: Concepts, whose
phrases and kinds are parsed and found consistent. `python -m functionary_vllm.training.dataset.concepts FILE` checks a
file and shows what becomes of it. Refuses to know names styles, schemas and conversations: `definitions` does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from functionary_vllm.training.dataset.kind import Kind, KindError, Schema, Value
from functionary_vllm.training.dataset.text import join_words, tidy, upper_first
from functionary_vllm.training.dataset.values import parse_kind, pool_of, said_of

FOLDER = Path(__file__).parents[1] / "concepts"


class ConceptError(ValueError):
    """A concept is not well formed; the message names it and says where."""


@dataclass(frozen=True)
class Parameter:
    """One parameter, or one field of an object. `fields` is set for objects, `choices` for enums and flags."""

    name: str
    about: tuple[str, ...]
    kind: Kind
    optional: bool = False
    default: Any = None  # none is told
    choices: tuple[Value, ...] = ()  # in the order of the enum; a value may be said in several ways
    fields: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Choices(Kind):
    """An enum or a flag: JSON values that are said in words of their own."""

    values: tuple[Value, ...]

    def draw(self, rng: Random, held_out: bool) -> Value:
        value = rng.choice(self.distinct())
        return rng.choice([way for way in self.values if way.value == value and type(way.value) is type(value)])

    def distinct(self) -> list[Any]:
        return list({repr(value.value): value.value for value in self.values}.values())

    def schema(self) -> Schema:
        values = self.distinct()
        if all(isinstance(value, bool) for value in values):
            return {"type": "boolean"}
        kind = "integer" if all(isinstance(value, int) for value in values) else "string"
        if any(isinstance(value, float) for value in values):
            kind = "number"
        return {"type": kind, "enum": values}


@dataclass(frozen=True)
class Items(Kind):
    """A list of one to three objects, each said by the phrase `each`."""

    fields: tuple[Parameter, ...]
    each: Phrase

    def draw(self, rng: Random, held_out: bool) -> Value:
        said: list[str] = []
        values: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 2, 2, 3))):
            drawn = {item.name: item.kind.draw(rng, held_out) for item in self.fields}
            if any(drawn[item.name].value == other[item.name] for other in values for item in self.fields[:1]):
                continue
            said.append(self.each.spoken({name: value.said for name, value in drawn.items()}))
            values.append({name: value.value for name, value in drawn.items()})
        return Value(join_words(said), values)

    def variant(self, rng: Random) -> Items:
        return Items(tuple(varied(item, rng) for item in self.fields), self.each)

    def schema(self) -> Schema:
        properties = {
            item.name: {**item.kind.schema(), "description": noted(item.about[0], item.kind.note)}
            for item in self.fields
        }
        return {
            "type": "array",
            "items": {"type": "object", "properties": properties, "required": [item.name for item in self.fields]},
        }


def varied(parameter: Parameter, rng: Random) -> Parameter:
    """The parameter with its kind fixed for one definition."""
    kind = parameter.kind.variant(rng)
    return replace(parameter, kind=kind, fields=tuple(varied(item, rng) for item in parameter.fields))


def noted(about: str, note: str) -> str:
    """The description with what it must say of the value's form."""
    if not note:
        return about
    return f"{about.rstrip('.')}, {note}." if about.endswith(".") else f"{about}, {note}"


@dataclass(frozen=True)
class Phrase:
    """A sentence with slots. A piece is a text, a slot (one name), or a stretch (a Phrase) that may be left out."""

    pieces: tuple[Any, ...]

    def slots(self) -> list[str]:
        """Names of all slots, those in stretches included."""
        return [*self.fixed(), *(name for stretch in self.stretches() for name in stretch.slots())]

    def fixed(self) -> list[str]:
        return [piece.name for piece in self.pieces if isinstance(piece, Slot)]

    def stretches(self) -> list[Phrase]:
        return [piece for piece in self.pieces if isinstance(piece, Phrase)]

    def spoken(self, said: Mapping[str, str]) -> str:
        """The sentence; a stretch of which one slot has nothing to say is left out. KeyError for other slots."""
        parts: list[str] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                parts.append(piece)
            elif isinstance(piece, Slot):
                parts.append(said[piece.name])
            elif all(name in said for name in piece.slots()):
                parts.append(piece.spoken(said))
        return "".join(parts)

    def sentence(self, said: Mapping[str, str]) -> str:
        """The same, tidied; a large letter first, unless a value comes first: that stays as it is."""
        text = tidy(self.spoken(said))
        return upper_first(text) if isinstance(self.pieces[0], str) else text


@dataclass(frozen=True)
class Slot:
    name: str


PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PIECES = re.compile(r"\[[^\[\]]*\{[^\[\]]*\]|\{[^{}]*\}")


def parse_phrase(text: str) -> Phrase:
    """`Book {a}[ for {b}]` as pieces. Brackets without a slot are ordinary characters."""
    pieces: list[Any] = []
    end = 0
    for found in _PIECES.finditer(text):
        if found.start() > end:
            pieces.append(text[end : found.start()])
        inner = found[0][1:-1]
        pieces.append(parse_phrase(inner) if found[0][0] == "[" else Slot(inner.strip()))
        end = found.end()
    return Phrase((*pieces, *([text[end:]] if end < len(text) else [])))


@dataclass(frozen=True)
class Concept:
    """A function and its ways to be asked for. `domain` is the file it stands in; `names` the first and others."""

    domain: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    say: tuple[Phrase, ...]
    near: tuple[Phrase, ...] = ()
    result: Any = None
    tell: tuple[Phrase, ...] = ()
    stem: str = ""  # concepts of one stem are held out together

    @property
    def name(self) -> str:
        return self.names[0]


def leaves(parameters: Sequence[Parameter], before: str = "") -> Iterator[tuple[str, Parameter, bool]]:
    """(path, parameter, whether it is optional) of everything that a phrase can name."""
    for parameter in parameters:
        path = before + parameter.name
        if parameter.fields:
            for inner, leaf, optional in leaves(parameter.fields, f"{path}."):
                yield inner, leaf, optional or parameter.optional
        else:
            yield path, parameter, parameter.optional


# --- reading -------------------------------------------------------------------------------------------------------


def read_concept(raw: Mapping[str, Any], domain: str) -> Concept:
    """One entry of a file. Raises ConceptError."""
    name = str(raw.get("name", "?"))
    try:
        unknown = set(raw) - {"name", "also", "about", "parameters", "say", "near", "result", "tell", "stem"}
        if unknown:
            raise ConceptError(f"unknown keys {sorted(unknown)}")
        concept = Concept(
            domain=domain,
            names=(name, *_texts(raw.get("also"))),
            about=_texts(raw["about"]),
            parameters=tuple(_parameter(key, value) for key, value in (raw.get("parameters") or {}).items()),
            say=tuple(map(parse_phrase, _texts(raw["say"]))),
            near=tuple(map(parse_phrase, _texts(raw.get("near")))),
            result=raw.get("result"),
            tell=tuple(map(parse_phrase, _texts(raw.get("tell")))),
            stem=str(raw.get("stem", name)),
        )
        _check(concept)
    except (ConceptError, KindError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(f"{domain}: {name}: {error!s}") from error
    return concept


def _texts(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(map(str, value))


def _parameter(name: str, raw: Mapping[str, Any]) -> Parameter:
    unknown = set(raw) - {"about", "value", "values", "choices", "object", "items", "each", "optional", "default"}
    if unknown:
        raise ConceptError(f"parameter {name}: unknown keys {sorted(unknown)}")
    fields: tuple[Parameter, ...] = ()
    choices: tuple[Value, ...] = ()
    kind: Kind
    if "choices" in raw:
        ways = raw["choices"].items()
        choices = tuple(Value(way, value) for value, said in ways for way in (_texts(said) or (said_of(value),)))
        kind = Choices(choices)
    elif "object" in raw:
        fields = tuple(_parameter(key, value) for key, value in raw["object"].items())
        kind = Items(fields, Phrase(()))  # its schema is written by `definitions`, field by field
    elif "items" in raw:
        inner = tuple(_parameter(key, value) for key, value in raw["items"].items())
        kind = Items(inner, parse_phrase(raw["each"]))
        if missing := {item.name for item in inner} - set(kind.each.slots()):
            raise ConceptError(f"parameter {name}: `each` does not say {sorted(missing)}")
    elif "values" in raw:
        kind = pool_of(raw["values"])
    else:
        kind = parse_kind(str(raw["value"]))
    return Parameter(
        name=name.replace(" ", "_"),
        about=_texts(raw["about"]),
        kind=kind,
        optional=bool(raw.get("optional")),
        default=raw.get("default"),
        choices=choices,
        fields=fields,
    )


def _check(concept: Concept) -> None:
    known = {path: (leaf, optional) for path, leaf, optional in leaves(concept.parameters)}
    if len(concept.say) < 2:
        raise ConceptError("it has fewer than two phrases")
    for i, phrase in enumerate(concept.say):
        named = phrase.slots()
        if unknown := set(named) - set(known):
            raise ConceptError(f"say[{i}] names {sorted(unknown)}, which are no parameters")
        for path, (leaf, optional) in known.items():
            if not optional and not leaf.choices and path not in named:
                raise ConceptError(f"say[{i}] does not name {path}")
            if optional and path in phrase.fixed():
                raise ConceptError(f"say[{i}]: {path} is optional and stands in no brackets")
        if any(stretch.stretches() for stretch in phrase.stretches()) or "[" in re.sub(r"\[\d", "", _literal(phrase)):
            raise ConceptError(f"say[{i}]: nested or unbalanced brackets")
    for key, phrases in (("near", concept.near), ("tell", concept.tell)):
        for i, phrase in enumerate(phrases):
            for name in phrase.slots():
                if name not in known:
                    parse_kind(name)
                elif key == "tell" and known[name][1]:
                    raise ConceptError(f"tell[{i}] names {name}, which is optional")
    for name in PLACEHOLDER.findall(" ".join(_strings(concept.result))):
        if name not in known:
            parse_kind(name)
        elif known[name][1]:
            raise ConceptError(f"result names {name}, which is optional")


def _literal(phrase: Phrase) -> str:
    return " ".join(piece for piece in phrase.pieces if isinstance(piece, str))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def read_file(path: Path) -> list[Concept]:
    """All concepts of one file. Raises ConceptError."""
    with path.open(encoding="utf-8") as file:
        raw = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [read_concept(entry, path.stem) for entry in raw]


@cache
def hand_written() -> tuple[Concept, ...]:
    """The concepts of ../concepts, in the order of files and lines."""
    return tuple(concept for path in sorted(FOLDER.glob("*.yaml")) for concept in read_file(path))


def _report(path: Path) -> int:
    from functionary_vllm.training.dataset.definitions import define, request

    raw = yaml.safe_load(path.read_text("utf-8"))
    rng, wrong, seen = Random(1), 0, set()
    for entry in raw:
        try:
            concept = read_concept(entry, path.stem)
            if concept.name in seen:
                raise ConceptError(f"{path.stem}: {concept.name}: twice in this file")
            seen.add(concept.name)
        except ConceptError as error:
            wrong += 1
            print(f"WRONG  {error}")
            continue
        asked = request(define(concept, rng), rng)
        print(f"  {asked.text}\n      -> {asked.call.name}({asked.call.arguments})")
    print(f"{len(raw)} concepts, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    from functionary_vllm.training.dataset import concepts  # this file again, under the name that others know it by

    sys.exit(max(concepts._report(Path(argument)) for argument in sys.argv[1:]))
