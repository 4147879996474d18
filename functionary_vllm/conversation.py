"""What was asked, as pure values: the meeting point of the API and the formats.

The API builds a Conversation out of a request: `history.normalise` makes the messages, `offer` the functions and the
choice. Whatever generation of OpenAI's API the client speaks, messages have one shape here: four roles, string
content, calls with ids, results in the order of their calls. Refuses to know prompts, tokens, JSON Schema and HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

Made = TypeVar("Made")

Role = Literal["system", "user", "assistant", "tool"]
PYTHON = "python"  # the recipient that the code interpreter is offered as


@dataclass(frozen=True, slots=True)
class Call:
    """A call in the history. `arguments` is the text as it came: JSON, broken JSON, raw code or empty."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `name` and `call_id` are set for role tool; `calls` and `reasoning` only for role assistant."""

    role: Role
    content: str
    name: str | None = None
    call_id: str | None = None
    calls: tuple[Call, ...] = ()
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function offered. `definition` holds its name, description and parameters, in the order they were given.

    Nobody changes it: clients offer the same functions again and again, and are given the same Function.
    """

    definition: Mapping[str, Any]
    strict: bool = False
    _made: dict[Callable[[Function], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return str(self.definition["name"])

    @property
    def description(self) -> str:
        return self.definition.get("description") or ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON Schema of the arguments; empty when none was given."""
        return self.definition.get("parameters") or {}

    def once(self, make: Callable[[Function], Made]) -> Made:
        """`make(self)`, made the first time only. It may depend on nothing else, so `make` is a module's function."""
        if make not in self._made:
            self._made[make] = make(self)
        made: Made = self._made[make]
        return made


@dataclass(frozen=True, slots=True)
class Choice:
    """What the model may do. `name` is set for mode named."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


AUTO = Choice("auto")
NONE = Choice("none")
REQUIRED = Choice("required")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request without its sampling. Without functions and code interpreter, `choice` is NONE."""

    messages: tuple[Message, ...]
    functions: tuple[Function, ...] = ()
    choice: Choice = NONE
    parallel: bool = True
    code_interpreter: bool = False
    thinking: bool | None = None  # None: as the model does by itself
    response_schema: Mapping[str, Any] | bool | None = None  # JSON Schema of the text answer

    def narrowed(self, *, keep_tools: bool = False) -> Conversation:
        """What the model is to see: nothing that it may not call. `keep_tools`: where it may call none, still all."""
        match self.choice.mode:
            case "none" if keep_tools:
                return self
            case "none":
                return replace(self, functions=(), code_interpreter=False)
            case "named":
                named = tuple(function for function in self.functions if function.name == self.choice.name)
                return replace(self, functions=named, code_interpreter=self.code_interpreter and not named)
            case _:
                return self


def python_code(arguments: str) -> str:
    """The raw code of a call to the code interpreter, which clients may have sent as `{"code": ...}`."""
    value = _json_object(arguments)
    code = value.get("code") if value is not None and len(value) == 1 else None
    return unicode_text(code) if isinstance(code, str) else arguments


def python_json(arguments: str) -> str:
    """The reverse: raw code as `{"code": ...}`. Arguments that have this shape already stay as they came."""
    value = _json_object(arguments)
    if value is not None and isinstance(value.get("code"), str):
        return arguments
    return json.dumps({"code": arguments}, ensure_ascii=False)


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unicode_text(text: str) -> str:
    """`text` without halves of surrogate pairs, which JSON can carry (`"\\ud83d"`) and tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
