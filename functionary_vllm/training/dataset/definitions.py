"""A concept -> one definition of it as JSON Schema, and requests that call it.

In: a Concept and a random generator. Out: a Definition (a name in one style, some of the optional parameters, kinds
fixed), and for it requests: what a user says and the call that is right. What is not said is not passed; an enum or a
flag that is required and not said takes its default, else its first value, so nobody has to be asked for a unit.
Refuses to know conversations and splits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from functionary_vllm.training.dataset.concepts import (
    Choices,
    Concept,
    Parameter,
    Phrase,
    leaves,
    noted,
    varied,
)
from functionary_vllm.training.dataset.kind import Value
from functionary_vllm.training.dataset.text import styled, words_of

_STYLES = ("snake",) * 12 + ("camel",) * 5 + ("pascal",) * 2 + ("kebab", "flat")
_LONGEST = 60  # characters; OpenAI takes 64


@dataclass(frozen=True)
class Made:
    """A call: the function's name, and its arguments by the names of the definition."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Definition:
    """A concept as it is offered once. `named` maps paths of parameters to their names here."""

    concept: Concept
    name: str
    about: str
    parameters: tuple[Parameter, ...]
    style: str
    function: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What a user says, the call that it means, and what was said for each parameter.

    `lacking` are required parameters that were not said, for which an assistant has to ask.
    """

    text: str
    call: Made
    said: Mapping[str, Value]
    lacking: tuple[str, ...] = ()
    phrase: Phrase | None = None


def define(concept: Concept, rng: Random, blocked: frozenset[str] = frozenset()) -> Definition:
    """One way to offer the concept. `blocked`: names in snake_case that it must not have."""
    style = rng.choice(_STYLES)
    kept = [p for p in concept.parameters if not p.optional or rng.random() < 0.7]
    parameters = tuple(varied(_shuffled(parameter, rng), rng) for parameter in kept)
    if rng.random() < 0.1:
        parameters = tuple(rng.sample(parameters, len(parameters)))
    about = rng.choice(concept.about)
    if rng.random() < 0.15:
        about = about.rstrip(".")
    name = _name(concept, style, rng, blocked)
    parameter_style = "camel" if style in ("camel", "pascal") and rng.random() < 0.7 else "snake"
    schema = _object(parameters, parameter_style, rng, described=rng.random() > 0.04)
    function = {"name": name, "description": about, "parameters": schema}
    return Definition(concept, name, about, parameters, parameter_style, function)


def _name(concept: Concept, style: str, rng: Random, blocked: frozenset[str]) -> str:
    names = [name for name in concept.names if styled(name, "snake") not in blocked and len(name) <= _LONGEST]
    if not names:
        names = [f"{concept.name} {concept.domain.split('_')[0]}"]
    name = rng.choice(names)
    if rng.random() < 0.06 and len(name) < _LONGEST - 16:
        name = f"{concept.domain.split('_')[0]} {name}"
    return styled(name, style)


def _shuffled(parameter: Parameter, rng: Random) -> Parameter:
    """An enum without a default in another order, since its order decides what is passed when nothing is said."""
    if not parameter.choices or parameter.default is not None or rng.random() < 0.5:
        return parameter
    values = sorted({repr(value.value) for value in parameter.choices})
    rng.shuffle(values)
    choices = tuple(sorted(parameter.choices, key=lambda value: values.index(repr(value.value))))
    return replace(parameter, choices=choices, kind=Choices(choices))


def _object(parameters: Sequence[Parameter], style: str, rng: Random, *, described: bool) -> dict[str, Any]:
    properties = {}
    for parameter in parameters:
        inner: dict[str, Any]
        if parameter.fields:
            inner = _object(parameter.fields, style, rng, described=described)
        else:
            inner = parameter.kind.schema()
        text = _description(parameter, rng)
        if described or parameter.kind.note:
            inner = {"type": inner["type"], "description": text, **inner}
        if parameter.optional and parameter.default is not None and rng.random() < 0.3:
            inner["default"] = parameter.default
        properties[styled(parameter.name, style)] = inner
    required = [styled(parameter.name, style) for parameter in parameters if not parameter.optional]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _description(parameter: Parameter, rng: Random) -> str:
    about = noted(rng.choice(parameter.about), "" if parameter.fields else parameter.kind.note)
    if parameter.default is not None and "default" not in about.lower():
        default = parameter.default if isinstance(parameter.default, str) else json.dumps(parameter.default)
        told = rng.choice((f"Default is {default}.", f"Defaults to {default}.", f"Optional, default {default}.", ""))
        return f"{about.rstrip('.')}. {told}".strip()
    if parameter.optional and rng.random() < 0.25 and "optional" not in about.lower():
        return rng.choice((f"Optional. {about}", f"{about.rstrip('.')} (optional)."))
    return about


# --- requests ------------------------------------------------------------------------------------------------------


def phrases_of(definition: Definition, held_out: bool) -> tuple[Phrase, ...]:
    """The last phrase of each concept is kept for the held-out split, where there are three or more."""
    say = definition.concept.say
    if len(say) < 3:
        return say
    return say[-1:] if held_out else say[:-1]


def request(
    definition: Definition,
    rng: Random,
    *,
    phrases: Sequence[Phrase] = (),
    held_out: bool = False,
    lacking: bool = False,
) -> Request:
    """Something a user says for this function. With `lacking` a required value stays unsaid if a phrase allows it."""
    phrase = rng.choice(phrases or definition.concept.say)
    offered = {path: (leaf, optional) for path, leaf, optional in leaves(definition.parameters)}
    left_out = _left_out(phrase, offered, rng) if lacking else None
    named = [name for name in phrase.fixed() if name in offered]
    eager = rng.random() < 0.5
    for stretch in phrase.stretches():
        names = stretch.slots()
        needed = any(name in offered and not offered[name][1] for name in names)
        if needed and not held_out and all(name in offered and offered[name][0].choices for name in names):
            needed = rng.random() < 0.5  # nobody has to say a unit
        if (
            stretch is not left_out
            and all(name in offered for name in names)
            and (needed or rng.random() < (0.85 if eager else 0.35))
        ):
            named += names
    said = {name: offered[name][0].kind.draw(rng, held_out) for name in named}
    call = Made(definition.name, arguments(definition.parameters, definition.style, said))
    missing = tuple(
        path for path, (leaf, optional) in offered.items() if not (optional or leaf.choices or path in said)
    )
    text = phrase.sentence({name: value.said for name, value in said.items()})
    return Request(text, call, said, missing, phrase)


def _left_out(phrase: Phrase, offered: Mapping[str, tuple[Parameter, bool]], rng: Random) -> Phrase | None:
    """A stretch that names a required value which stands nowhere else."""
    able = [
        stretch
        for stretch in phrase.stretches()
        if any(name in offered and not offered[name][1] and not offered[name][0].choices for name in stretch.slots())
        and not set(stretch.slots()) & set(phrase.fixed())
    ]
    return rng.choice(able) if able else None


def can_lack(definition: Definition, phrase: Phrase) -> bool:
    """Whether something that is needed can be left out of this phrase."""
    offered = {path: (leaf, optional) for path, leaf, optional in leaves(definition.parameters)}
    return _left_out(phrase, offered, Random(0)) is not None


def arguments(
    parameters: Sequence[Parameter], style: str, said: Mapping[str, Value], before: str = ""
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for parameter in parameters:
        path = before + parameter.name
        name = styled(parameter.name, style)
        if parameter.fields:
            inner = arguments(parameter.fields, style, said, f"{path}.")
            if inner and (not parameter.optional or any(key.startswith(f"{path}.") for key in said)):
                made[name] = inner
        elif path in said:
            made[name] = said[path].value
        elif parameter.choices and not parameter.optional:
            default = parameter.default
            made[name] = parameter.choices[0].value if default is None else default
    return made


def label(path: str) -> str:
    """How an assistant calls a parameter."""
    return words_of(path.rsplit(".", 1)[-1])
