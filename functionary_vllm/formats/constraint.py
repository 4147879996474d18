"""Structural tags: the engine's rule for what an answer may be, in a format's own syntax.

In: literal texts and JSON Schemas. Out: nested dicts as xgrammar reads them (`xgrammar.structural_tag`): a special
token in a text becomes a `token`, as a string would also match its letters spelled out. Refuses to know formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from functionary_vllm.conversation import Function

Element = dict[str, Any]

_MOST_SPACE = 16  # characters in a row; an object indented by two, seven levels deep
ANY_TEXT: Element = {"type": "any_text"}
NOTHING: Element = {"type": "const_string", "value": ""}
ANY_OBJECT: Mapping[str, Any] = {"type": "object", "additionalProperties": True}


def sequence(*elements: Element) -> Element:
    return elements[0] if len(elements) == 1 else {"type": "sequence", "elements": list(elements)}


def constant(text: str) -> Element:
    return {"type": "const_string", "value": text}


def regex(pattern: str) -> Element:
    return {"type": "regex", "pattern": pattern}


def either(*elements: Element) -> Element:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": list(elements)}


def optional(element: Element) -> Element:
    return {"type": "optional", "content": element}


def repeated(element: Element) -> Element:
    return {"type": "star", "content": element}


def json_value(schema: Mapping[str, Any] | bool) -> Element:
    """A JSON value of this schema. White space is bounded: a weak model may otherwise write nothing else."""
    content = schema if isinstance(schema, bool) else dict(schema)
    return {"type": "json_schema", "json_schema": content, "max_whitespace_cnt": _MOST_SPACE}


def arguments(function: Function, *, exact: bool) -> Element:
    """The arguments of a call: a JSON object, of the function's schema when `exact`."""
    if not exact or not function.parameters:
        return json_value(ANY_OBJECT)
    return json_value({"type": "object", **function.parameters})


def tag(begin: Element, content: Element, end: str = "") -> Element:
    """A part of the answer that begins with a constant string or a token, and ends with `end`."""
    return {
        "type": "tag",
        "begin": begin["value"] if begin["type"] == "const_string" else begin,
        "content": content,
        "end": end,
    }


def tokens_until(token: int) -> Element:
    """Anything up to this token, which follows."""
    return sequence({"type": "any_tokens", "exclude_tokens": [token]}, {"type": "token", "token": token})


def text_without(*tokens: Element) -> Element:
    """Free text in which these tokens may not be."""
    return {"type": "any_tokens", "exclude_tokens": [token["token"] for token in tokens]}


def triggered(tags: Sequence[Element], *, once: bool) -> Element:
    """Free text in which the tags' beginnings, all constant strings or all tokens, may occur only as tags."""
    begins = [tag["begin"] for tag in tags]
    if isinstance(begins[0], str):
        triggers = {"type": "triggered_tags", "triggers": list(dict.fromkeys(begins))}
    else:
        triggers = {"type": "token_triggered_tags", "trigger_tokens": list(dict.fromkeys(b["token"] for b in begins))}
    return {**triggers, "tags": list(tags), "stop_after_first": once}


def ending(begin: Element, content: Element) -> Element:
    """Free text that, once `begin` was written, a constant string or a token, goes on as `content` and ends."""
    if begin["type"] == "token":
        return {"type": "token_dispatch", "rules": [[begin["token"], content]], "loop": False}
    return {"type": "dispatch", "rules": [[begin["value"], content]], "loop": False}


def structural_tag(element: Element) -> str:
    """The rule as vLLM's `structured_outputs.structural_tag` takes it."""
    return orjson.dumps({"type": "structural_tag", "format": element}).decode()
