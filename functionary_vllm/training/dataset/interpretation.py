"""What a call gives back, and what an assistant says of it. In: an answered request. Out: a result, a sentence."""

from __future__ import annotations

from random import Random
from typing import Any

from functionary_vllm.training.dataset.concepts import PLACEHOLDER, leaves
from functionary_vllm.training.dataset.definitions import Definition, Request
from functionary_vllm.training.dataset.values import parse_kind, said_of


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
    return content, told.sentence({name: said_of(value_of(name)) for name in told.slots()})
