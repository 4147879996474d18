"""Token ids of one choice to events: detokenizer, machine and stop strings in a row.

In: ids by `feed`, the end by `finish`. Out: events whose concatenation does not depend on how the ids were grouped.
It is `done` when a stop token, a stop string or the last call allowed was met; the caller then stops the engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from functionary_vllm.detokenizer import Alphabet, Detokenizer, StopStrings
from functionary_vllm.events import CallArguments, CallEnd, Event, Text
from functionary_vllm.formats.reading.machine import Machine, Offered

_NEVER = re.compile(r"(?!)")


class Readable(Protocol):
    """What a decoder needs of a format."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def alphabet(self) -> Alphabet: ...
    @property
    def ends(self) -> re.Pattern[str]: ...
    def machine(self, offered: Offered) -> Machine: ...


class Decoder:
    """Reads one choice. `stops` are stop strings; `max_calls` ends the answer after so many whole calls."""

    def __init__(
        self,
        fmt: Readable,
        offered: Offered,
        opened: str = "",
        *,
        stops: Sequence[str] = (),
        max_calls: int | None = None,
    ) -> None:
        self.machine = fmt.machine(offered)
        self._detokenizer = Detokenizer(fmt.alphabet) if fmt.tokenizer is not None else None
        self._end = fmt.ends
        self._max_calls = max_calls
        self._stops = StopStrings(stops) if stops else None
        self._last: Text | CallArguments | None = None  # what the text held by _stops belongs to
        self.done = False
        before = fmt.alphabet.of(opened)
        self._opening = self.machine.feed(before) if before else []
        self._received = len(before)
        self._selects = bool(self._opening or stops or max_calls)

    def ignore_ends(self) -> None:
        """Read on after a stop token, which says nothing then."""
        self._end = _NEVER

    @property
    def received(self) -> int:
        """Characters received so far, `opened` included: the scale of `Text.start`."""
        return self._received

    @property
    def pending(self) -> bool:
        """Whether the last token left an unfinished character."""
        return self._detokenizer is not None and self._detokenizer.pending

    def feed(self, token_ids: Sequence[int]) -> list[Event]:
        """What these tokens made sure. Once `done`, tokens are ignored."""
        if self._detokenizer is None:
            raise ValueError("a decoder of token ids needs a format with a tokenizer")
        return [] if self.done else self.feed_text(self._detokenizer.feed(token_ids))

    def feed_text(self, text: str) -> list[Event]:
        """The same for text whose markers are private characters (`Alphabet.of`)."""
        if self.done:
            return []
        end = None
        events = self.machine.pass_on(text)
        if events is None:
            end = self._end.search(text)
            if end:
                text = text[: end.start()]
            events = self.machine.feed(text)
        self._received += len(text)
        if self._selects:
            events = self._pass(events)
        return events + self.finish() if end else events

    def finish(self, *, cut: bool = False) -> list[Event]:
        """The end of the answer; `cut` says that the model was not done."""
        if self.done:
            return []
        events = self._pass(self._remainder(cut=cut))
        if not self.done:
            events += self._release()
        self.done = True
        return events

    def _remainder(self, *, cut: bool) -> list[Event]:
        rest = self._detokenizer.finish() if self._detokenizer is not None else ""
        if cut:  # half a character, as half a marker, stays unsaid
            rest = rest.rstrip("\ufffd")
        self._received += len(rest)
        last = self.machine.feed(rest) if rest else []
        return last + self.machine.finish(cut=cut)

    def _pass(self, events: list[Event]) -> list[Event]:
        if self._opening:
            events, self._opening = self._opening + events, []
        if self._stops is None and self._max_calls is None:
            self._selects = False
            return events
        passed: list[Event] = []
        for event in events:
            if self._stops is not None and isinstance(event, Text | CallArguments):
                passed += self._until_stop(self._stops, event)
            else:
                passed += self._release()
                if not self.done:
                    passed.append(event)
            if isinstance(event, CallEnd) and event.index + 1 == self._max_calls:
                self.done = True
            if self.done:
                break
        return passed

    def _until_stop(self, stops: StopStrings, event: Text | CallArguments) -> list[Event]:
        # A stop string counts within one text or one call's arguments, never across markup.
        passed = [] if self._last is None or _same_place(self._last, event) else self._release()
        if self.done:
            return passed
        held = len(stops.held)
        text, self.done = stops.feed(event.text)
        self._last = event
        return [*passed, _shifted(event, text, -held)] if text else passed

    def _release(self) -> list[Event]:
        last, self._last = self._last, None
        if last is None or self._stops is None:
            return []
        held = len(self._stops.held)
        text, self.done = self._stops.finish()
        return [_shifted(last, text, len(last.text) - held)] if text else []


def _same_place(one: Text | CallArguments, other: Text | CallArguments) -> bool:
    if isinstance(one, CallArguments) and isinstance(other, CallArguments):
        return one.index == other.index
    return isinstance(one, Text) and isinstance(other, Text)


def _shifted(event: Text | CallArguments, text: str, by: int) -> Event:
    return Text(text, event.start + by) if isinstance(event, Text) else CallArguments(event.index, text)
