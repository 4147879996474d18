"""Functions of real APIs: concepts from the discovery documents inside the package google-api-python-client.

In: the installed package (Apache-2.0; extra `train`). Out: Concepts whose names, descriptions and parameters are those
of the API, and whose phrases are the description turned into an order, with each parameter by its name. Where the
package is missing there are none. Nothing of it is kept in this project. Refuses to know how concepts are used.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from functionary_vllm.training.dataset.concepts import Concept, ConceptError, read_concept
from functionary_vllm.training.dataset.text import lower_first, words_of

PACKAGE = "google-api-python-client"
_EACH = 10  # methods of one API
_VERB = re.compile(r"(?P<stem>[A-Z][a-z]+?)(?P<ending>ies|sses|ches|shes|xes|s) (?=[a-z])")
_ENDINGS = {"ies": "y", "sses": "ss", "ches": "ch", "shes": "sh", "xes": "x", "s": ""}
_KINDS: tuple[tuple[str, str], ...] = (
    (r"e-?mail", "email"),
    (r"ur[il]|link", "url"),
    (r"(?<!up)date|day$", "date"),
    (r"time", "datetime"),
    (r"zone|region", "zone"),
    (r"project", "project"),
    (r"language|locale", "language"),
    (r"country", "country"),
    (r"title|label", "title"),
    (r"query|filter|^q$", "query"),
    (r"(user|owner|member)$", "username"),
    (r"id$|key$|number|name|parent|resource", "id"),
)
_ZONES = ["us-east1", "us-central1", "us-west2", "europe-west1", "europe-north1", "asia-east1", "asia-south1"]
_PROJECTS = ["webshop", "alpha-7", "data-lake", "my-project", "blue-fox", "orders-prod", "demo-42", "analytics"]
_OWN: Mapping[str, Mapping[str, Any]] = {"zone": {"values": _ZONES}, "project": {"values": _PROJECTS}}
_SKIPPED = frozenset({"requestId", "pageToken", "pageSize", "fields", "alt", "key", "validateOnly", "quotaUser"})


def find_documents() -> list[Path]:
    """The discovery documents, one for each API: the last of its versions in the order of names."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    paths = [Path(str(file.locate())) for file in files if "/documents/" in str(file) and file.suffix == ".json"]
    by_api = {path.name.split(".")[0]: path for path in sorted(paths) if not re.search("alpha|beta", path.name)}
    return list(by_api.values())


@cache
def api_concepts() -> tuple[Concept, ...]:
    """At most ten functions of each API, always the same ones."""
    found: dict[str, Concept] = {}  # by description: what every API has (operations, locations) comes once
    for path in find_documents():
        document = json.loads(path.read_text("utf-8"))
        if "name" not in document:  # the list of all APIs
            continue
        made = [concept for method in _methods(document, ()) if (concept := _read(method, document["name"]))]
        made = [concept for concept in made if concept.about[0] not in found]
        distinct = list({concept.about[0]: concept for concept in made}.values())
        chosen = Random(document["name"]).sample(distinct, min(_EACH, len(distinct)))
        found.update((concept.about[0], concept) for concept in chosen)
    return tuple(found.values())


def _methods(resource: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(resource, method, its description) of all methods."""
    for name, inner in resource.get("resources", {}).items():
        yield from _methods(inner, (*path, name))
    for name, method in resource.get("methods", {}).items():
        yield path[-1] if path else "", name, method


def _read(found: tuple[str, str, Mapping[str, Any]], api: str) -> Concept | None:
    resource, method, described = found
    about = re.split(r"(?<=[a-z\)])[.:](?:\s|$)", " ".join(described.get("description", "").split()))[0].rstrip(".")
    verb = _VERB.match(about)
    if verb is None or not 15 < len(about) < 120 or re.search(r"[`<>\[\]{}*_]|https?:", about):
        return None
    parameters = [(name, raw) for name, raw in described.get("parameters", {}).items() if name not in _SKIPPED]
    required = [(name, raw) for name, raw in parameters if raw.get("required")]
    optional = [(name, raw) for name, raw in parameters if not raw.get("required")][:2]
    if len(required) > 4 or not parameters:
        return None
    told = {words_of(name).replace(" ", "_"): _parameter(name, raw) for name, raw in (*required, *optional)}
    if not all(told.values()):
        return None
    order = lower_first(verb["stem"]) + _ENDINGS[verb["ending"]] + about[verb.end() - 1 :]
    raw = {
        "name": f"{words_of(method)} {words_of(resource)}".strip(),
        "also": [
            f"{words_of(api)} {words_of(resource)} {words_of(method)}",
            f"{words_of(resource)} {words_of(method)}",
        ],
        "stem": api,
        "about": [f"{about}."],
        "parameters": told,
        "say": _phrases(order, told),
        "near": ["How much does this service cost?", f"What are {words_of(resource)}?"] if resource else [],
    }
    try:
        return read_concept(raw, "api")
    except ConceptError:
        return None


def _parameter(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter as a concept has it; empty where it is of a kind that is not said in a sentence."""
    about = re.split(r"(?<=[a-z\)])\.(?:\s|$)", " ".join(raw.get("description", "").split()))[0]
    about = re.sub(r"^(Required|Optional|REQUIRED)\.\s*", "", about)
    if not 8 < len(about) < 110 or "`" in about or raw.get("repeated") or "deprecated" in about.lower():
        return {}
    told: dict[str, Any] = {"about": [f"{about}."]}
    if not raw.get("required"):
        told["optional"] = True
    values = [value for value in raw.get("enum", []) if "UNSPECIFIED" not in value]
    if values:
        return {**told, "choices": {value: [words_of(value)] for value in values}} if len(values) <= 6 else {}
    match raw.get("type"):
        case "integer":
            return {**told, "value": "integer 1 500"}
        case "boolean" if not raw.get("required"):
            return {**told, "choices": {True: [f"with {words_of(name)} on"], False: [f"with {words_of(name)} off"]}}
        case "string":
            kind = next((kind for pattern, kind in _KINDS if re.search(pattern, name, re.IGNORECASE)), "")
            return {**told, **(_OWN.get(kind) or {"value": kind})} if kind else {}
    return {}


def _phrases(order: str, told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The order with its parameters by name, in five shapes."""
    needed = [name for name, raw in told.items() if not raw.get("optional")]
    flags = [name for name, raw in told.items() if raw.get("optional") and True in raw.get("choices", {})]
    extra = [name for name, raw in told.items() if raw.get("optional") and name not in flags]
    on_or_off = "".join(f"[, {{{name}}}]" for name in flags)

    def named(name: str) -> str:
        return f"{words_of(name)} {{{name}}}"

    listed = ", ".join(map(named, needed))
    others = "".join(f"[, {named(name)}]" for name in extra) + on_or_off
    first = f"[ for {named(needed[0])}]" + "".join(f", {named(name)}" for name in needed[1:]) if needed else ""
    made = [
        f"{order}{first}{others}",
        f"Can you {order}{' with ' if listed else ''}{listed}{others}?",
        f"I need you to {order}. {'. '.join(f'The {words_of(name)} is {{{name}}}' for name in needed)}{others}",
        f"{listed}{': ' if listed else ''}{order}{others}",
        f"I want to {order}{' (' if listed else ''}{listed}{')' if listed else ''}{others}",
        f"please {order}{', ' if listed else ''}{', '.join(f'{words_of(name)}={{{name}}}' for name in needed)}{others}",
    ]
    return [phrase[0].upper() + phrase[1:] if phrase[0].islower() else phrase for phrase in made]
