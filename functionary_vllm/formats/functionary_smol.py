"""functionary-smol, the built-in model: ChatML, definitions in TypeScript, calls after the token `<|function_call|>`.

An answer is `text`, or `<|function_call|>NAME\\n{json}` once or more with `\\n` between, or text, `\\n` and calls. The
definitions are a system turn of their own, before all messages; a result is a turn of `function name=NAME`. Without
definitions and without a system message, SmolLM2's own one stands first: plain chat is what the base was trained on.
"""

from __future__ import annotations

from functionary_vllm.conversation import Conversation, Message
from functionary_vllm.formats.base import Clues, Format
from functionary_vllm.formats.prompt import Prompt, Special
from functionary_vllm.formats.reading.machine import Machine
from functionary_vllm.formats.reading.scanner import Reading
from functionary_vllm.schema import typescript

CALL = "<|function_call|>"
SYSTEM_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class FunctionarySmol(Format):
    name = "functionary-smol"
    aliases = ("smol",)
    markers = (CALL, "<|im_start|>")
    stop = ("<|im_end|>",)
    raw_code = False
    call_begin = CALL
    call_separator = "\n"
    call_gap = "\n"

    @classmethod
    def recognises(cls, clues: Clues) -> str | None:
        return f"it has the token {CALL}" if CALL in clues.tokens else None

    def call_open(self, name: str) -> str:
        return f"{CALL}{name}\n"

    def render(self, conversation: Conversation) -> Prompt:
        messages = conversation.messages
        parts: list[str | Special] = []
        if functions := self.functions(conversation):
            parts += self._turn("system", typescript(functions))
        elif not messages or messages[0].role != "system":
            parts += self._turn("system", SYSTEM_MESSAGE)
        for message in messages:
            parts += self._message(message)
        opened = self.opened(conversation)
        return Prompt((*parts, *self._turn("assistant")[:2], *self._parts(opened)), opened, self.stop)

    def _message(self, message: Message) -> list[str | Special]:
        match message.role:
            case "assistant":
                return self._turn("assistant", *self.answer(message))
            case "tool":
                return self._turn(f"function name={message.name}", message.content)
            case _:
                return self._turn(message.role, message.content)

    def _turn(self, role: str, *content: str | Special) -> list[str | Special]:
        return [Special("<|im_start|>"), f"{role}\n", *content, Special("<|im_end|>"), "\n"]

    def grammar(self, m: Machine) -> Reading[None]:
        # text (["\n"] CALL name "\n" json)* text
        if not m.calls:
            return
        call = m.alphabet.of(CALL)
        marks = (f"\n{call}", call)
        while stop := (yield from m.copy_until(m.text, *marks)):
            while stop:
                name, end = yield from m.read_until(256, "\n", call)
                if end == "\n" and name.strip():
                    m.call(name.strip())
                    stop = yield from m.copy_arguments(*marks)
                    continue
                if end == call:  # the next one may be a call
                    m.unread(call)
                    end = None
                m.give_back(m.text, stop + name + (end or ""))
                stop = None
