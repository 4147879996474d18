"""What is asked and what came back: the values that suites, the endpoint and the figures have in common.

A case is a conversation of one turn or several, asked in one way or in two (streamed, whole). A suite makes cases and
judges answers; what it says of one is a Verdict: for each measure that the case counts for, right or wrong. A case
whose answer is an error is wrong in all of them; the suite is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said to one request. `relaxed`: asked once more without strict, as the server refused a schema."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    finish: str = ""
    error: str = ""
    relaxed: bool = False
    tokens: int = 0
    seconds: float = 0.0

    @property
    def said(self) -> tuple[Any, ...]:
        """Equal where the same was said, in whatever way: without ids, times and counts."""
        return self.text, tuple((call.name, call.arguments) for call in self.calls), self.finish


@dataclass(frozen=True, slots=True)
class Case:
    """`turns`: the messages that each adds; what was answered goes in between. `offer`: the rest of the request."""

    id: str
    turns: tuple[Sequence[dict[str, Any]], ...]
    offer: dict[str, Any] = field(default_factory=dict)
    gold: Any = None
    ways: tuple[bool, ...] = (False,)  # streamed or not


@dataclass(frozen=True, slots=True)
class Verdict:
    measures: dict[str, bool]
    why: str = ""  # what was wrong, in words that many cases share


Answers = Sequence[Answer]  # of one conversation, a turn each; fewer than turns where it could not go on


class Suite(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def order(self) -> Sequence[str]: ...  # measures, as they are told; others follow

    def cases(self) -> list[Case]: ...

    def measures(self, case: Case) -> tuple[str, ...]: ...

    def judge(self, case: Case, ways: Sequence[Answers]) -> Verdict: ...


class NotJson(ValueError):
    """Arguments that are no JSON object, or one that says a key twice."""


def parse_arguments(text: str) -> dict[str, Any]:
    """Raises NotJson. A key that is there twice would hide one of its values, so it counts as broken."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise NotJson("a key is there twice")
        return members

    def refuse(constant: str) -> Any:
        raise NotJson(f"{constant} is no JSON")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None
    if not isinstance(value, dict):
        raise NotJson("no object")
    return value


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: the order of keys says nothing, 5 is 5.0, and true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
