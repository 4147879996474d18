"""hermes: `<tool_call>` JSON in ChatML, as NousResearch Hermes, Qwen2.5 and Qwen3 write it, reasoning included.

Facts: Qwen2.5's chat template, MeetKai/functionary's qwen2.5-text-only. A call is
`<tool_call>\\n{"name": N, "arguments": {...}}\\n</tool_call>`, `\\n` between calls and before the first. `<tool_call>`
and `<think>` are tokens in Qwen's vocabulary and plain text elsewhere. A checkpoint whose own chat template speaks
this format renders with it (Qwen3 handles thinking there); others get Qwen2.5's layout on ChatML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

from functionary_vllm.conversation import Conversation, Function, Message
from functionary_vllm.formats.base import Clues
from functionary_vllm.formats.prompt import Special
from functionary_vllm.formats.reading.envelope import Envelope
from functionary_vllm.formats.reading.machine import Machine
from functionary_vllm.formats.reading.prose import Prose
from functionary_vllm.formats.reading.scanner import Reading
from functionary_vllm.formats.template import TemplateFormat

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_THINK, _THINK_END = "<think>", "</think>"
_INSTRUCTIONS = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    f"{_CALL}{_CALL_END} XML tags:\n{_CALL}\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n' + _CALL_END,
)


class Hermes(TemplateFormat):
    name = "hermes"
    aliases: ClassVar[tuple[str, ...]] = ("qwen2.5", "qwen3", "qwen2.5-text-only")
    markers: ClassVar[tuple[str, ...]] = (_CALL, _CALL_END, _THINK, _THINK_END, "<|im_start|>")
    stop: ClassVar[tuple[str, ...]] = ("<|im_end|>", "<|endoftext|>")
    call_close = f"}}\n{_CALL_END}"
    call_separator = "\n"
    call_gap = "\n"
    think = (_THINK, _THINK_END)
    call_begin = f"{_CALL}\n"
    turn_marks: ClassVar[tuple[str, str]] = ("<|im_start|>", "<|im_end|>")
    roles: ClassVar[Mapping[str, str]] = {"tool": "user"}  # names of roles, where they are others

    @classmethod
    def recognises(cls, clues: Clues) -> str | None:
        words = (_CALL, '"name"', '"arguments"')
        if all(word in clues.template for word in words) and "<function=" not in clues.template:
            return f"its chat template writes calls as JSON inside {_CALL}"
        return None

    def call_open(self, name: str) -> str:
        return f'{_CALL}\n{{"name": {json.dumps(name)}, "arguments": '

    def opened(self, conversation: Conversation) -> str:
        # Without the closing quote: quote and colon are one token in what the models were trained on.
        return super().opened(conversation).removesuffix('": ')

    # -- render --------------------------------------------------------------------------------------------------

    def lacks(self) -> str | None:
        return None  # without a template that speaks of calls, Qwen2.5's layout serves

    def written(self, conversation: Conversation) -> list[str | Special]:
        if _CALL in self.template:
            return super().written(conversation)
        messages = list(conversation.messages)
        system = (
            messages.pop(0).content if messages and messages[0].role == "system" else "You are a helpful assistant."
        )
        return [*self._turn("system", system + self.described(conversation)), *self.turns(messages)]

    def described(self, conversation: Conversation) -> str:
        """The functions, and how to call them; empty where there are none."""
        lines = [function.once(_line) for function in self.functions(conversation)]
        return "".join((_INSTRUCTIONS[0], *lines, _INSTRUCTIONS[1])) if lines else ""

    def turns(self, messages: Sequence[Message]) -> list[str | Special]:
        """These messages, and where the answer begins."""
        parts: list[str | Special] = []
        for i, message in enumerate(messages):
            if message.role != "tool":
                content = self.answer(message) if message.role == "assistant" else [message.content]
                parts += self._turn(message.role, *content)
                continue
            response = f"<tool_response>\n{message.content}\n</tool_response>"
            if i > 0 and messages[i - 1].role == "tool":  # results that follow one another share one turn
                parts[-2:-2] = ["\n", response]
            else:
                parts += self._turn("tool", response)
        return [*parts, *self._turn("assistant")[:2]]

    def _turn(self, role: str, *content: str | Special) -> list[str | Special]:
        begin, end = self.turn_marks
        return [Special(begin), f"{self.roles.get(role, role)}\n", *content, Special(end), "\n"]

    # -- grammar -------------------------------------------------------------------------------------------------

    def grammar(self, m: Machine) -> Reading[None]:
        # ["<think>" reasoning "</think>"] text (["\n"] "<tool_call>" envelope "</tool_call>")* text
        prose = Prose(m, [_CALL], think=self.think, margin=self.thought_margin)
        call_end = m.alphabet.of(_CALL_END)
        yield from prose.begin()
        while (yield from prose.until_call()):
            envelope = Envelope(m)
            yield from envelope.run()
            if not envelope.opened:
                prose.give_back("".join(envelope.read))
                continue
            yield from m.read_space()
            yield from m.choose(call_end)
            yield from prose.resume()


def _line(function: Function) -> str:
    return f"\n{json.dumps({'type': 'function', 'function': function.definition}, ensure_ascii=False)}"
