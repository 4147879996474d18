"""The named pools of values, and which part of one belongs to which split. Knows nothing of kinds.

Pools are small, and what a model has seen a hundred times it recalls instead of copying it. So in training a value is
now and then one that is in no pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import yaml

_HELD_OUT = 5  # the last fifth
_UNHEARD = 0.3  # of the values
_SYLLABLES = (  # beginnings, middles, ends; some end with nothing
    "b br c ch cl d dr f fl g gl gr h j k l m n p pl pr qu r s sh sk sl st t th tr v w y z",
    "a e i o u a e i o ai au ea ee ie oa ou ö é",
    "   n r s l m t nd nt rk ck ll ss sh th x",
)
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
    return entry[0] if isinstance(entry, list) else unheard(str(entry), rng, held_out)


def unheard(said: str, rng: Random, held_out: bool) -> str:
    """What was said, or in training now and then something that looks like it: another name, other words."""
    if held_out or rng.random() >= _UNHEARD or len(said.split()) > 3 or not said.replace(" ", "").isalpha():
        return said
    if said.islower():
        return rng.choice(_words()) if rng.random() < 0.7 else _invented(rng)
    if said.isupper():
        return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in said)
    return " ".join(_invented(rng).capitalize() for _ in said.split())


@cache
def _words() -> Sequence[str]:
    """All that pools say in small letters, for training."""
    entries = (entry for items in pools().values() for entry in part(items, held_out=False))
    return sorted({entry for entry in entries if isinstance(entry, str) and entry.islower() and len(entry) < 20})


def _invented(rng: Random) -> str:
    return "".join(rng.choice(sounds.split(" ")) for _ in range(rng.choice((1, 2, 2))) for sounds in _SYLLABLES)
