"""What was answered: the one list of events from which every response shape is written.

In: nothing but values. Out: frozen events in the order the model wrote them. A call that has no CallEnd was cut;
nobody may make it look complete. Refuses to know tokens, formats and OpenAI's shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Text:
    """Characters for the user. `start` is the offset of the first in the raw output, for aligning logprobs."""

    text: str
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Characters the model thought before answering."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The name of call `index` (0, 1, ... within a choice) is sure."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next characters of the arguments of call `index`, as the model wrote them."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Call `index` is complete."""

    index: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The choice is over. `reason` is the engine's: the writer turns it into OpenAI's finish_reason."""

    reason: FinishReason


Event = Text | Reasoning | CallStart | CallArguments | CallEnd | Finish


def merge(events: Iterable[Event]) -> list[Event]:
    """Join neighbours of one kind, so that two runs over differently cut output can be compared."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        match last, event:
            case Text(before, start), Text(after):
                merged[-1] = Text(before + after, start)
            case Reasoning(before), Reasoning(after):
                merged[-1] = Reasoning(before + after)
            case CallArguments(index, before), CallArguments(other, after) if index == other:
                merged[-1] = CallArguments(index, before + after)
            case _:
                merged.append(event)
    return merged
