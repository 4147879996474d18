"""Values that people mention: how they are said, and what a function then receives.

In: the name of a kind ("city", "money 10 500", "list of integer 0 9 3 6") and a random generator. Out: a Value, whose
`said` stands in a sentence and whose `value` is JSON. Kinds know their JSON Schema and what a description has to add
so that the value can be known from what is said (the format of a date). The last fifth of every pool is kept for the
held-out split. Refuses to know functions and sentences.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from random import Random
from typing import Any

from functionary_vllm.training.dataset.kind import Kind, KindError, Schema, Value
from functionary_vllm.training.dataset.made_up import MAKERS, QUOTED
from functionary_vllm.training.dataset.numbers import Number
from functionary_vllm.training.dataset.pools import part, pools, unheard
from functionary_vllm.training.dataset.text import join_words


@dataclass(frozen=True)
class Pool(Kind):
    """One of these values."""

    values: tuple[Value, ...]

    def draw(self, rng: Random, held_out: bool) -> Value:
        value = rng.choice(part(self.values, held_out))
        if value.said != value.value:
            return value
        other = unheard(value.said, rng, held_out)
        return Value(other, other)

    def schema(self) -> Schema:
        return schema_of([value.value for value in self.values])


_CITY_NOTES = (
    "e.g. San Francisco, CA",
    "with the state in the US, e.g. Austin, TX",
    "e.g. Paris",
    "such as Oslo, Norway",
)


@dataclass(frozen=True)
class City(Pool):
    """A city, passed as it is said: descriptions often show one with its state or country."""

    note: str = ""

    def variant(self, rng: Random) -> City:
        return replace(self, note=rng.choice(_CITY_NOTES)) if rng.random() < 0.3 else self


def pool_of(values: Sequence[Any] | Mapping[Any, Any]) -> Pool:
    """Own values: a list (said as they are), or a mapping from what is said to what is meant. Raises KindError."""
    _check_one_type(list(values.values() if isinstance(values, Mapping) else values))
    if isinstance(values, Mapping):
        return Pool(tuple(Value(str(said), value) for said, value in values.items()))
    return Pool(tuple(Value(said_of(value), bare(value)) for value in values))


def _check_one_type(values: Sequence[Any]) -> None:
    types = {"number" if _type(value) == "integer" else _type(value) for value in values}
    if len(types) > 1:
        raise KindError(f"values of several types; strings of digits need quotes: {values}")
    if types == {"array"}:
        _check_one_type([item for value in values for item in value])


def bare(value: Any) -> Any:
    """A name without its article: one says "the Louvre" and passes "Louvre"."""
    return value.removeprefix("the ") if isinstance(value, str) else value


def said_of(value: Any) -> str:
    """How a JSON value stands in a sentence when nothing else is known of it."""
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        return join_words([said_of(item) for item in value])
    return value if isinstance(value, str) else str(value)


def schema_of(values: Sequence[Any]) -> Schema:
    """The least schema of these values."""
    types = {_type(value) for value in values}
    if types == {"integer", "number"}:
        types = {"number"}
    found = types.pop() if len(types) == 1 else "string"
    if found == "array":
        return {"type": "array", "items": schema_of([item for value in values for item in value] or [""])}
    return {"type": found}


def _type(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "string"


@dataclass(frozen=True)
class Made(Kind):
    """Strings that are made up: ids, addresses, quoted sentences."""

    make: Callable[[Random, bool], str]
    quoted: bool = False

    def draw(self, rng: Random, held_out: bool) -> Value:
        value = self.make(rng, held_out)
        if not self.quoted:
            return Value(value, value)
        return Value(f'"{value}"' if rng.random() < 0.5 else f"'{value}'", value)

    def schema(self) -> Schema:
        return {"type": "string"}


_DATE_FORMATS = (
    ("%Y-%m-%d", "in YYYY-MM-DD format"),
    ("%Y-%m-%d", "as YYYY-MM-DD"),
    ("%Y-%m-%d", "e.g. 2024-03-05"),
    ("%Y-%m-%d", "YYYY-MM-DD"),
    ("%m/%d/%Y", "in MM/DD/YYYY format"),
    ("%d.%m.%Y", "as DD.MM.YYYY"),
)


@dataclass(frozen=True)
class Day(Kind):
    """A day, with a time of day where `timed`; `form` is strftime's."""

    form: str = "%Y-%m-%d"
    note: str = "in YYYY-MM-DD format"
    timed: bool = False

    def variant(self, rng: Random) -> Day:
        if self.timed:
            return replace(self, form="%Y-%m-%d", note=rng.choice(("as YYYY-MM-DDTHH:MM", "e.g. 2024-03-05T14:30")))
        form, note = rng.choice(_DATE_FORMATS)
        return replace(self, form=form, note=note)

    def schema(self) -> Schema:
        return {"type": "string"}

    def draw(self, rng: Random, held_out: bool) -> Value:
        day = date(2015, 1, 1) + timedelta(days=rng.randrange(14 * 365))
        month = calendar.month_name[day.month]
        said = rng.choice((
            f"{month} {day.day}, {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}{ordinal_suffix(day.day)}, {day.year}",
            day.strftime("%Y-%m-%d"),
            day.strftime(self.form),
            f"{calendar.month_abbr[day.month]} {day.day}, {day.year}",
        ))  # fmt: skip
        if not self.timed:
            return Value(said, day.strftime(self.form))
        clock = Clock().draw(rng, held_out)
        return Value(f"{said} at {clock.said}", f"{day:%Y-%m-%d}T{clock.value}")


