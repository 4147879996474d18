"""A dataset line (OpenAI's messages and tools) -> token ids, and which of them the model is to learn.

In: lines of JSONL as OpenAI's fine-tuning takes them, and any Format bound to its tokenizer. Out: Examples: ids with
the spans that the assistant wrote, each up to its stop token. A prompt is what the server would render, an answer
what the model would write after exactly those ids. Where a later prompt goes on after an answer token by token, all
turns are one Example (ChatML, functionary since v1); where a format writes its history otherwise than its answers
(v0, GLM, Mistral's, Qwen3.5's and others that drop thoughts, v1 with several calls), each is an Example of its own.
A line that cannot be read is an error that names file and line; one that is too long is counted, never cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from functionary_vllm.conversation import AUTO, NONE, Conversation, Message
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.formats.base import Format
from functionary_vllm.formats.prompt import Prompt, Special
from functionary_vllm.history import normalise
from functionary_vllm.offer import functions_from_legacy, functions_from_tools

Ids = NDArray[numpy.int32]


class BrokenLine(ValueError):
    """A line that is no conversation to learn from; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, the spans of them that are learned, and what the last span is an example of."""

    ids: Ids
    turns: tuple[tuple[int, int], ...]
    kind: str = ""


@dataclass(slots=True)
class Examples:
    """What a file holds, and how many conversations were refused for their length."""

    examples: list[Example] = field(default_factory=list)
    too_long: int = 0


def read_examples(path: Path, fmt: Format, max_length: int) -> Examples:
    """All examples of a file, in its order. Raises BrokenLine."""
    encoder, found = Encoder(fmt), Examples()
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if text.isspace():
                continue
            made = _read(encoder, text, f"{path}:{number}")
            if any(len(example.ids) > max_length for example in made):
                found.too_long += 1
            else:
                found.examples += made
    return found


def _read(encoder: Encoder, text: str, place: str) -> list[Example]:
    try:
        line = json.loads(text)
        if not isinstance(line, dict):
            raise BrokenLine(f"{place}: expected an object with 'messages'.")
        return encoder.encode(line)
    except InvalidRequest as error:
        where = f"{error.param}: " if error.param and error.param not in str(error) else ""
        raise BrokenLine(f"{place}: {where}{error}") from None
    except BrokenLine as error:
        raise BrokenLine(f"{place}: {error}") from None
    except ValueError as error:
        raise BrokenLine(f"{place}: no JSON: {error}") from None


class Encoder:
    """Lines -> Examples, in one format."""

    def __init__(self, fmt: Format) -> None:
        self._fmt = fmt
        self._stops: dict[bool, str] = {}

    def encode(self, line: Mapping[str, Any]) -> list[Example]:
        """Raises InvalidRequest for what the server would refuse too, BrokenLine where nothing is to be learned."""
        conversation = _conversation(line)
        learned = _learned(line["messages"])
        made: list[tuple[list[int], list[tuple[int, int]]]] = []
        for i, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            if not message.content and not message.calls:
                raise BrokenLine("an assistant message has neither content nor calls.")
            prompt = self._prompt(replace(conversation, messages=conversation.messages[:i]))
            before, answer = self._answer(prompt, conversation, i)
            if not made or made[-1][0] != before[: len(made[-1][0])]:
                made.append(([], []))
            ids, turns = made[-1]
            ids += before[len(ids) :]
            if next(learned):
                turns.append((len(ids), len(ids) + len(answer)))
            ids += answer
        kind = str(line.get("kind") or "")
        examples = [
            Example(numpy.array(ids[: turns[-1][1]], numpy.int32), tuple(turns), kind if n == len(made) else "")
            for n, (ids, turns) in enumerate(made, 1)
            if turns
        ]
        if not examples:
            raise BrokenLine("there is no assistant message to learn.")
        return examples

    def _prompt(self, conversation: Conversation) -> Prompt:
        """Answers have no thoughts here: a model that would begin with one is asked not to."""
        prompt = self._fmt.render(conversation)
        return self._fmt.render(replace(conversation, thinking=False)) if prompt.opened else prompt

    def _answer(self, prompt: Prompt, conversation: Conversation, at: int) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of the answer to it."""
        message, tokenizer = conversation.messages[at], self._fmt.tokenizer
        before = prompt.token_ids(tokenizer)
        parts = self._fmt.answer(message)
        stop = self._stops.get(bool(message.calls))
        if stop is None:
            stop = self._stops[bool(message.calls)] = self._stop(prompt, parts, conversation, at)
        answer = (*parts, Special(stop))
        whole = Prompt((*prompt.parts, *answer), joined=prompt.joined).token_ids(tokenizer)
        if whole[: len(before)] == before:
            return before, whole[len(before) :]
        # The answer's beginning runs into the prompt's end, where a model begins anew.
        return before, Prompt(answer, joined=prompt.joined).token_ids(tokenizer)

    def _stop(self, prompt: Prompt, answer: Sequence[str | Special], conversation: Conversation, at: int) -> str:
        """The stop token of such a turn: the one that the format writes after it in a history, else its first."""
        later = self._fmt.render(replace(conversation, messages=conversation.messages[: at + 1])).text
        written = Prompt((*prompt.parts, *answer)).text
        rest = later.removeprefix(written) if later.startswith(written) else ""
        stops = sorted(self._fmt.stop, key=len, reverse=True)
        return next((stop for stop in stops if rest.startswith(stop)), self._fmt.stop[0])


def _conversation(line: Mapping[str, Any]) -> Conversation:
    messages: tuple[Message, ...] = normalise(line.get("messages") or ())
    functions, code = functions_from_tools(line.get("tools"))
    functions = (*functions, *functions_from_legacy(line.get("functions")))
    parallel = line.get("parallel_tool_calls") is not False
    choice = AUTO if functions or code else NONE
    return Conversation(messages, functions, choice, parallel=parallel, code_interpreter=code)


def _learned(messages: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
    """Of each assistant message, whether it is learned: OpenAI's `weight` is 0 or 1."""
    return (message.get("weight") != 0 for message in messages if message["role"] == "assistant")
