"""The synthetic dataset: an endless, seeded stream of conversations, each with the functions it may call.

In: a seed and a split. Out: lines of OpenAI's fine-tuning form, `{"messages", "tools", "kind"}`; lines that stand
together share their functions, so that they can be packed. Held out are an eighth of the concepts with all their names,
the last phrase of every concept and of every list of sentences, and the last fifth of every pool of values. Names that
the Berkeley function-calling leaderboard uses never occur. Refuses to know formats and tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal

from functionary_vllm.training.dataset import phrases
from functionary_vllm.training.dataset.api_schemas import api_concepts
from functionary_vllm.training.dataset.concepts import Concept, hand_written
from functionary_vllm.training.dataset.conversations import Scene, converse
from functionary_vllm.training.dataset.definitions import Definition, define
from functionary_vllm.training.dataset.families import combined
from functionary_vllm.training.dataset.text import styled

Split = Literal["train", "heldout"]
HELD_OUT_SHARE = 8  # one stem in eight
_SHARES = {"hand written": 64, "records": 15, "facts": 10, "quantities": 6, "api": 7}  # of the functions on offer
_SIZES = (1,) * 30 + (2,) * 25 + (3,) * 20 + (4,) * 13 + (5,) * 7 + (6,) * 5  # functions on offer
_BORROWED = (0,) * 6 + (1, 2, 3, 4)  # optional parameters of another function, if that has one
_FAMILIAR = ("get current weather", "get weather", "get temperature")  # what everybody tries first: 3 in 200 functions
_INFERRED = (
    "Infer it from the request.",
    "Infer this from the place.",
    "Choose what fits.",
    "Guess it if it is not said.",
)
_BRANCHES = 9  # conversations about one set of functions
_DATA = Path(__file__).parent


@cache
def blocked_names() -> frozenset[str]:
    """Names of functions in the leaderboard's test sets, in snake_case."""
    lines = (_DATA / "blocked_names.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


@cache
def talk() -> tuple[tuple[str, str], ...]:
    """Plain talk: what a user says, and a short answer."""
    with (_DATA / "talk.jsonl").open(encoding="utf-8") as file:
        return tuple((line["user"], line["assistant"]) for line in map(json.loads, file))


def is_held_out(stem: str) -> bool:
    """Whether concepts of this stem are kept from training; the same on every machine."""
    return hashlib.sha256(stem.encode()).digest()[0] % HELD_OUT_SHARE == 0


class Generator:
    """One stream of conversations. The same seed and split give the same lines.

    `apis`: with functions of real APIs, where the package that describes them is installed.
    """

    def __init__(self, seed: int, split: Split, *, apis: bool = True) -> None:
        self.rng = Random(f"{split} {seed}")
        self.held_out = split == "heldout"
        self.all = (*hand_written(), *combined(), *(api_concepts() if apis else ()))

    @cached_property
    def concepts(self) -> dict[str, list[Concept]]:
        """The concepts of this split by where they come from."""
        found: dict[str, list[Concept]] = {origin: [] for origin in _SHARES}
        for concept in self.all:
            if is_held_out(concept.stem) == self.held_out:
                found[concept.domain if concept.domain in found else "hand written"].append(concept)
        return {origin: concepts for origin, concepts in found.items() if concepts}

    @cached_property
    def blocked(self) -> frozenset[str]:
        """Names that no function of this split may have."""
        if not self.held_out:
            return blocked_names()
        trained = (concept for concept in self.all if not is_held_out(concept.stem))
        return blocked_names() | {styled(name, "snake") for concept in trained for name in concept.names}

    def lines(self) -> Iterator[dict[str, Any]]:
        """Conversations without end."""
        while True:
            if self.rng.random() < 0.04:
                yield from self._plain()
                continue
            scene = self._scene()
            tools = [{"type": "function", "function": definition.function} for definition in scene.offered]
            for kind, messages in converse(scene, self.rng.randint(_BRANCHES - 2, _BRANCHES + 2)):
                yield {"messages": messages, "tools": tools, "kind": kind}

    def _plain(self) -> Iterator[dict[str, Any]]:
        """Talk without functions."""
        for said, answer in self.rng.sample(self._talk(), 3):
            messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            yield {"messages": messages, "kind": "chat"}

    def _talk(self) -> Sequence[tuple[str, str]]:
        kept = len(talk()) - len(talk()) // 10
        return talk()[kept:] if self.held_out else talk()[:kept]

    def _scene(self) -> Scene:
        size = self.rng.choice(_SIZES)
        first = self._concept()
        chosen = [first]
        same_domain = self.rng.random() < 0.5
        for _ in range(10 * size):
            if len(chosen) == size:
                break
            other = self._neighbour(first) if same_domain else self._concept()
            if not any(_alike(other, concept) for concept in chosen):
                chosen.append(other)
        self.rng.shuffle(chosen)
        foreign: list[Concept] = []
        for i in range(12):
            other = self._neighbour(first) if i % 2 else self._concept()
            if not any(_alike(other, concept) for concept in chosen):
                foreign.append(other)
        offered = {made.name: made for made in map(self._offered, chosen)}  # a name stands for one function
        return Scene(
            list(offered.values()),
            [define(concept, self.rng, self.blocked) for concept in foreign],
            self._talk(),
            self.rng,
            self.held_out,
        )

    def _offered(self, concept: Concept) -> Definition:
        """A definition; now and then its name says nothing, so that only the description tells what it does."""
        made = define(concept if self.held_out else self._widened(concept), self.rng, self.blocked)
        if self.rng.random() < 0.04:
            name = phrases.nonsense(self.rng)
            made = replace(made, name=name, function={**made.function, "name": name})
        return made

    def _widened(self, concept: Concept) -> Concept:
        """The concept, now and then with its parameters in another order than people speak of them, and with optional
        parameters of others: nothing is ever said for those, nor passed."""
        parameters = list(concept.parameters)
        if self.rng.random() < 0.4:
            self.rng.shuffle(parameters)
        for _ in range(self.rng.choice(_BORROWED)):
            taken = {parameter.name for parameter in parameters}
            spare = [p for p in self._neighbour(concept).parameters if p.optional and p.name not in taken]
            if spare:
                parameters.insert(self.rng.randint(0, len(parameters)), spare[0])
        for i, parameter in enumerate(parameters):
            if parameter.choices and not parameter.optional and self.rng.random() < 0.2:
                about = f"{parameter.about[0].rstrip('.')}. {self.rng.choice(_INFERRED)}"
                parameters[i] = replace(parameter, about=(about,))
        return replace(concept, parameters=tuple(parameters))

    def _concept(self) -> Concept:
        if not self.held_out and self.rng.random() < 0.015:
            return self.rng.choice([concept for concept in self._domains["weather_maps"] if concept.name in _FAMILIAR])
        origins = list(self.concepts)
        origin = self.rng.choices(origins, [_SHARES[origin] for origin in origins])[0]
        return self.rng.choice(self.concepts[origin])

    def _neighbour(self, concept: Concept) -> Concept:
        return self.rng.choice(self._domains[concept.domain])

    @cached_property
    def _domains(self) -> dict[str, list[Concept]]:
        domains: dict[str, list[Concept]] = {}
        for concepts in self.concepts.values():
            for concept in concepts:
                domains.setdefault(concept.domain, []).append(concept)
        return domains


def _alike(one: Concept, other: Concept) -> bool:
    """Whether a request for the one could be meant for the other, as far as their names tell."""
    if one.name == other.name:
        return True
    return any(len(a & b) > 0.6 * len(a | b) for a in map(_words, one.names) for b in map(_words, other.names))


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(word.rstrip("s") for word in name.split() if word not in ("of", "the", "by", "a", "to", "for"))
