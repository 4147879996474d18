"""OpenAI's messages of both generations -> the one shape that every format renders.

In: message dicts as clients sent them, with broken arguments, missing ids, results in any order. Out: Messages whose
calls all have ids and whose tool results stand in the order of the calls. What can be rendered is rendered; refused
(InvalidRequest naming `messages[i]...`) are values of the wrong type, images, unknown roles, and results of no call.
`name` on system, user and assistant messages is dropped: no format has a place for it.
Refuses to know formats; each message is looked at once, so the cost is linear.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from functionary_vllm.conversation import Call, Message, Role, unicode_text
from functionary_vllm.errors import InvalidRequest

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def normalise(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Raises InvalidRequest, and nothing else, for any JSON value."""
    if not isinstance(messages, (list, tuple)):
        raise _wrong_type("messages", "an array", messages)
    if not messages:
        raise InvalidRequest("Invalid 'messages': expected at least one message.", param="messages", code="empty_array")
    calls = _Calls(_given_ids(messages))
    normal: list[Message] = []
    results: list[tuple[int, Message]] = []  # the run of tool messages being read, with the position of their calls
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        role = _role(message, path)
        if role == "tool":
            results.append(_result(message, path, calls))
            continue
        normal.extend(_in_order(results))
        results.clear()
        if role == "assistant":
            normal.append(_assistant(message, path, calls))
        else:
            calls.close()
            normal.append(Message(role, _content(message.get("content"), f"{path}.content")))
    normal.extend(_in_order(results))
    return tuple(normal)


def _in_order(results: list[tuple[int, Message]]) -> Iterator[Message]:
    return (message for _, message in sorted(results, key=lambda result: result[0]))


def _role(message: Any, path: str) -> Role:
    if not isinstance(message, Mapping):
        raise _wrong_type(path, "an object", message)
    role = message.get("role")
    if role is None:
        raise _missing(f"{path}.role")
    if not isinstance(role, str):
        raise _wrong_type(f"{path}.role", "a string", role)
    if role not in _ROLES:
        shown = role if len(role) <= 40 else role[:39] + "…"
        supported = "'system', 'developer', 'user', 'assistant', 'tool', and 'function'"
        reason = f"Invalid value: '{unicode_text(shown)}'. Supported values are: {supported}."
        raise InvalidRequest(reason, param=f"{path}.role")
    return _ROLES[role]


# --- The pairs of calls and results ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Made:
    """A call of the history and whether a result has been seen. `position` counts all calls of the conversation."""

    position: int
    call: Call
    answered: bool = False


class _Calls:
    """The calls so far, and which result belongs to which.

    `_by_id` has every call; an id that was used twice pairs the first result with the first call. `_open` are the
    calls of the latest assistant turn (its messages in a row): results without ids belong to these alone.
    """

    def __init__(self, given: frozenset[str]) -> None:
        self._given = given
        self._by_id: dict[str, deque[_Made]] = {}
        self._open: deque[_Made] = deque()
        self._open_by_name: dict[str, deque[_Made]] = {}
        self._closed = True
        self._count = 0

    def make(self, given_id: str | None, name: str, arguments: str) -> Call:
        if self._closed:
            self._open, self._open_by_name, self._closed = deque(), {}, False
        made = _Made(self._count, Call(given_id or self._new_id(), name, arguments))
        self._count += 1
        self._open.append(made)
        self._open_by_name.setdefault(name, deque()).append(made)
        self._by_id.setdefault(made.call.id, deque()).append(made)
        return made.call

    def close(self) -> None:
        """The assistant's turn is over: calls that come later begin another."""
        self._closed = True

    def by_id(self, call_id: str) -> _Made | None:
        calls = self._by_id.get(call_id)
        if calls is None:
            return None
        found = calls.popleft() if len(calls) > 1 else calls[0]
        found.answered = True
        return found

    def by_name(self, name: str | None) -> _Made | None:
        """The first open call of that name; by position where the name does not help."""
        for calls in (self._open_by_name.get(name or "", deque()), self._open):
            while calls:
                found = calls.popleft()
                if not found.answered:
                    found.answered = True
                    return found
        return None

    def _new_id(self) -> str:
        # Counted, not random: the same history gives the same prompt, also in formats that show the ids.
        call_id = f"call_{self._count:08d}"
        while call_id in self._given or call_id in self._by_id:
            call_id += "x"
        return call_id


def _given_ids(messages: Sequence[Any]) -> frozenset[str]:
    ids = set()
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        for call in calls if isinstance(calls, (list, tuple)) else ():
            if isinstance(call, Mapping) and isinstance(call.get("id"), str):
                ids.add(unicode_text(call["id"]))
    return frozenset(ids)


