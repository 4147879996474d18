"""The named pools of values, and which part of one belongs to which split. Knows nothing of kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import yaml

_HELD_OUT = 5  # the last fifth
Item = TypeVar("Item")


@cache
def pools() -> Mapping[str, Sequence[Any]]:
    """The pools of pools.yaml: an entry is what is said and passed, or [what is said, what is passed]."""
    loaded: dict[str, list[Any]] = yaml.safe_load((Path(__file__).parent / "pools.yaml").read_text("utf-8"))
    return loaded


def part(items: Sequence[Item], held_out: bool) -> Sequence[Item]:
    """The items of one split: the last fifth is held out, unless there are fewer than four."""
    if len(items) < 4:
        return items
    kept = len(items) - max(1, len(items) // _HELD_OUT)
    return items[kept:] if held_out else items[:kept]


def pick(name: str, rng: Random, held_out: bool) -> str:
    """What is said of a random entry."""
    entry = rng.choice(part(pools()[name], held_out))
    return entry[0] if isinstance(entry, list) else str(entry)
