"""The machine under every grammar: a scanner whose sinks are events.

In: text by `feed`, the end by `finish`; a grammar drives it. Out: events, neighbours of one kind joined, so that one
engine step gives the fewest. Total: when a grammar ends early, the rest is text. Refuses to know any format's markers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from functionary_vllm.conversation import PYTHON, Function
from functionary_vllm.detokenizer import PRIVATE, Alphabet
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text
from functionary_vllm.formats.reading.scanner import Reading, Scanner, Sink

Kind = type[Text] | type[Reasoning] | type[CallArguments]
PythonArguments = Literal["json", "raw"]


@dataclass(frozen=True, slots=True)
class ReadingPolicy:
    """What the operator decided about calls that a model should not have made as it did.

    A call of a function that was not on offer is passed on, shown as text, or an error (which the pipeline raises).
    A call that begins inside the model's thoughts is a call, or a thought like any other. Where no call may be made,
    the tools may stay in the prompt, and the engine is kept from beginning a call.
    """

    unknown_function: Literal["pass", "text", "error"] = "pass"
    calls_in_reasoning: bool = True
    none_keeps_tools: bool = False


PERMISSIVE = ReadingPolicy()


@dataclass(frozen=True, slots=True)
class Offered:
    """What was offered to the model.

    `names` are the functions, `calls` is whether calls may be made at all. Where the code interpreter is on offer,
    `python` says how its code goes out: as a JSON object {"code": ...} or raw. `schemas` are the JSON Schemas of the
    functions' arguments by name, for formats whose values have no types of their own.
    """

    names: tuple[str, ...] = ()
    calls: bool = True
    python: PythonArguments | None = None
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    reading: ReadingPolicy = PERMISSIVE

    @staticmethod
    def of(functions: Iterable[Function], **options: Any) -> Offered:
        """These functions, schemas included; `options` are the other fields."""
        schemas = {function.name: function.parameters for function in functions}
        return Offered(tuple(schemas), schemas=schemas, **options)


class Machine(Scanner):
    """Reads one choice."""

    def __init__(self, alphabet: Alphabet, offered: Offered = Offered()) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.recipients = offered.names if offered.python is None else (*offered.names, PYTHON)
        self.calls = offered.calls
        self.python = offered.python
        self.schemas = offered.schemas
        self.calls_in_reasoning = offered.reading.calls_in_reasoning
        self.quotes = False  # whether special tokens in thoughts and in strings are quoted, and so are written out
        self.unknown_calls = 0  # calls of functions that were not on offer
        self._unknown_as_text = offered.reading.unknown_function == "text"
        self._events: list[Event] = []
        self._kind: Kind | None = None
        self._parts: list[str] = []
        self._start = 0
        self._next = 0
        self._call = -1
        self._name = ""
        self._argued = False
        self._as_text = False
        self._reading: Generator[None, None, None] | None = None

    # -- driving -------------------------------------------------------------------------------------------------

    def run(self, grammar: Callable[[Machine], Reading[None]]) -> None:
        """Start the grammar; what it does not read is text."""

        def whole() -> Reading[None]:
            yield from grammar(self)
            yield from self.copy_rest(self.text)

        self._reading = whole()
        self._advance()

    def feed(self, text: str) -> list[Event]:
        self._quiet = None
        self.append(text)
        self._advance()
        return self._take()

    def pass_on(self, text: str) -> list[Event] | None:
        """The events of text in which the grammar has nothing to do, as of most tokens; None for any other text."""
        quiet = self._quiet
        if quiet is None or not quiet(text):
            return None
        if not text:
            return []
        start = self.offset
        self._base += len(text)
        sink = self._quiet_sink
        if sink == self.arguments and not self._as_text:  # the longest, by the shortest way
            self._argued = True
            return [CallArguments(self._call, text)]
        if sink is not None:
            sink(text, start)
        return self._take()

    def finish(self, *, cut: bool = False) -> list[Event]:
        """End the stream. `cut` says that the model had not finished."""
        self.close(cut=cut)
        self._advance()
        return self._take()

    def _advance(self) -> None:
        if self._reading is not None and next(self._reading, self) is self:
            self._reading = None

    def _take(self) -> list[Event]:
        self._flush()
        events, self._events = self._events, []
        return events

    # -- sinks ---------------------------------------------------------------------------------------------------

    def text(self, text: str, start: int) -> None:
        self._say(Text, text, start)

    def reasoning(self, text: str, start: int) -> None:
        self._say(Reasoning, text, start)

    def arguments(self, text: str, start: int) -> None:
        self._argued = True
        self._say(Text if self._as_text else CallArguments, text, start)

    def call(self, name: str) -> None:
        """Open a call: its name is sure."""
        name = self.alphabet.spell(name)
        unknown = name not in self.recipients
        self.unknown_calls += unknown
        self._as_text = unknown and self._unknown_as_text
        if self._as_text:
            self._argued = False
            self._say(Text, f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ', self.offset)
            return
        self._flush()
        self._call += 1
        self._name = name
        self._argued = False
        self._events.append(CallStart(self._call, name))

    def call_end(self) -> None:
        """Close the open call; an empty one gets an empty object."""
        if not self._argued:
            self.arguments("{}", self.offset)
        if self._as_text:
            self._as_text = False
            self._say(Text, "}", self.offset)
            return
        self._flush()
        self._events.append(CallEnd(self._call))

    def give_back(self, sink: Sink, text: str) -> None:
        """Release text that was consumed just before the cursor as markup, and is none.

        At the end of a cut stream it is markup cut short, and stays unsaid.
        """
        if text and not (self.cut and self._at == len(self._buffer)):
            sink(text, self.offset - len(text))

    def _say(self, kind: Kind, text: str, start: int) -> None:
        if not text.isascii() and PRIVATE.search(text):
            quoted = self.quotes and kind is not Text
            text = self.alphabet.quote(text) if quoted else self.alphabet.spell(text)
            if not text:
                return
        # Text remembers where it stood: only what stood together may be joined.
        if kind is not self._kind or (kind is Text and start != self._next):
            self._flush()
            self._kind, self._start = kind, start
        self._parts.append(text)
        self._next = start + len(text)

    def _flush(self) -> None:
        if self._kind is None:
            return
        text = "".join(self._parts)
        if self._kind is Text:
            self._events.append(Text(text, self._start))
        elif self._kind is Reasoning:
            self._events.append(Reasoning(text))
        else:
            self._events.append(CallArguments(self._call, text))
        self._kind = None
        self._parts.clear()

    # -- what many grammars share --------------------------------------------------------------------------------

    def offers_code(self, name: str) -> bool:
        """Whether `name` is the code interpreter's recipient, and not a function that happens to be called so."""
        return name == PYTHON and self.python is not None

    def copy_object(self) -> Reading[bool]:
        """Copy a JSON object as the arguments of the open call, and end the call at its closing brace.

        Code that is wanted raw is taken out of {"code": "..."}.
        """
        if self.python == "raw" and self.offers_code(self._name):
            return (yield from self._copy_code_object())
        return (yield from self._copy_whole_object())

    def _copy_whole_object(self) -> Reading[bool]:
        whole = yield from self.copy_json(self.arguments, quotes=self.quotes)
        if whole:
            self.call_end()
        return whole

    def copy_arguments(self, *ends: str) -> Reading[str | None]:
        """Copy the arguments of the open call and what closes it; which of `ends` was consumed, if any.

        JSON ends at its own closing brace, white space and one of `ends` may follow. Anything else runs up to one of
        `ends`, as the model wrote it. No arguments at all are an empty object.
        """
        yield from self.read_space()
        if (yield from self.peek()) == "{":
            if not (yield from self.copy_object()):
                return None
            space = yield from self.read_space()
            end = yield from self.choose(*ends)
            if end is None and (yield from self.peek()):
                self.give_back(self.text, space)
            return end
        end = yield from self.copy_until(self.arguments, *ends)
        if end is not None or not (self._argued or self.cut):
            self.call_end()
        return end

    def copy_code(self, *ends: str) -> Reading[str | None]:
        """Copy the raw code of a `python` call up to one of `ends`, and end the call; which end was consumed.

        The end of the stream ends it too, as raw code has no closing marker, unless the stream was cut.
        """
        wrapped = self.python != "raw"
        if wrapped:
            self.arguments('{"code": "', self.offset)
        end = yield from self.copy_until(self._code_as_json if wrapped else self.arguments, *ends)
        if end is not None or not self.cut:
            if wrapped:
                self.arguments('"}', self.offset)
            self.call_end()
        return end

    def _copy_code_object(self) -> Reading[bool]:
        """The code inside {"code": "..."}; any other object goes out as it stands."""
        head = ""
        for literal in ("{", '"code"', ":", '"'):
            head += yield from self.read_space()
            if not (yield from self.choose(literal)):
                self.unread(head)
                return (yield from self._copy_whole_object()) if head.startswith("{") else False
            head += literal
        if not (yield from self.copy_string(self.arguments)):
            return False
        yield from self.read_space()
        if not (yield from self.choose("}")):
            return False
        self.call_end()
        return True

    def _code_as_json(self, code: str, start: int) -> None:
        self.arguments(json.dumps(code, ensure_ascii=False)[1:-1], start)