def _result(message: Mapping[str, Any], path: str, calls: _Calls) -> tuple[int, Message]:
    calls.close()
    content = _content(message.get("content"), f"{path}.content")
    name = _string(message.get("name"), f"{path}.name")
    legacy = message["role"] == "function"
    call_id = None if legacy else _string(message.get("tool_call_id"), f"{path}.tool_call_id")
    made = calls.by_id(call_id) if call_id else calls.by_name(name)
    if made is None:
        which = f"'tool_call_id' of '{call_id[:80]}'" if call_id else "result"
        raise InvalidRequest(
            f"Invalid parameter: the {which} in '{path}' does not belong to any call in the messages before it.",
            param=f"{path}.name" if legacy else f"{path}.tool_call_id",
        )
    return made.position, Message("tool", content, name=name or made.call.name, call_id=made.call.id)


# --- The assistant's messages ------------------------------------------------------------------------------------


def _assistant(message: Mapping[str, Any], path: str, calls: _Calls) -> Message:
    content = _content(message.get("content"), f"{path}.content")
    if not content:
        content = _string(message.get("refusal"), f"{path}.refusal") or ""
    reasoning = _string(message.get("reasoning_content"), f"{path}.reasoning_content")
    if not reasoning:
        reasoning = _string(message.get("reasoning"), f"{path}.reasoning")
    made = []
    tool_calls = message.get("tool_calls")
    if tool_calls is not None and not isinstance(tool_calls, (list, tuple)):
        raise _wrong_type(f"{path}.tool_calls", "an array", tool_calls)
    for j, tool_call in enumerate(tool_calls or ()):
        place = f"{path}.tool_calls[{j}]"
        if not isinstance(tool_call, Mapping):
            raise _wrong_type(place, "an object", tool_call)
        call_id = _string(tool_call.get("id"), f"{place}.id")
        made.append(_call(tool_call.get("function"), f"{place}.function", call_id, calls))
    # Some clients fill in both generations for one call: tool_calls can say more, so they count.
    if not made and message.get("function_call") is not None:
        made.append(_call(message["function_call"], f"{path}.function_call", None, calls))
    return Message("assistant", content, calls=tuple(made), reasoning=reasoning or None)


def _call(function: Any, path: str, call_id: str | None, calls: _Calls) -> Call:
    if function is None:
        raise _missing(path)
    if not isinstance(function, Mapping):
        raise _wrong_type(path, "an object", function)
    name = _string(function.get("name"), f"{path}.name")
    if not name:
        raise _missing(f"{path}.name")
    return calls.make(call_id, name, _arguments(function.get("arguments"), f"{path}.arguments"))


def _arguments(value: Any, path: str) -> str:
    """The text as it came. Old servers and clients also sent the parsed object."""
    if value is None:
        return ""
    if isinstance(value, str):
        return unicode_text(value)
    try:
        return unicode_text(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        raise _wrong_type(path, "a string", value) from None


# --- Content -----------------------------------------------------------------------------------------------------


def _content(value: Any, path: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return unicode_text(value)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(path, "a string or an array of content parts", value)
    return "".join(_part(part, f"{path}[{j}]") for j, part in enumerate(value))


def _part(part: Any, path: str) -> str:
    if not isinstance(part, Mapping):
        raise _wrong_type(path, "an object", part)
    kind = part.get("type")
    if kind is None:
        raise _missing(f"{path}.type")
    if kind not in ("text", "refusal"):
        what = f"'{unicode_text(kind[:40])}' parts" if isinstance(kind, str) else "such parts"
        raise InvalidRequest(f"Invalid '{path}': this model reads text, {what} are not supported.", param=path)
    text = _string(part.get(kind), f"{path}.{kind}")
    if text is None:
        raise _missing(f"{path}.{kind}")
    return text


def _string(value: Any, path: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong_type(path, "a string", value)
    return None if value is None else unicode_text(value)


_NAMES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
}


def _wrong_type(path: str, expected: str, value: Any) -> InvalidRequest:
    got = "null" if value is None else _NAMES.get(type(value), "an object")
    reason = f"Invalid type for '{path}': expected {expected}, but got {got} instead."
    return InvalidRequest(reason, param=path, code="invalid_type")


def _missing(path: str) -> InvalidRequest:
    reason = f"Missing required parameter: '{path}'."
    return InvalidRequest(reason, param=path, code="missing_required_parameter")
