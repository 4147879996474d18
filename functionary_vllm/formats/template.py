"""Formats whose models bring their own chat template: rendering, and what the prompt already says of thinking.

In: a Conversation, a tokenizer with a chat template. Out: a Prompt in which quoted special tokens stay text. Such a
format writes down only how its models answer (`answer`, `grammar`); the words of the prompt are the checkpoint's.
Refuses to know any family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from jinja2.exceptions import TemplateError

from functionary_vllm.conversation import Conversation, Message
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.formats.base import json_arguments
from functionary_vllm.formats.prompt import Prompt, Special, specials
from functionary_vllm.formats.thinking import ThinkingFormat

Aside = Callable[[str], str]


def chat_template(tokenizer: Any) -> str:
    """A tokenizer's chat template, of several the one that is used where there are tools; empty where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("tool_use") or template.get("default")
    return template if isinstance(template, str) else ""


class TemplateFormat(ThinkingFormat):
    """A format rendered with the checkpoint's own chat template.

    `thinks_unasked` is whether the model thinks wherever the prompt does not say that it has; else only where its
    template has a switch for it.
    """

    raw_code = False
    thinks_unasked: ClassVar[bool] = False

    @property
    def template(self) -> str:
        """The checkpoint's chat template; empty where there is none."""
        return chat_template(self.tokenizer)

    @property
    def templated(self) -> bool:
        """Whether the checkpoint says how its prompts are written: by a template, or by code of its tokenizer's own.

        vLLM gives such code to tokenizers of families that publish an encoder in place of a template.
        """
        method = getattr(type(self.tokenizer), "apply_chat_template", None)
        return bool(self.template) or (method is not None and not method.__module__.startswith("transformers."))

    def lacks(self) -> str | None:
        return None if self.templated else f"{self.name} renders with the model's chat template, and it has none."

    # -- render --------------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> Prompt:
        parts = self.written(conversation)
        begun, free = self.thoughts(conversation, parts)
        # A model that thinks first cannot have its call begun in the prompt; the constraint lets it think.
        opened = begun or ("" if free else self.opened(conversation))
        if not begun:
            parts = [*parts, *self._parts(opened)]
        return Prompt(tuple(parts), opened, self.stop)

    def written(self, conversation: Conversation) -> list[str | Special]:
        """The conversation up to where the answer begins, by the template."""
        quoted: list[str] = []
        pattern = specials(self.tokenizer)

        def aside(text: str) -> str:
            def put(found: re.Match[str]) -> str:
                quoted.append(found.group())
                return f"\ue000{len(quoted) - 1}\ue001"

            return pattern.sub(put, text)

        turns = self.history(conversation.messages, aside)
        tools = [{"type": "function", "function": f} for f in self.definitions(conversation, aside)] or None
        try:
            text = self._apply(turns, tools, conversation)
        except _REFUSALS as error:
            # Broken arguments of an earlier call must not end the conversation: the template may want an object.
            if not _as_objects(turns):
                raise InvalidRequest(_refusal(error), param="messages") from error
            try:
                text = self._apply(turns, tools, conversation)
            except _REFUSALS as again:
                raise InvalidRequest(_refusal(again), param="messages") from again
        pieces = re.split(f"({pattern.pattern})", text)
        return [
            Special(piece) if i % 2 else re.sub("\ue000(\\d+)\ue001", lambda n: quoted[int(n.group(1))], piece)
            for i, piece in enumerate(pieces)
            if piece
        ]

    def _apply(self, turns: list[dict[str, Any]], tools: list[Any] | None, conversation: Conversation) -> str:
        options = {"tokenize": False, "add_generation_prompt": True, **self.switches(conversation)}
        return str(self.tokenizer.apply_chat_template(turns, tools=tools, **options))  # type: ignore[union-attr]

    def switches(self, conversation: Conversation) -> dict[str, Any]:
        """What the template is told beside messages and tools. Both names for thinking are in use."""
        thinking = conversation.thinking
        return {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}

    def definitions(self, conversation: Conversation, aside: Aside = str) -> list[Any]:
        return [_deep(function.definition, aside) for function in self.functions(conversation)]

    def history(self, messages: Sequence[Message], aside: Aside) -> list[dict[str, Any]]:
        """Earlier messages as the chat template takes them."""
        return [self.turn(message, aside) for message in messages]

    def turn(self, message: Message, aside: Aside) -> dict[str, Any]:
        """A message as chat templates take it: arguments as an object where they are one."""
        turn: dict[str, Any] = {"role": message.role, "content": aside(message.content)}
        if message.reasoning:
            turn["reasoning_content"] = aside(message.reasoning)
        if message.calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _object(aside(json_arguments(call) or "{}"))},
                }
                for call in message.calls
            ]
        if message.role == "tool":
            turn |= {"name": message.name, "tool_call_id": message.call_id}
        return turn

    # -- thinking ------------------------------------------------------------------------------------------------

    def thoughts(self, conversation: Conversation, parts: list[str | Special]) -> tuple[str, bool]:
        """How the prompt begins the model's thoughts (empty: it does not), and whether the model is free to think."""
        if self.think is None:
            return "", False
        tail = "".join(part if isinstance(part, str) else part.text for part in parts[-6:])
        if begun := self.begun(tail):
            return begun, True
        closed = re.search(rf"{re.escape(self.think[1])}\s*\Z", tail)
        return "", not closed and self.may_think(conversation)

    def may_think(self, conversation: Conversation) -> bool:
        return self.thinks_unasked or (self._switched and conversation.thinking is not False)

    def begun(self, prompt: str) -> str:
        """The end of a rendered prompt that is the beginning of the answer already: thoughts that it opened."""
        found = self.think and re.search(rf"{re.escape(self.think[0])}\s*\Z", prompt)
        return found.group() if found else ""

    @property
    def _switched(self) -> bool:
        """Whether the template has a switch for thinking: then the model decides by itself, unless told."""
        return "thinking" in self.template


# What templates raise: by themselves, and where they meet a type that they did not expect.
_REFUSALS = (TemplateError, TypeError, ValueError, AttributeError, KeyError)


def _refusal(error: Exception) -> str:
    return f"The model's chat template refuses these messages: {error}"


def _as_objects(turns: list[dict[str, Any]]) -> bool:
    """Put arguments that are no JSON object into one; whether there were any."""
    functions = [call["function"] for turn in turns for call in turn.get("tool_calls", ())]
    broken = [function for function in functions if not isinstance(function["arguments"], dict)]
    for function in broken:
        function["arguments"] = {"arguments": function["arguments"]}
    return bool(broken)


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _deep(value: Any, change: Aside) -> Any:
    """`value` with all its strings changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_deep(item, change) for item in value]
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 -- asking for Mapping takes its time
        return {change(key): _deep(item, change) for key, item in value.items()}
    return value
