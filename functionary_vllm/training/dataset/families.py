"""Concepts by combination: what one does with records, attributes of things, quantities of bodies.

In: the tables of families.yaml. Out: Concepts of the same shape as the hand-written ones, thousands of them. They
teach what those cannot in their number: that `cancel_shipment` is not `track_shipment`, that a parameter is what its
name and description say, and that values are copied. Refuses to know how they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from functionary_vllm.training.dataset.concepts import Concept, read_concept
from functionary_vllm.training.dataset.text import upper_first

Raw = dict[str, Any]


@cache
def combined() -> tuple[Concept, ...]:
    """All combinations, in a fixed order."""
    tables = yaml.safe_load((Path(__file__).parent / "families.yaml").read_text("utf-8"))
    made = (("records", _records(tables)), ("facts", _facts(tables)), ("quantities", _quantities(tables)))
    return tuple(read_concept(raw, domain) for domain, entries in made for raw in entries)


def _with(template: Any, words: Mapping[str, str]) -> Any:
    """The template with `<word>` replaced everywhere in it."""
    match template:
        case str():
            for word, text in words.items():
                template = template.replace(f"<{word}>", text)
            return template
        case list():
            return [_with(item, words) for item in template]
        case dict():
            return {key: _with(value, words) for key, value in template.items()}
        case _:
            return template


def _slot(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _parameter(about: list[str], kind: Any) -> Raw:
    return {"about": about, ("values" if isinstance(kind, list) else "value"): kind}


def _records(tables: Raw) -> Iterator[Raw]:
    """Each deed with each record, creating it, and setting and searching by each of its fields."""
    for record in tables["records"]:
        name, identifier = record["name"], record["identifier"]
        key = _slot(identifier)
        kind = key if key in ("hostname", "username", "domain") else "title" if "name" in key else "code"
        known = {key: _parameter([f"The {identifier} of the {name}.", f"{upper_first(identifier)}."], kind)}
        words = {"record": name, "identifier": identifier, "id": f"{{{key}}}"}
        for deed in tables["deeds"]:
            about = _with(deed["about"], words)
            yield {
                "name": f"{deed['verb']} {name}",
                "stem": name,
                "also": [f"{verb} {name}" for verb in deed["also"]],
                "about": [about, f"{about.split(',')[0].rstrip('.')}."],
                "parameters": {**known, **deed.get("parameters", {})},
                **{part: _with(deed[part], words) for part in ("say", "near", "tell")},
                "result": {key: f"{{{key}}}", "status": "ok"},
            }
        fields = {
            field: _parameter([f"The {field} of the {name}.", f"{upper_first(field)}."], values)
            for field, values in record["fields"].items()
        }
        yield _creation(name, identifier, fields)
        for field, parameter in fields.items():
            yield from _field(
                tables["fields"], words | {"field": field, "value": f"{{{_slot(field)}}}"}, known, parameter
            )


def _creation(record: str, identifier: str, fields: Mapping[str, Raw]) -> Raw:
    named = [f"{field} {{{_slot(field)}}}" for field in fields]
    return {
        "name": f"create {record}",
        "stem": record,
        "also": [f"add {record}", f"new {record}"],
        "about": [f"Creates a new {record}.", f"Adds a {record} to the system and returns its {identifier}."],
        "parameters": {_slot(field): parameter for field, parameter in fields.items()},
        "say": [
            f"Create a {record}: {', '.join(named)}",
            f"Add a new {record} with {' and '.join(named)}",
            f"I need a new {record}[, {named[0]}]" + "".join(f", {words}" for words in named[1:]),
            f"Please set up a {record}. " + " ".join(f"The {field} is {{{_slot(field)}}}." for field in fields),
            f"New {record}" + "".join(f", {{{_slot(field)}}} as the {field}" for field in fields),
        ],
        "near": [f"Delete {record} {{code}}", f"How many {record}s did we create last year?", f"What is a {record}?"],
        "result": {_slot(identifier): "{code}", "created": True},
        "tell": [f"The {record} was created; its {identifier} is {{code}}."],
    }


def _field(templates: list[Raw], words: Mapping[str, str], known: Raw, parameter: Raw) -> Iterator[Raw]:
    update, find = (_with(template, words) for template in templates)
    slot = words["value"].strip("{}")
    limit = {"about": "How many results at most.", "value": "integer 1 50", "optional": True, "default": 10}
    ((key, _),) = known.items()
    yield {
        **update,
        "stem": words["record"],
        "parameters": {**known, slot: {**parameter, "about": [f"The new {words['field']}."]}},
        "result": {key: words["id"], slot: words["value"]},
    }
    yield {
        **find,
        "stem": words["record"],
        "parameters": {slot: parameter, "limit": limit},
        "result": {"found": "{integer 1 9}"},
    }


def _facts(tables: Raw) -> Iterator[Raw]:
    for thing, attributes in tables["attributes"].items():
        slot = _slot(thing)
        for attribute in attributes["names"]:
            words = {"attribute": attribute, "thing": thing, "value": f"{{{slot}}}"}
            yield {
                "name": f"get {attribute}" if thing in attribute else f"get {thing} {attribute}",
                "stem": attribute,
                **_with(tables["lookups"], words),
                "parameters": {
                    slot: _parameter([f"Name of the {thing}.", f"The {thing} to look up."], attributes["kind"])
                },
                "result": {slot: f"{{{slot}}}", _slot(attribute): "{integer 3 900}"},
            }


def _quantities(tables: Raw) -> Iterator[Raw]:
    """Each quantity of each body, from two or three measures that have nothing to do with it: they have to be read."""
    measures = list(tables["measures"].items())
    for i, quantity in enumerate(tables["quantities"]):
        for j, body in enumerate(tables["bodies"]):
            steps = (0, 4, 11)[: 2 + (i + j) % 2]
            chosen = dict(measures[(7 * i + 5 * j + step) % len(measures)] for step in steps)
            yield _quantity(quantity, body, chosen, rounded=(i + j) % 3 == 0)


def _quantity(quantity: str, body: str, measures: Mapping[str, str], *, rounded: bool) -> Raw:
    named = [f"{measure} {{{_slot(measure)}}}" for measure in measures]
    equal = [f"{measure} = {{{_slot(measure)}}}" for measure in measures]
    places = {"about": "Number of decimals of the result.", "value": "integer 1 6", "optional": True, "default": 2}
    return {
        "name": f"calculate {body} {quantity}",
        "stem": quantity,
        "also": [f"{quantity} of {body}", f"compute {quantity}", f"{body} {quantity} calculator"],
        "about": [
            f"Calculates the {quantity} of a {body}.",
            f"Computes {quantity} for a {body} from {', '.join(measures)}.",
        ],
        "parameters": {
            **{
                _slot(measure): _parameter([f"The {measure}.", f"{upper_first(measure)} of the {body}."], kind)
                for measure, kind in measures.items()
            },
            **({"precision": places} if rounded else {}),
        },
        "say": [
            f"Calculate the {quantity} of a {body} with {' and '.join(named)}" + "[, {precision} decimals]" * rounded,
            f"What is the {quantity} of a {body}[ of {named[0]}], given {', '.join(named[1:])}?",
            f"A {body} has {', '.join(named)}. How large is its {quantity}?"
            + "[ Round to {precision} places.]" * rounded,
            f"I need the {quantity} for this {body}: {', '.join(equal)}",
            f"If the {' and the '.join(named)}, what {quantity} does the {body} have?".replace(" {", " is {"),
        ],
        "near": [f"What is a {body}?", f"Who sells a {body} near me?", f"Explain {quantity} in simple words."],
        "result": {_slot(quantity): "{number 1 500}"},
        "tell": [f"The {quantity} is {{number 1 500}}.", f"The {body} has a {quantity} of {{number 1 500}}."],
    }
