"""What a call gives back, and what an assistant says of it. In: an answered request. Out: a result, a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from functionary_vllm.training.dataset.concepts import PLACEHOLDER, leaves
from functionary_vllm.training.dataset.definitions import Definition, Request
from functionary_vllm.training.dataset.pools import unheard
from functionary_vllm.training.dataset.text import join_words, upper_first, words_of
from functionary_vllm.training.dataset.values import parse_kind, said_of

_LISTED = 0.3  # of the flat results, in training


def interpret(definition: Definition, asked: Request, rng: Random, held_out: bool) -> tuple[Any, str]:
    """What the function gives back, and what an assistant says of it."""
    concept = definition.concept
    values = {path: value.value for path, value in asked.said.items()}
    for path, leaf, _ in leaves(concept.parameters):
        if path not in values:  # an enum that was not said
            values[path] = leaf.choices[0].value if leaf.choices and leaf.default is None else leaf.default

    def value_of(name: str) -> Any:
        if name not in values:
            values[name] = parse_kind(name).draw(rng, held_out).value
        return values[name]

    def filled(template: Any) -> Any:
        match template:
            case str():
                if (whole := PLACEHOLDER.fullmatch(template)) is not None:
                    return value_of(whole[1])
                return PLACEHOLDER.sub(lambda found: said_of(value_of(found[1])), template)
            case dict():
                return {key: filled(value) for key, value in template.items()}
            case list():
                return [filled(value) for value in template]
            case _:
                return template

    content = filled(concept.result if concept.result is not None else {"ok": True})
    told = rng.choice(concept.tell)
    sentence = told.sentence({name: said_of(value_of(name)) for name in told.slots()})
    if held_out or not isinstance(content, dict):
        return content, sentence
    for key, value in content.items():  # what a result always says would be learned by heart
        if not value or not isinstance(value, str) or value != concept.result[key]:
            continue
        if found := re.search(rf"\b{re.escape(value)}\b", sentence):
            content[key] = unheard(value, rng, held_out)
            sentence = sentence[: found.start()] + content[key] + sentence[found.end() :]
    return content, _listed(content) if _is_plain(content) and rng.random() < _LISTED else sentence


def _is_plain(content: Mapping[str, Any]) -> bool:
    """Whether a result is two or more simple values, whose names read well in the singular."""
    readable = all(re.fullmatch(r"[a-z]{3,}(_[a-z]{3,})*", key) and not key.endswith("s") for key in content)
    return (
        len(content) > 1 and readable and not any(isinstance(value, (bool, dict, list)) for value in content.values())
    )


def _listed(content: Mapping[str, Any]) -> str:
    """All that it says: The price is 20, the stock is low and the place is Oslo."""
    return upper_first(join_words([f"the {words_of(key)} is {value}" for key, value in content.items()])) + "."
