"""A reader over text that arrives in pieces: the primitives that grammars are written with.

In: text by `feed`, the end by `finish`. Out: calls of sinks, in order, each character once. A grammar is a generator
over these primitives, where a bare `yield` means "I need more"; where it stands is all the state there is. Held back
is only the longest suffix that may begin a marker. Refuses to know formats and events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from functionary_vllm.detokenizer import ADDED, SPECIAL

T = TypeVar("T")
Reading = Generator[None, None, T]
Sink = Callable[[str, int], None]  # the text, and the offset of its first character in the whole stream

Quiet = Callable[[str], object]  # true for a piece of text in which a grammar would find nothing

_TELLING = re.compile(f"[{SPECIAL}{ADDED}]")
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_IN_STRING = re.compile(f'["\\\\{SPECIAL}]')
_IN_QUOTING_STRING = re.compile(r'["\\]')
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PLAIN_STRING = re.compile(rf'[^"\\{SPECIAL}]*')


class Scanner:
    """The buffer and the place in it. Offsets count characters since the start of the stream."""

    def __init__(self) -> None:
        self._buffer = ""
        self._at = 0
        self._base = 0
        self._closed = False
        self._quiet: Quiet | None = None
        self._quiet_sink: Sink | None = None
        self.cut = False

    def append(self, text: str) -> None:
        self._base += self._at
        self._buffer = self._buffer[self._at :] + text if self._at < len(self._buffer) else text
        self._at = 0

    def _quietly(self, quiet: Quiet, sink: Sink) -> None:
        """Before a `yield`: a piece that is `quiet` goes to the sink as it is, and changes nothing here."""
        if self._at == len(self._buffer):
            self._quiet, self._quiet_sink = quiet, sink

    def close(self, *, cut: bool) -> None:
        """End the stream. `cut` says that its writer was not done: half a marker at the end is then still markup."""
        self._closed = True
        self.cut = cut

    @property
    def offset(self) -> int:
        """Characters consumed so far."""
        return self._base + self._at

    def _emit(self, sink: Sink, end: int) -> None:
        if end > self._at:
            sink(self._buffer[self._at : end], self._base + self._at)
            self._at = end

    def unread(self, text: str) -> None:
        """Take back text that was consumed just before the cursor."""
        start = self._at - len(text)
        if start >= 0 and self._buffer.startswith(text, start):
            self._at = start
            return
        self._base = self.offset - len(text)
        self._buffer = text + self._buffer[self._at :]
        self._at = 0

    # -- text ----------------------------------------------------------------------------------------------------

    def copy_until(self, sink: Sink, *markers: str, halves: bool = True) -> Reading[str | None]:
        """Copy text up to the first of the markers, consume that and return it; None at the end of the stream.

        `halves` is whether half a marker at the end of a cut stream goes out as text.
        """
        table = _markers(markers)
        while True:
            found = table.pattern.search(self._buffer, self._at)
            held_from = len(self._buffer) if self._closed else table.held_from(self._buffer, self._at)
            if found and found.start() <= held_from:
                self._emit(sink, found.start())
                self._at = found.end()
                return found.group()
            if self.cut and not halves:
                self._emit(sink, table.held_from(self._buffer, self._at))
                self._at = len(self._buffer)
            self._emit(sink, held_from)
            if self._closed:
                return None
            self._quietly(table.quiet, sink)
            yield

    def copy_while(self, sink: Sink, run: re.Pattern[str]) -> Reading[None]:
        """Copy characters as long as they match `run`, a class of characters repeated."""
        while True:
            found = run.match(self._buffer, self._at)
            self._emit(sink, found.end() if found else self._at)
            if self._at < len(self._buffer) or self._closed:
                return
            yield

    def copy_rest(self, sink: Sink) -> Reading[None]:
        """Copy everything up to the end of the stream."""
        while True:
            self._emit(sink, len(self._buffer))
            if self._closed:
                return
            self._quietly(_markers(()).quiet, sink)
            yield

    def read_until(self, limit: int, *markers: str) -> Reading[tuple[str, str | None]]:
        """Read text up to a marker, without a sink. At `limit` characters or the end the marker is None."""
        parts: list[str] = []
        start = self.offset
        table = _markers(markers)
        while True:
            found = table.pattern.search(self._buffer, self._at)
            held_from = len(self._buffer) if self._closed else table.held_from(self._buffer, self._at)
            end = found.start() if found and found.start() <= held_from else held_from
            end = min(end, self._at + limit - (self.offset - start))
            parts.append(self._buffer[self._at : end])
            self._at = end
            if self.offset - start >= limit:
                return "".join(parts), None
            if found and end == found.start():
                self._at = found.end()
                return "".join(parts), found.group()
            if self._closed:
                return "".join(parts), None
            yield

    def choose(self, *options: str) -> Reading[str | None]:
        """Consume and return the option that comes next; None, with nothing consumed, where none does."""
        table = _markers(options)
        while True:
            found = table.pattern.match(self._buffer, self._at)
            if found:
                self._at = found.end()
                return found.group()
            if table.held_from(self._buffer, self._at) != self._at:
                return None
            if self._closed:
                self._at = len(self._buffer) if self.cut else self._at
                return None
            yield

    def peek(self) -> Reading[str]:
        """The next character, not consumed; empty at the end of the stream."""
        while self._at == len(self._buffer):
            if self._closed:
                return ""
            yield
        return self._buffer[self._at]

    def take(self) -> Reading[str]:
        """The next character, consumed; empty at the end of the stream."""
        char = yield from self.peek()
        self._at += len(char)
        return char

    def read_space(self) -> Reading[str]:
        """Consume white space and return it."""
        parts: list[str] = []
        while True:
            found = _NOT_SPACE.search(self._buffer, self._at)
            end = found.start() if found else len(self._buffer)
            parts.append(self._buffer[self._at : end])
            self._at = end
            if found or self._closed:
                return "".join(parts)
            yield

    # -- JSON ----------------------------------------------------------------------------------------------------

    def copy_json(self, sink: Sink, *, quotes: bool = False) -> Reading[bool]:
        """Copy one JSON object or array up to its own closing bracket; whether that was reached.

        Only the kind of bracket that opened it counts, and none inside strings. A token never stands inside JSON: it
        ends the copy, unconsumed. Strings may hold ordinary added ones, and special ones where `quotes` says so.
        """
        opening = yield from self.peek()
        structure = _STRUCTURE[opening]
        string = _IN_QUOTING_STRING if quotes else _IN_STRING
        depth, in_string, at = 0, False, self._at
        while True:
            buffer = self._buffer
            while found := (string if in_string else structure).search(buffer, at):
                char, at = found.group(), found.end()
                if char == '"':
                    in_string = not in_string
                elif char == "\\":
                    if at == len(buffer):  # the escaped character is still to come
                        at -= 1
                        break
                    at += 1
                elif char == opening:
                    depth += 1
                elif char in "}]":
                    depth -= 1
                    if not depth:
                        self._emit(sink, at)
                        return True
                else:
                    self._emit(sink, at - 1)
                    return False
            else:
                at = len(buffer)
            self._emit(sink, len(buffer) if self._closed else at)
            if self._closed:
                return False
            self._quietly(_QUIET_STRING if in_string else _QUIET_JSON[opening], sink)
            yield
            at = self._at

    def copy_string(self, sink: Sink) -> Reading[bool]:
        """Copy the value of a JSON string whose opening quote was consumed; whether its closing quote was met."""
        while True:
            found = _PLAIN_STRING.match(self._buffer, self._at)
            self._emit(sink, found.end() if found else self._at)
            if self._at == len(self._buffer):
                if self._closed:
                    return False
                yield
                continue
            char = self._buffer[self._at]
            if char == '"':
                self._at += 1
                return True
            if char != "\\":
                return False
            escape = yield from self._escape()
            if escape:
                start = self.offset
                self._at += len(escape)
                sink(_unescape(escape), start)
            elif self._closed:
                self._emit(sink, len(self._buffer))
                return False

    def _escape(self) -> Reading[str]:
        """The escape sequence at the cursor, whole, not consumed; empty when the stream ends inside it."""
        while True:
            found = _ESCAPE.match(self._buffer, self._at)
            if found:
                return found.group()
            if not _PARTIAL_ESCAPE.match(self._buffer, self._at):
                return self._buffer[self._at : self._at + 2]  # no escape that JSON knows: taken as it stands
            if self._closed:
                return ""
            yield


_STRUCTURE = {
    "{": re.compile(f'["{{}}{SPECIAL}{ADDED}]'),
    "[": re.compile(f'["\\[\\]{SPECIAL}{ADDED}]'),
}
_QUIET_STRING = re.compile(f'[^"\\\\{SPECIAL}{ADDED}]*').fullmatch
_QUIET_JSON = {
    "{": re.compile(f'[^"{{}}{SPECIAL}{ADDED}]*').fullmatch,
    "[": re.compile(f'[^"\\[\\]{SPECIAL}{ADDED}]*').fullmatch,
}
# A high surrogate waits for its low one, so that a pair is unescaped as one character.
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_ESCAPE = re.compile(
    rf'{_PAIR}(?:\\u[0-9a-fA-F]{{4}}|(?=[^\\])|(?=\\[^u]))|(?!{_PAIR})\\u[0-9a-fA-F]{{4}}|\\["\\/bfnrt]'
)
_PARTIAL_ESCAPE = re.compile(rf"(?:{_PAIR}(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?|\\(?:u[0-9a-fA-F]{{0,3}})?)\Z")


def _unescape(escape: str) -> str:
    if escape[1:2] != "u":
        return _ESCAPES.get(escape[1:2], escape)
    units = [int(unit, 16) for unit in re.findall(r"\\u([0-9a-fA-F]{4})", escape)]
    return b"".join(unit.to_bytes(2, "little") for unit in units).decode("utf-16-le", "replace")


class _Markers:
    """A set of markers, compiled: where the first one stands, and from where a suffix may begin one."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        ordered = sorted(markers)
        for shorter, longer in pairwise(ordered):
            if longer.startswith(shorter):
                raise ValueError(f"marker {shorter!r} begins marker {longer!r}: their order would depend on the cuts")
        self.pattern = re.compile("|".join(map(re.escape, markers)) or r"(?!)")
        self._markers = markers
        self._longest = max(map(len, markers), default=0)
        firsts = "".join({re.escape(marker[0]) for marker in markers})
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")
        self.quiet = self._without(markers)

    @staticmethod
    def _without(markers: tuple[str, ...]) -> Quiet:
        """Matches text in which no marker stands or begins, and no token: each marker has a character that tells it,
        which the text does not hold, and it does not end in what comes before that.
        """
        tells = [_TELLING.search(marker) or _NOT_SPACE.search(marker) for marker in markers]
        places = [tell.start() if tell else 0 for tell in tells]
        chars = "".join({re.escape(marker[at]) for marker, at in zip(markers, places, strict=True)})
        heads = {marker[:end] for marker, at in zip(markers, places, strict=True) for end in range(1, at + 1)}
        not_ending = "".join(f"(?<!{re.escape(head)})" for head in sorted(heads))
        return re.compile(f"[^{chars}{SPECIAL}{ADDED}]*{not_ending}").fullmatch

    def held_from(self, text: str, start: int) -> int:
        """The index of the earliest suffix of `text` that is a proper prefix of a marker; its length if none is."""
        at = max(start, len(text) - self._longest + 1)
        while found := self._first.search(text, at):
            at = found.start()
            suffix = text[at:]
            if any(len(marker) > len(suffix) and marker.startswith(suffix) for marker in self._markers):
                return at
            at += 1
        return len(text)


@lru_cache(maxsize=256)
def _markers(markers: tuple[str, ...]) -> _Markers:
    return _Markers(markers)
