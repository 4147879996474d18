"""What a client gets out of a stream of chat chunks, when, and what is wrong with the stream. No I/O.

In: bytes as they arrive with the time they did, or the body of a whole response. Out: an Answer that compares equal
however it came (ids left out), the times of first token, function name and first argument byte, the gaps between the
chunks that carry tokens, and `problems`: each way in which the stream breaks the contract of OpenAI's API, named once.
Knows tools and the older functions, several choices, and vLLM's names for thoughts; it never raises on what it is fed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

WHOLE = ("stop", "tool_calls", "function_call")  # the finish reasons of an answer that was not cut
DONE = b"[DONE]"


class EventStream:
    """Bytes of a text/event-stream -> the data of its events, however the bytes are cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        piece = self._rest + piece if self._rest else piece
        held = b""
        if b"\r" in piece:  # one at the end may be the first half of a line end
            piece, held = (piece[:-1], b"\r") if piece.endswith(b"\r") else (piece, b"")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *events, rest = piece.split(b"\n\n")
        self._rest = rest + held
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:  # nearly all of them
                yield event[6:]
                continue
            data = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield b"\n".join(data)


@dataclass(slots=True)
class Called:
    name: str
    arguments: str
    id: str | None = field(default=None, compare=False)


@dataclass(slots=True)
class Answer:
    """What one choice said; equal if the same was said, by whatever way."""

    content: str = ""
    reasoning: str = ""
    calls: list[Called] = field(default_factory=list)
    finish: str | None = None

    @property
    def characters(self) -> int:
        return len(self.content) + len(self.reasoning) + sum(len(c.name) + len(c.arguments) for c in self.calls)


class _Choice:
    __slots__ = ("arguments", "calls", "content", "finish", "reasoning", "role")

    def __init__(self) -> None:
        self.role: str | None = None
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[Called] = []
        self.arguments: list[list[str]] = []
        self.finish: str | None = None

    def answer(self) -> Answer:
        calls = [
            Called(call.name, "".join(pieces), call.id) for call, pieces in zip(self.calls, self.arguments, strict=True)
        ]
        return Answer("".join(self.content), "".join(self.reasoning), calls, self.finish)


