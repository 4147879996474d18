"""hermes: `<tool_call>` JSON in ChatML, as NousResearch Hermes, Qwen2.5 and Qwen3 write it, reasoning included.

Facts: Qwen2.5's chat template, MeetKai/functionary's qwen2.5-text-only. A call is
`<tool_call>\\n{"name": N, "arguments": {...}}\\n</tool_call>`, `\\n` between calls and before the first. `<tool_call>`
and `<think>` are tokens in Qwen's vocabulary and plain text elsewhere. A checkpoint whose own chat template speaks
this format renders with it (Qwen3 handles thinking there); others get Qwen2.5's layout on ChatML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from jinja2.exceptions import TemplateError

from functionary_vllm.conversation import Call, Conversation, Message
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.formats import constraint as rule
from functionary_vllm.formats.base import Format, json_arguments
from functionary_vllm.formats.constraint import Element
from functionary_vllm.formats.envelope import Envelope
from functionary_vllm.formats.machine import Machine
from functionary_vllm.formats.prompt import Prompt, Special, specials
from functionary_vllm.formats.scanner import Reading, Sink

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_THINK, _THINK_END = "<think>", "</think>"
_INSTRUCTIONS = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    f"{_CALL}{_CALL_END} XML tags:\n{_CALL}\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n' + _CALL_END,
)


class Hermes(Format):
    name = "hermes"
    aliases = ("qwen2.5", "qwen3", "qwen2.5-text-only")
    markers = (_CALL, _CALL_END, _THINK, _THINK_END, "<|im_start|>")
    stop = ("<|im_end|>", "<|endoftext|>")
    call_close = f"}}\n{_CALL_END}"
    call_separator = "\n"
    raw_code = False
    call_begin = f"{_CALL}\n"

    def call_open(self, name: str) -> str:
        return f'{_CALL}\n{{"name": {json.dumps(name)}, "arguments": '

    def opened(self, conversation: Conversation) -> str:
        # Without the closing quote: quote and colon are one token in what the models were trained on.
        return super().opened(conversation).removesuffix('": ')

    # -- render --------------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> Prompt:
        template = getattr(self.tokenizer, "chat_template", None)
        own = isinstance(template, str) and _CALL in template
        parts = self._by_template(conversation) if own else self._by_chatml(conversation)
        thinking = self._thinking(parts)
        # A model that thinks first cannot have its call begun in the prompt; the constraint lets it think.
        opened = f"{_THINK}\n" if thinking == "begun" else self.opened(conversation) if not thinking else ""
        if thinking != "begun":
            parts = [*parts, *self._parts(opened)]
        return Prompt(tuple(parts), opened, self.stop)

    def rule(self, conversation: Conversation, opened: str, exact: frozenset[str]) -> Element | None:
        begun = opened.startswith(_THINK)
        element = super().rule(conversation, "" if begun else opened, exact)
        free_text = conversation.choice.mode == "auto" and conversation.response_schema is None
        if element is None or free_text:
            return element
        # Thinking is not bound by the rule; it begins after it.
        gap = rule.constant("\n\n")
        if begun:
            return rule.sequence(rule.tag(rule.constant(""), rule.ANY_TEXT, _THINK_END), gap, element)
        if opened or not self._hybrid or conversation.thinking is False:
            return element
        thought = rule.tag(rule.constant(_THINK), rule.ANY_TEXT, _THINK_END)
        return rule.sequence(rule.optional(rule.sequence(thought, gap)), element)

    @property
    def _hybrid(self) -> bool:
        """Whether the model decides by itself to think, unless told."""
        return "enable_thinking" in (getattr(self.tokenizer, "chat_template", None) or "")

    def _thinking(self, parts: list[str | Special]) -> str:
        """What the rendered prompt says of thinking: "begun", "free" (the model decides) or ""."""
        end = "".join(part if isinstance(part, str) else part.text for part in parts[-6:])
        if re.search(rf"{_THINK}\s*\Z", end):
            return "begun"
        return "free" if self._hybrid and not re.search(rf"{_THINK_END}\s*\Z", end) else ""

    def _by_template(self, conversation: Conversation) -> list[str | Special]:
        """The checkpoint's own template. Special tokens quoted in messages are put aside and come back as text."""
        assert self.tokenizer is not None
        quoted: list[str] = []
        pattern = specials(self.tokenizer)

        def aside(text: str) -> str:
            def put(found: re.Match[str]) -> str:
                quoted.append(found.group())
                return f"\ue000{len(quoted) - 1}\ue001"

            return pattern.sub(put, text)

        options = {} if conversation.thinking is None else {"enable_thinking": conversation.thinking}
        try:
            text = self.tokenizer.apply_chat_template(
                [_message(message, aside) for message in conversation.messages],
                tools=[{"type": "function", "function": f} for f in self._definitions(conversation)] or None,
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except TemplateError as error:
            reason = f"The model's chat template refuses these messages: {error}"
            raise InvalidRequest(reason, param="messages") from error
        pieces = re.split(f"({pattern.pattern})", text)
        return [
            Special(piece) if i % 2 else re.sub("\ue000(\\d+)\ue001", lambda n: quoted[int(n.group(1))], piece)
            for i, piece in enumerate(pieces)
            if piece
        ]

    def _by_chatml(self, conversation: Conversation) -> list[str | Special]:
        messages = list(conversation.messages)
        system = (
            messages.pop(0).content if messages and messages[0].role == "system" else "You are a helpful assistant."
        )
        definitions = self._definitions(conversation)
        if definitions:
            lines = [f"\n{json.dumps({'type': 'function', 'function': d}, ensure_ascii=False)}" for d in definitions]
            system = "".join((system, _INSTRUCTIONS[0], *lines, _INSTRUCTIONS[1]))
        parts = self._turn("system", system)
        for i, message in enumerate(messages):
            if message.role != "tool":
                content = self._answer(message) if message.role == "assistant" else message.content
                parts += self._turn(message.role, content)
                continue
            response = f"<tool_response>\n{message.content}\n</tool_response>"
            if i > 0 and messages[i - 1].role == "tool":  # results that follow one another share one turn
                parts[-2:-2] = ["\n", response]
            else:
                parts += self._turn("user", response)
        return [*parts, Special("<|im_start|>"), "assistant\n"]

    def _definitions(self, conversation: Conversation) -> list[dict[str, Any]]:
        return [dict(function.definition) for function in self.functions(conversation)]

    def _answer(self, message: Message) -> str:
        """An assistant turn: its text, then its calls with their arguments as they came."""
        calls = [f"{self.call_open(call.name)}{_json(call)}{self.call_close}" for call in message.calls]
        return self.call_separator.join([message.content, *calls] if message.content else calls)

    def _turn(self, role: str, content: str) -> list[str | Special]:
        return [Special("<|im_start|>"), f"{role}\n", content, Special("<|im_end|>"), "\n"]

    # -- grammar -------------------------------------------------------------------------------------------------

    def grammar(self, m: Machine) -> Reading[None]:
        # ["<think>" reasoning "</think>"] text (["\n"] "<tool_call>" envelope "</tool_call>")* text
        think, think_end, call, call_end = map(m.alphabet.of, (_THINK, _THINK_END, _CALL, _CALL_END))
        calls = (call, f"\n{call}") if m.calls else ()
        ends = (think_end, f"\n{think_end}")
        space = yield from m.read_space()
        thinking = bool((yield from m.choose(think)))
        sink: Sink = m.reasoning if thinking else m.text
        if thinking:
            yield from m.choose("\n")
        elif (yield from m.peek()) != call[0] or not m.calls:
            m.give_back(m.text, space)
        while stop := (yield from m.copy_until(sink, *calls, *(ends if thinking else ()))):
            if stop in ends:
                sink, thinking = m.text, False
                yield from m.read_space()
                continue
            envelope = Envelope(m)
            yield from envelope.run()
            if not envelope.opened:
                m.give_back(sink, stop + "".join(envelope.read))
                continue
            yield from m.read_space()
            yield from m.choose(call_end)
            space = yield from m.read_space()
            following = yield from m.peek()
            if following and following != call[0]:
                m.give_back(sink, space)


def _json(call: Call) -> str:
    return json_arguments(call) or "{}"


def _message(message: Message, aside: Callable[[str], str]) -> dict[str, Any]:
    """A message as chat templates take it: arguments as an object where they are one."""
    turn: dict[str, Any] = {"role": message.role, "content": aside(message.content)}
    if message.reasoning:
        turn["reasoning_content"] = aside(message.reasoning)
    if message.calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _object(aside(_json(call)))},
            }
            for call in message.calls
        ]
    if message.role == "tool":
        turn |= {"name": message.name, "tool_call_id": message.call_id}
    return turn


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
