"""A file of conversations whose last answer is known: is it given again? For our held-out set, and for your own.

In: JSON Lines as OpenAI's fine-tuning takes them, `{"messages": [...], "tools": [...]}`, the last assistant message the
gold answer. `kind` says what the line is there for: call, parallel, decline, ask, result or chat; without it the gold
answer tells whether it is a call, parallel calls, or text. Arguments are exact when they are equal as JSON to the gold
ones, of parallel calls in any order; nothing is normalised, so `Paris` is not `paris`. Calls are also held against the
schema of the function that they name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import referencing.exceptions

from functionary_vllm.evaluation.bfcl_words import snake_case
from functionary_vllm.evaluation.cases import Answer, Answers, Call, Case, NotJson, Verdict, parse_arguments, same

CALLS, NAME, EXACT = "calls when it should", "name of one call", "exact arguments of one call"
PARALLEL, PARALLEL_NAMES = "exact parallel calls", "names of parallel calls"
DECLINES, ASKS, ASKS_FOR_IT = "declines when no function fits", "asks for what is missing", "asks for the right thing"
RESULT, CHAT = "tells a result", "chats without a call"
VALID_JSON, VALID_SCHEMA = "calls are valid JSON", "calls are valid by their schema"

MEASURES = {
    "call": (CALLS, NAME, EXACT),
    "parallel": (CALLS, PARALLEL_NAMES, PARALLEL),
    "decline": (DECLINES,),
    "ask": (ASKS, ASKS_FOR_IT),
    "result": (RESULT,),
    "chat": (CHAT,),
}
ORDER = tuple(dict.fromkeys([*(measure for kind in MEASURES.values() for measure in kind), VALID_JSON, VALID_SCHEMA]))

# An answer that asks back has a question mark, or says what a question without one says.
_ASKING = re.compile(r"\?|\b(please|tell me|let me know|provide|specify|which|need|missing)\b", re.IGNORECASE)


class LineError(ValueError):
    """A line that is no conversation with a gold answer; the message is for who wrote it."""


class HeldOut:
    name = "heldout"
    order = ORDER

    def __init__(self, path: Path) -> None:
        self._path = path

    def cases(self) -> list[Case]:
        found = []
        with self._path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        found.append(read_case(json.loads(line), f"{number}"))
                    except (ValueError, LookupError, TypeError, AttributeError) as error:
                        raise LineError(f"{self._path}, line {number}: {error!r}") from None
        return found

    def measures(self, case: Case) -> tuple[str, ...]:
        return MEASURES[case.gold["kind"]]

    def judge(self, case: Case, ways: Sequence[Answers]) -> Verdict:
        answer = ways[0][0]
        measures, why = _JUDGES[case.gold["kind"]](answer, case.gold)
        if answer.calls:
            json_valid, schema_valid = validity(answer.calls, case.offer.get("tools", ()))
            measures |= {VALID_JSON: json_valid, VALID_SCHEMA: schema_valid}
        return Verdict(measures, why)


def read_case(line: dict[str, Any], number: str) -> Case:
    messages = line["messages"]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    calls = [(call["function"]["name"], _gold_arguments(call)) for call in messages[last].get("tool_calls") or ()]
    kind = line.get("kind")
    if kind not in MEASURES:
        kind = ("chat", "call", "parallel")[min(len(calls), 2)]
    results = [str(message["content"]) for message in messages[:last] if message["role"] == "tool"]
    offer = {key: line[key] for key in ("tools", "parallel_tool_calls") if line.get(key) not in (None, [])}
    schemas = [tool["function"].get("parameters") or {} for tool in offer.get("tools", ())]
    gold = {
        "kind": kind,
        "calls": calls,
        "text": messages[last].get("content") or "",
        "results": results,
        "parameters": {word for schema in schemas for name in schema.get("properties", ()) for word in _words(name)},
    }
    if "tools" not in offer:
        offer.pop("parallel_tool_calls", None)  # the API refuses it alone
    return Case(number, (messages[:last],), offer, gold)


def _gold_arguments(call: dict[str, Any]) -> Any:
    arguments = call["function"]["arguments"]
    return parse_arguments(arguments) if isinstance(arguments, str) else arguments


def parsed(call: Call) -> dict[str, Any] | None:
    try:
        return parse_arguments(call.arguments)
    except NotJson:
        return None


def validity(calls: Sequence[Call], tools: Sequence[dict[str, Any]]) -> tuple[bool, bool]:
    """Of all calls of an answer: JSON objects; and as their functions want them."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    arguments = [parsed(call) for call in calls]
    fits = all(
        given is not None and call.name in schemas and _fits(given, schemas[call.name])
        for call, given in zip(calls, arguments, strict=True)
    )
    return None not in arguments, fits


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    try:
        return jsonschema.Draft202012Validator(schema).is_valid(value)
    except (jsonschema.SchemaError, jsonschema.exceptions.UnknownType, referencing.exceptions.Unresolvable):
        return True  # a schema that cannot be read refuses nothing


