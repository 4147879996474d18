"""Events -> OpenAI's chat.completion chunks, or the one chat.completion that is their fold.

In: the pipeline's Deltas, and a Shape that says which generation of the API asked (tools or functions) and how the
finish is called. Out: `ChatChunks` gives the bytes of server-sent events, one bytes object a Delta; `ChatAnswer`
gives the response object. Both take the same Deltas and agree to the character. A cut call is shown as it was
written; nothing is closed, dropped or re-serialised. Refuses to know HTTP, formats and engines.

A chunk is a head and a tail that are rendered once a choice, around the one JSON string that is new.
Source of the shapes: OpenAI API reference, "Chat completion chunk object"; logprobs open with an empty list there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from functionary_vllm.api.ids import new_id
from functionary_vllm.api.wire import dumps
from functionary_vllm.engine.base import TokenLogprob
from functionary_vllm.errors import EngineFailure
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Finish, FinishReason, Reasoning, Text
from functionary_vllm.outcome import Ended
from functionary_vllm.pipeline import Delta

CallFinish = Literal["tool_calls", "function_call", "stop"]
TokenText = Callable[[int], tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one answer is to look. `call_finish` is the finish_reason of a choice with at least one complete call."""

    id: str
    model: str
    created: int
    fingerprint: str
    prompt_tokens: int
    choices: int = 1
    legacy: bool = False
    call_finish: CallFinish = "tool_calls"
    max_calls: int = sys.maxsize  # later calls are not shown
    include_usage: bool = False
    continuous_usage: bool = False
    reasoning_field: str = "reasoning_content"
    token_text: TokenText | None = None  # set when logprobs were asked for


class Tally:
    """What is counted while an answer flows: tokens, calls and finish reasons, a slot a choice; and when they began.

    Of calls it keeps what the client was shown, for whoever asks at the end what they were worth.
    """

    __slots__ = (
        *("_call_finish", "_open", "cached", "calls", "completion", "ended", "finish"),
        *("first_argument", "first_name", "first_token", "model", "prompt", "truncated", "unknown", "writes"),
    )

    def __init__(self, shape: Shape) -> None:
        self._call_finish = shape.call_finish
        self.model = shape.model
        self.prompt = shape.prompt_tokens
        self.cached = self.writes = self.truncated = 0
        self.first_token: float | None = None
        self.first_name: float | None = None
        self.first_argument: float | None = None
        self.completion = [0] * shape.choices
        self.calls = [0] * shape.choices
        self.unknown = [0] * shape.choices
        self.ended: list[Ended] = []
        self._open: list[Ended | None] = [None] * shape.choices
        self.finish: list[str | None] = [None] * shape.choices

    def count(self, delta: Delta) -> None:
        if not self.writes:
            self.first_token = time.monotonic()
        self.writes += 1
        self.completion[delta.choice] = delta.completion_tokens
        if delta.cached_tokens > self.cached:
            self.cached = delta.cached_tokens
        if delta.unknown_calls:
            self.unknown[delta.choice] = delta.unknown_calls

    def begin_call(self, choice: int, name: str) -> list[str]:
        """Gives where its arguments are to be kept."""
        if self.first_name is None:
            self.first_name = time.monotonic()
        if self._open[choice] is not None:
            self.truncated += 1
        arguments: list[str] = []
        self._open[choice] = name, arguments
        return arguments

    def argue(self) -> None:
        """To be told of the first arguments of each call."""
        if self.first_argument is None:
            self.first_argument = time.monotonic()

    def end_call(self, choice: int) -> None:
        self.calls[choice] += 1
        if (call := self._open[choice]) is not None:
            self.ended.append(call)
            self._open[choice] = None

    def close(self, choice: int, reason: FinishReason) -> str:
        """The finish_reason that is true: a cut is always told, and calls only when one is complete."""
        match reason:
            case "length":
                finish = "length"
            case "stop":
                finish = self._call_finish if self.calls[choice] else "stop"
            case "abort":
                raise EngineFailure("The engine ended this request before it was finished.")
            case _:
                assert_never(reason)
        self.finish[choice] = finish
        if self._open[choice] is not None:
            self.truncated += 1
        return finish

    def require_finished(self) -> None:
        if None in self.finish:
            raise EngineFailure("The engine stopped answering before this request was finished.")

    def usage(self) -> dict[str, Any]:
        completion = sum(self.completion)
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": completion,
            "total_tokens": self.prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def logprob_content(entries: Sequence[TokenLogprob], token_text: TokenText) -> list[dict[str, Any]]:
    """OpenAI's list of tokens with their bytes; minus infinity is -9999.0 there."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(token_id)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    return [
        {**entry(e.token_id, e.logprob), "top_logprobs": [entry(token_id, logprob) for token_id, logprob in e.top]}
        for e in entries
    ]


_LEGACY_ARGUMENTS = b'{"function_call":{"arguments":'
_ROLE_TEXT = b'{"role":"assistant","content":"","refusal":null}'
_ROLE_NULL = b'{"role":"assistant","content":null}'
_PLAIN_TAIL = b',"logprobs":null,"finish_reason":null}]'


class _ChunkChoice:
    """The rendered heads of one choice, and which parts of its message are already open on the client's side."""

    __slots__ = (
        *("args_end", "args_head", "args_tail", "call", "call_open"),
        *("head", "index", "keep", "role_open", "text_head", "text_open"),
    )

    def __init__(self, index: int, prefix: bytes) -> None:
        self.index = index
        self.head = b'%b{"index":%d,"delta":' % (prefix, index)
        self.text_head = self.head + b'{"content":'
        self.args_head = self.args_tail = self.args_end = b""
        self.call = -1  # the one whose arguments args_head begins, and have begun
        self.keep: Callable[[str], None] = list[str]().append
        self.role_open = self.text_open = self.call_open = False


