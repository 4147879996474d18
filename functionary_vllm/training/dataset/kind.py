"""What a kind of value is: it draws Values and knows their JSON Schema. Knows no kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """`said`: as a user writes it. `value`: the JSON that is passed."""

    said: str
    value: Any


class Kind(ABC):
    """How values of one parameter look."""

    note: str = ""  # what a description has to say for the value to follow from what is said

    @abstractmethod
    def draw(self, rng: Random, held_out: bool) -> Value:
        """A value. `held_out`: from those that training never sees, where there is a pool."""

    @abstractmethod
    def schema(self) -> Schema:
        """The JSON Schema of the values."""

    def variant(self, rng: Random) -> Kind:
        """This kind, fixed in what one definition of a function fixes: a format, a type."""
        return self


class KindError(ValueError):
    """There is no such kind."""
