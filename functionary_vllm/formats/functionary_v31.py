"""functionary-v3.1 (small/medium-v3.1): Llama-3.1 chat, calls as `<function=NAME>{json}</function>`.

Facts: MeetKai/functionary, prompt template v3-llama3.1 (the instruction text, its slips included, is what the models
were trained on). `<function=` is ordinary text, so only offered names make a call. Code goes after `<|python_tag|>`.
Models that think and answer in the same syntax (functionary_v4r, functionary_r1) differ in the prompt and in `think`.
"""

from __future__ import annotations

import json
from typing import ClassVar

from functionary_vllm.conversation import PYTHON, Conversation, Function, Message, python_code
from functionary_vllm.formats.base import Clues
from functionary_vllm.formats.functionary_v25 import Llama3Chat
from functionary_vllm.formats.prompt import Prompt, Special
from functionary_vllm.formats.reading.machine import Machine
from functionary_vllm.formats.reading.prose import Prose
from functionary_vllm.formats.reading.scanner import Reading
from functionary_vllm.formats.thinking import ThinkingFormat

PYTHON_TAG = "<|python_tag|>"
_INSTRUCTIONS = """
Think very carefully before calling functions.
If a you choose to call a function ONLY reply in the following format:
<{start_tag}={function_name}>{parameters}{end_tag}
where

start_tag => `<function`
parameters => a JSON dict with the function argument name as key and function argument value as value.
end_tag => `</function>`

Here is an example,
<function=example_function_name>{"example_name": "example_value"}</function>

Reminder:
- If looking for real time information use relevant functions before falling back to brave_search
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line

"""


class FunctionaryV31(ThinkingFormat, Llama3Chat):
    name = "functionary-v3.1"
    aliases: ClassVar[tuple[str, ...]] = ("v3.1", "v3-llama3.1")
    markers: ClassVar[tuple[str, ...]] = (PYTHON_TAG, *Llama3Chat.markers)
    stop: ClassVar[tuple[str, ...]] = (*Llama3Chat.stop, "<|eom_id|>")
    call_close = "</function>"
    call_begin = "<function="

    @classmethod
    def recognises(cls, clues: Clues) -> str | None:
        if tagged(clues) and "Reasoning Mode" not in clues.template:
            return "its chat template writes calls as <function=NAME> in Llama-3's turns"
        return None

    def call_open(self, name: str) -> str:
        return f"<function={name}>"

    def code_open(self) -> str:
        return PYTHON_TAG

    def render(self, conversation: Conversation) -> Prompt:
        environment = "Environment: ipython\n\n" if conversation.code_interpreter else "\n"
        about = [self.mode(conversation), environment, "Cutting Knowledge Date: December 2023\n\n"]
        parts = self.turn("system", *about, *described(conversation))
        for message in conversation.messages:
            parts += self._message(message)
        return self.prompt(parts, "", self.opened(conversation))

    def mode(self, conversation: Conversation) -> str:
        """What the prompt says of thinking, first of all."""
        return ""

    def _message(self, message: Message) -> list[str | Special]:
        if message.role != "assistant":
            return self.turn("ipython" if message.role == "tool" else message.role, message.content)
        content = self.answer(message)
        return self.turn("assistant", *content, end="<|eom_id|>" if message.calls else "<|eot_id|>") if content else []

    def answer(self, message: Message) -> list[str | Special]:
        parts = [*self.reasoned(message), *([message.content] if message.content else [])]
        for call in message.calls:
            if call.name == PYTHON:
                parts += [Special(PYTHON_TAG), python_code(call.arguments)]
            else:
                parts += [f"{self.call_open(call.name)}{call.arguments}{self.call_close}"]
        return parts

    def grammar(self, m: Machine) -> Reading[None]:
        # [thoughts] text ("<function=" name ">" json "</function>")* [PYTHON_TAG code]
        tag = m.alphabet.of(PYTHON_TAG)
        calls = {self.call_open(name): name for name in m.recipients}
        prose = Prose(m, (PYTHON_TAG, *calls), think=self.think, margin=self.thought_margin, gaps=())
        yield from prose.begin()
        while stop := (yield from prose.until_call()):
            if stop == tag:
                m.call(PYTHON)
                yield from m.copy_code()
                return
            m.call(calls[stop])
            yield from m.copy_arguments(self.call_close)
            yield from prose.resume()


def tagged(clues: Clues) -> bool:
    """Whether a chat template writes calls as `<function=NAME>` in Llama-3's turns, not in DeepSeek's."""
    template = clues.template
    return "<function=" in template and "<｜Assistant｜>" not in template and "<|start_header_id|>" in clues.tokens


def described(conversation: Conversation, instructions: str = _INSTRUCTIONS) -> list[str]:
    """The functions, and how to call them; empty where there are none."""
    if not conversation.functions:
        return []
    functions = [function.once(_describe) for function in conversation.functions]
    return ["\nYou have access to the following functions:\n\n", *functions, instructions]


def _describe(function: Function) -> str:
    definition = {**function.definition, "description": function.description, "parameters": function.parameters}
    about = json.dumps(definition, ensure_ascii=False)
    return f"Use the function '{function.name}' to '{function.description}'\n{about}\n\n"