class StreamFold:
    """Fed the data of each event and the time it came; `finish` after the last one."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.problems: list[str] = []
        self.usage: dict[str, Any] = {}
        self.error: str | None = None
        self.done = False
        self.chunks = 0  # those that carried tokens
        self.first_token: float | None = None
        self.name: float | None = None
        self.argument: float | None = None
        self.gaps: list[float] = []
        self._last = 0.0
        self._now = 0.0
        self._id: object = None
        self._asked = asked
        self._choices: dict[int, _Choice] = {}

    def feed(self, data: bytes, now: float) -> None:
        if self.done:
            self._wrong("an event after [DONE]")
        elif data == DONE:
            self.done = True
        else:
            self._now = now
            try:
                if self._chunk(orjson.loads(data)):
                    self._token(now)
            except orjson.JSONDecodeError:
                self._wrong("an event that is no JSON")
            except (TypeError, AttributeError, LookupError, ValueError):
                self._wrong("a chunk of another form")

    def _token(self, now: float) -> None:
        self.chunks += 1
        if self.first_token is None:
            self.first_token = now
        else:
            self.gaps.append(now - self._last)
        self._last = now

    def _wrong(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _chunk(self, chunk: dict[str, Any]) -> bool:
        if error := chunk.get("error"):
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)
            return False
        if self._id is None:
            self._id = chunk["id"]
        elif chunk["id"] != self._id:
            self._wrong("the id changes")
        if usage := chunk.get("usage"):
            self.usage = dict(usage)
        carried = False
        for choice in chunk["choices"]:
            index = number(choice["index"])
            into = self._choices.get(index)
            if into is None:
                into = self._choices[index] = _Choice()
            carried |= self._delta(into, choice["delta"])
            if (finish := choice.get("finish_reason")) is not None:
                if into.finish is not None:
                    self._wrong("two finish reasons")
                into.finish = finish
        return carried

    def _delta(self, into: _Choice, delta: dict[str, Any]) -> bool:
        carried = False
        if role := delta.get("role"):
            if into.role is not None:
                self._wrong("the role comes twice")
            into.role = role
        elif into.role is None:
            self._wrong("no role in the first chunk")
        if content := delta.get("content") or delta.get("refusal"):
            into.content.append(string(content))
            carried = True
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            into.reasoning.append(string(reasoning))
            carried = True
        if calls := delta.get("tool_calls"):
            for call in calls:
                carried |= self._tool_call(into, call)
        if call := delta.get("function_call"):
            carried |= self._function(into, call, opens=not into.calls)
        if carried and into.finish is not None:
            self._wrong("something after the finish reason")
        return carried

    def _tool_call(self, into: _Choice, call: dict[str, Any]) -> bool:
        index = call.get("index")
        if index is None:
            self._wrong("a call without an index")
            index = len(into.calls) - 1 if call.get("id") is None else len(into.calls)
        index = number(index)
        last = len(into.calls) - 1
        if index > last + 1 or index < max(last, 0):
            self._wrong("call indexes out of order")
        opens = index > last
        if opens and not call.get("id"):
            self._wrong("a call without an id")
        if not opens and call.get("id") not in (None, "", into.calls[index].id):
            self._wrong("a call's id changes")
        carried = self._function(into, call["function"], opens, index)
        if opens:
            into.calls[-1].id = call.get("id")
        return carried

    def _function(self, into: _Choice, function: dict[str, Any], opens: bool, index: int = 0) -> bool:
        name, arguments = function.get("name"), function.get("arguments")
        if opens:
            if not name:
                self._wrong("a call without a name")
            into.calls.append(Called(string(name or ""), ""))
            into.arguments.append([])
            index = -1
            if self.name is None:
                self.name = self._now
        elif name:
            self._wrong("a call's name comes twice")
        if arguments:
            into.arguments[index].append(string(arguments))
            if self.argument is None:
                self.argument = self._now
        return bool(name or arguments)

    def finish(self) -> list[Answer]:
        """The answers by choice. A stream that an error ended is not judged for what it could not bring any more."""
        answers = [choice.answer() for _, choice in sorted(self._choices.items())]
        if self.error is not None or not self.done:
            return answers
        if len(answers) != (wanted := self._asked.get("n") or 1):
            self._wrong(f"{len(answers)} choices instead of {wanted}")
        for answer in answers:
            if answer.finish is None:
                self._wrong("no finish reason")
        for problem in call_problems(answers):
            self._wrong(problem)
        if (self._asked.get("stream_options") or {}).get("include_usage"):
            for problem in usage_problems(self.usage, self.chunks, self._asked):
                self._wrong(problem)
        return answers


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError
    return value


def call_problems(answers: list[Answer]) -> Iterator[str]:
    for answer in answers:
        if answer.finish in ("tool_calls", "function_call") and not answer.calls:
            yield "a finish reason of calls, and no call"
        # Where the answer was cut, so may be its last call.
        for call in answer.calls if answer.finish in WHOLE else answer.calls[:-1]:
            try:
                orjson.loads(call.arguments)
            except orjson.JSONDecodeError:
                yield "arguments that are no JSON"


def usage_problems(usage: dict[str, Any], chunks: int, asked: dict[str, Any]) -> Iterator[str]:
    """`chunks` is how many carried tokens; a whole answer counts as one."""
    if not usage:
        yield "no usage"
        return
    prompt, completion, total = (usage.get(f"{kind}_tokens") for kind in ("prompt", "completion", "total"))
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(total, int)):
        yield "a usage of another form"
        return
    most = asked.get("max_completion_tokens") or asked.get("max_tokens")
    if total != prompt + completion or prompt < 1 or (chunks and completion < 1):
        yield "a usage that does not add up"
    elif most and completion > most * (asked.get("n") or 1):
        yield "a usage above max_tokens"


def fold_whole(body: dict[str, Any]) -> list[Answer]:
    """A response that was not streamed, in the same terms. Raises KeyError, TypeError or AttributeError on others."""
    answers = []
    for choice in sorted(body["choices"], key=lambda choice: choice["index"]):
        message = choice["message"]
        calls = [(call["function"], call["id"]) for call in message.get("tool_calls") or ()]
        calls += [(message["function_call"], None)] if message.get("function_call") else []
        answers.append(
            Answer(
                message.get("content") or message.get("refusal") or "",
                message.get("reasoning_content") or message.get("reasoning") or "",
                [Called(function["name"], function["arguments"], id_) for function, id_ in calls],
                choice["finish_reason"],
            )
        )
    return answers