def ordinal_suffix(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


@dataclass(frozen=True)
class Clock(Kind):
    """A time of day."""

    note: str = "as HH:MM in 24-hour time"

    def variant(self, rng: Random) -> Clock:
        return Clock(rng.choice(("as HH:MM, 24 hours", "in HH:MM format", "e.g. 19:30", "HH:MM")))

    def schema(self) -> Schema:
        return {"type": "string"}

    def draw(self, rng: Random, held_out: bool) -> Value:
        hour, minute = rng.randrange(6, 23), rng.choice((0, 0, 0, 15, 30, 30, 45, rng.randrange(60)))
        half = "am" if hour < 12 else "pm"
        twelve = (hour - 1) % 12 + 1
        said = f"{hour}:{minute:02}"
        if rng.random() < 0.6:
            space = rng.choice(("", " "))
            said = f"{twelve}{space}{half}" if minute == 0 else f"{twelve}:{minute:02}{space}{half}"
        return Value(said, f"{hour:02}:{minute:02}")


@dataclass(frozen=True)
class ListOf(Kind):
    """`least` to `most` different values of one kind."""

    kind: Kind
    least: int = 2
    most: int = 4

    @property
    def note(self) -> str:  # type: ignore[override]
        return self.kind.note

    def variant(self, rng: Random) -> ListOf:
        return replace(self, kind=self.kind.variant(rng))

    def schema(self) -> Schema:
        return {"type": "array", "items": self.kind.schema()}

    def draw(self, rng: Random, held_out: bool) -> Value:
        drawn: list[Value] = []
        wanted = rng.randint(self.least, self.most)
        for _ in range(20 * wanted):
            value = self.kind.draw(rng, held_out)
            if len(drawn) == wanted:
                break
            if all(value.value != other.value for other in drawn) or isinstance(self.kind, Number):
                drawn.append(value)
        said = [value.said for value in drawn]
        if isinstance(self.kind, Number) and rng.random() < 0.4:
            return Value(f"[{', '.join(said)}]" if rng.random() < 0.6 else ", ".join(said), [v.value for v in drawn])
        return Value(join_words(said, oxford=rng.random() < 0.4), [value.value for value in drawn])


def parse_kind(text: str) -> Kind:
    """The kind that `text` names. Raises KindError."""
    name, *arguments = text.split()
    if name == "list" and arguments[:1] == ["of"]:
        return _parse_list(arguments[1:], text)
    if name in MAKERS and not arguments:
        return Made(MAKERS[name], quoted=name in QUOTED)
    if name in pools() and not arguments:
        entries = pools()[name]
        return (City if name == "city" else Pool)(
            tuple(Value(*entry) if isinstance(entry, list) else Value(str(entry), bare(entry)) for entry in entries)
        )
    match name, len(arguments):
        case "date", 0:
            return Day()
        case "datetime", 0:
            return Day(timed=True)
        case "clock", 0:
            return Clock()
        case ("coordinate", 0):
            return Number(-80.0, 80.0, "coordinate", whole=False)
        case ("integer" | "count" | "year", 2):
            return Number(*_bounds(arguments, text), name, whole=True)
        case ("number" | "money" | "percent" | "rate", 2):
            return Number(*_bounds(arguments, text), name)
        case "measure", _ if len(arguments) >= 3:
            return Number(*_bounds(arguments[:2], text), name, " ".join(arguments[2:]))
    raise KindError(f"no such kind of value: {text!r}")


def _parse_list(words: list[str], text: str) -> ListOf:
    if not words:
        raise KindError(f"a list of what? {text!r}")
    numeric = words[0] in ("integer", "count", "year", "number", "money", "percent", "rate", "measure")
    unit = len(words) - (words[0] == "measure")
    if len(words) >= 3 and all(word.isdigit() for word in words[-2:]) and (not numeric or unit >= 5):
        return ListOf(parse_kind(" ".join(words[:-2])), int(words[-2]), int(words[-1]))
    return ListOf(parse_kind(" ".join(words)))


def _bounds(arguments: Sequence[str], text: str) -> tuple[float, float]:
    try:
        low, high = (float(argument) for argument in arguments)
    except ValueError:
        raise KindError(f"{text!r}: bounds are numbers") from None
    if low > high:
        raise KindError(f"{text!r}: the lower bound is first")
    return low, high