Judged = tuple[dict[str, bool], str]


def _call(answer: Answer, gold: dict[str, Any]) -> Judged:
    name, arguments = gold["calls"][0]
    named = bool(answer.calls) and answer.calls[0].name == name
    given = parsed(answer.calls[0]) if answer.calls else None
    exact = named and len(answer.calls) == 1 and given is not None and same(given, arguments)
    if exact:
        why = ""
    elif not answer.calls:
        why = "no call"
    elif not named:
        why = "another function"
    elif len(answer.calls) > 1:
        why = "more than one call"
    else:
        why = _difference(given, arguments)
    return {CALLS: bool(answer.calls), NAME: named, EXACT: exact}, why


def _difference(given: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    if given is None:
        return "broken JSON"
    if wanted.keys() - given.keys():
        return "an argument left out"
    if given.keys() - wanted.keys():
        return "an argument too many"
    return "another value"


def _parallel(answer: Answer, gold: dict[str, Any]) -> Judged:
    """As multisets: each gold call is taken by one call that equals it."""
    wanted = list(gold["calls"])
    names = Counter(call.name for call in answer.calls) == Counter(name for name, _ in wanted)
    for call in answer.calls:
        given = parsed(call)
        fitting = (
            i for i, (name, gold_arguments) in enumerate(wanted) if name == call.name and same(given, gold_arguments)
        )
        if (taken := next(fitting, None)) is not None:
            del wanted[taken]
    exact = not wanted and len(answer.calls) == len(gold["calls"])
    if exact:
        why = ""
    elif len(answer.calls) != len(gold["calls"]):
        why = "another number of calls" if answer.calls else "no call"
    else:
        why = "other arguments in parallel calls" if names else "another function"
    return {CALLS: bool(answer.calls), PARALLEL_NAMES: names, PARALLEL: exact}, why


def _silent(answer: Answer) -> str:
    return "a call that should not be" if answer.calls else "" if answer.text.strip() else "nothing said"


def _decline(answer: Answer, gold: dict[str, Any]) -> Judged:
    return {DECLINES: not answer.calls}, "a call that should not be" if answer.calls else ""


def _ask(answer: Answer, gold: dict[str, Any]) -> Judged:
    """The right thing: a word of a parameter's name that the gold question has, too, where it has any."""
    why = _silent(answer) or ("" if _ASKING.search(answer.text) else "text that asks nothing")
    words = gold["parameters"] & _words(gold["text"])
    right = not why and (not words or bool(words & _words(answer.text)))
    return {ASKS: not why, ASKS_FOR_IT: right}, why or ("" if right else "asks for another thing")


def _words(text: str) -> set[str]:
    return set(snake_case(text).split("_"))


def _result(answer: Answer, gold: dict[str, Any]) -> Judged:
    """The values of the result that the gold answer repeats: at least one of them has to be in this one, too."""
    values = {value for result in gold["results"] for value in _values(result)}
    known = {value for value in values if value in gold["text"].casefold()}
    told = not known or any(value in answer.text.casefold() for value in known)
    why = _silent(answer) or ("" if told else "nothing of the result in it")
    return {RESULT: not why}, why


def _values(result: str) -> set[str]:
    """Numbers, and words of some length."""
    return {found.casefold() for found in re.findall(r"\d[\d.,:]*\d|\d|\w{4,}", result)}


def _chat(answer: Answer, gold: dict[str, Any]) -> Judged:
    why = _silent(answer)
    return {CHAT: not why}, why


_JUDGES = {"call": _call, "parallel": _parallel, "decline": _decline, "ask": _ask, "result": _result, "chat": _chat}