class ChatChunks:
    """The streaming writer: `write` each Delta, then `end`."""

    def __init__(self, shape: Shape) -> None:
        self.tally = Tally(shape)
        self._shape = shape
        self._prefix = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"system_fingerprint":%b,'
            b'"choices":[' % (dumps(shape.id), shape.created, dumps(shape.model), dumps(shape.fingerprint))
        )
        self._choices = [_ChunkChoice(i, self._prefix) for i in range(shape.choices)]
        self._reasoning = dumps(shape.reasoning_field)
        self._end = b',"usage":null}\n\n' if shape.include_usage else b"}\n\n"
        self._text_end = b"}" + _PLAIN_TAIL + self._end
        self._plain = shape.token_text is None and not shape.continuous_usage

    def write(self, delta: Delta) -> bytes:
        """The chunks of one Delta as one write; empty when it shows nothing."""
        self.tally.count(delta)
        choice = self._choices[delta.choice]
        end = self._end
        if self._plain and len(delta.events) == 1:  # most are the next characters of what is open
            event = delta.events[0]
            if type(event) is CallArguments and event.index == choice.call:
                choice.keep(event.text)
                return b"".join((choice.args_head, dumps(event.text), choice.args_end))
            if type(event) is Text and choice.text_open:
                return b"".join((choice.text_head, dumps(event.text), self._text_end))
        if self._shape.continuous_usage:
            end = b',"usage":%b}\n\n' % dumps(self.tally.usage())
        tail = _PLAIN_TAIL + end
        max_calls = self._shape.max_calls
        parts: list[bytes] = []
        logprobs = self._logprobs(parts, choice, delta, end)
        for event in delta.events:
            match event:
                case CallArguments(index, text):
                    if index < max_calls:
                        if index != choice.call:
                            choice.call = index
                            self.tally.argue()
                        choice.keep(text)
                        parts += choice.args_head, dumps(text), choice.args_tail, tail
                case Text(text):
                    if not choice.role_open:
                        self._open_role(parts, choice, _ROLE_TEXT, end)
                        choice.text_open = True
                    if logprobs:
                        parts += choice.text_head, dumps(text), logprobs, end
                        logprobs = b""
                    elif text or not choice.text_open:
                        parts += choice.text_head, dumps(text), b"}", tail
                    choice.text_open = True
                case Reasoning(text):
                    self._open_role(parts, choice, b'{"role":"assistant","content":null,%b:""}' % self._reasoning, end)
                    parts += choice.head, b"{", self._reasoning, b":", dumps(text), b"}", tail
                case CallStart(index):
                    if index < max_calls:
                        self._open_call(parts, choice, event, tail)
                case CallEnd(index):
                    if index < max_calls:
                        self.tally.end_call(choice.index)
                case Finish(reason):
                    self._finish(parts, choice, reason, end)
                case _:
                    assert_never(event)
        return b"".join(parts)

    def end(self) -> bytes:
        """The last chunk, with the usage when it was asked for."""
        self.tally.require_finished()
        if not self._shape.include_usage:
            return b""
        return b'%b],"usage":%b}\n\n' % (self._prefix, dumps(self.tally.usage()))

    def _open_role(self, parts: list[bytes], choice: _ChunkChoice, role: bytes, end: bytes) -> None:
        if choice.role_open:
            return
        choice.role_open = True
        empty = b'{"content":[],"refusal":null}' if self._shape.token_text is not None else b"null"
        parts += choice.head, role, b',"logprobs":', empty, b',"finish_reason":null}]', end

    def _open_call(self, parts: list[bytes], choice: _ChunkChoice, start: CallStart, tail: bytes) -> None:
        """The opening of a call carries the role when it is the first thing said."""
        if self._shape.token_text is not None:  # logprobs open with a chunk of their own
            self._open_role(parts, choice, _ROLE_NULL, tail[len(_PLAIN_TAIL) :])
        role = b"" if choice.role_open else b'"role":"assistant","content":null,'
        choice.role_open = choice.call_open = True
        choice.keep = self.tally.begin_call(choice.index, start.name).append
        name = dumps(start.name)
        if self._shape.legacy:
            parts += choice.head, b'{%b"function_call":{"name":%b,"arguments":""}}' % (role, name), tail
            choice.args_head = choice.head + _LEGACY_ARGUMENTS
            choice.args_tail = b"}}"
            choice.args_end = choice.args_tail + _PLAIN_TAIL + self._end
            return
        opening = b'{%b"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]}'
        parts += choice.head, opening % (role, start.index, dumps(new_id("call_")), name), tail
        choice.args_head = choice.head + b'{"tool_calls":[{"index":%d,"function":{"arguments":' % start.index
        choice.args_tail = b"}}]}"
        choice.args_end = choice.args_tail + _PLAIN_TAIL + self._end

    def _finish(self, parts: list[bytes], choice: _ChunkChoice, reason: FinishReason, end: bytes) -> None:
        if not choice.role_open:
            self._open_role(parts, choice, _ROLE_TEXT, end)
        elif not choice.text_open and not choice.call_open:  # reasoning alone: the text is there, and empty
            parts += choice.text_head, b'""}', _PLAIN_TAIL, end
        finish = self.tally.close(choice.index, reason).encode()
        parts += choice.head, b'{},"logprobs":null,"finish_reason":"%b"}]' % finish, end

    def _logprobs(self, parts: list[bytes], choice: _ChunkChoice, delta: Delta, end: bytes) -> bytes:
        """The tail that carries this Delta's logprobs on its first text; without text they get a chunk."""
        if not delta.logprobs or self._shape.token_text is None:
            return b""
        content = dumps(logprob_content(delta.logprobs, self._shape.token_text))
        logprobs = b'},"logprobs":{"content":%b,"refusal":null},"finish_reason":null}]' % content
        if any(type(event) is Text for event in delta.events):
            return logprobs
        self._open_role(parts, choice, _ROLE_NULL, end)
        parts += choice.head, b"{", logprobs, end
        return b""


class _AnswerChoice:
    """The message of one choice, as far as it came."""

    __slots__ = ("arguments", "calls", "logprobs", "reasoning", "text")

    def __init__(self) -> None:
        self.text: list[str] | None = None
        self.reasoning: list[str] | None = None
        self.calls: dict[int, str] = {}
        self.arguments: dict[int, list[str]] = {}
        self.logprobs: list[TokenLogprob] = []


class ChatAnswer:
    """The fold of the same Deltas: `write` each, then `end` gives the response at once."""

    def __init__(self, shape: Shape) -> None:
        self.tally = Tally(shape)
        self._shape = shape
        self._choices = [_AnswerChoice() for _ in range(shape.choices)]

    def write(self, delta: Delta) -> bytes:
        """Nothing yet."""
        self.tally.count(delta)
        choice = self._choices[delta.choice]
        if delta.logprobs:
            choice.logprobs += delta.logprobs
        max_calls = self._shape.max_calls
        for event in delta.events:
            match event:
                case Text(text):
                    if choice.text is None:
                        choice.text = []
                    choice.text.append(text)
                case Reasoning(text):
                    if choice.reasoning is None:
                        choice.reasoning = []
                    choice.reasoning.append(text)
                case Finish(reason):
                    self.tally.close(delta.choice, reason)
                case CallStart(index) | CallArguments(index) | CallEnd(index) if index >= max_calls:
                    pass
                case CallStart(index, name):
                    choice.calls[index] = name
                    choice.arguments[index] = self.tally.begin_call(delta.choice, name)
                case CallArguments(index, text):
                    choice.arguments[index].append(text)
                case CallEnd():
                    self.tally.end_call(delta.choice)
                case _:
                    assert_never(event)
        return b""

    def end(self) -> bytes:
        return dumps(self.response())

    def response(self) -> dict[str, Any]:
        self.tally.require_finished()
        shape = self._shape
        return {
            "id": shape.id,
            "object": "chat.completion",
            "created": shape.created,
            "model": shape.model,
            "choices": [self._choice(i, choice) for i, choice in enumerate(self._choices)],
            "usage": self.tally.usage(),
            "system_fingerprint": shape.fingerprint,
        }

    def _choice(self, index: int, choice: _AnswerChoice) -> dict[str, Any]:
        logprobs = None
        if self._shape.token_text is not None:
            logprobs = {"content": logprob_content(choice.logprobs, self._shape.token_text), "refusal": None}
        return {
            "index": index,
            "message": self._message(choice),
            "logprobs": logprobs,
            "finish_reason": self.tally.finish[index],
        }

    def _message(self, choice: _AnswerChoice) -> dict[str, Any]:
        content = None if choice.text is None and choice.calls else "".join(choice.text or ())
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if choice.reasoning is not None:
            message[self._shape.reasoning_field] = "".join(choice.reasoning)
        calls = [
            {"name": name, "arguments": "".join(choice.arguments[index])}
            for index, name in sorted(choice.calls.items())
        ]
        if calls and self._shape.legacy:
            message["function_call"] = calls[0]
        elif calls:
            message["tool_calls"] = [{"id": new_id("call_"), "type": "function", "function": call} for call in calls]
        return message
