"""A prompt: text with the format's special tokens kept apart, and the token ids it becomes.

In: parts, from a format's render. Out: ids for the engine, in which text that quotes a special token stays text.
A prompt is cut before special tokens into stretches that a tokenizer reads independently of one another, and the ids
of long stretches are kept: the tools of the last request, the earlier turns of a conversation. The ids are those of
the whole text either way. Refuses to know what the parts mean.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from functionary_vllm.recent import Recent


@dataclass(frozen=True, slots=True)
class Special:
    """A special token in a prompt, by its text."""

    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is given.

    `parts` keep the format's special tokens apart from text, so that text can never forge one. `opened` is the end of
    the prompt that already belongs to the answer. `stop` are the tokens that end a turn. `joined` is false where the
    model was trained on parts tokenised one by one.
    """

    parts: tuple[str | Special, ...]
    opened: str = ""
    stop: tuple[str, ...] = ()
    joined: bool = True

    @property
    def text(self) -> str:
        return _text(self.parts)

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Ids for the engine. Special tokens that occur in text parts are taken as ordinary characters."""
        return _encoder(tokenizer).ids(join(self.parts) if self.joined else self.parts, joined=self.joined)


def join(parts: Iterable[str | Special]) -> list[str | Special]:
    """Parts with neighbouring texts joined, as a tokenizer has to see them."""
    joined: list[str | Special] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


_CONTROL = re.compile(r"<[|\uff5c].*[|\uff5c]>")
_LONG = 1000  # characters of a stretch that is kept; shorter ones are tokenised in less time than it takes to find them
_ROOM = 16 << 20  # bytes, about a million tokens of text

Parts = tuple[str | Special, ...]


class _Encoder:
    """One tokenizer's way from parts to ids.

    Some families (DeepSeek) do not flag their control tokens as special, but spell them like ones. Whether special
    tokens are read is a switch on the tokenizer that other threads would see: so a copy has it on.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._texts = {text for text, token in self._added.items() if token.special or _CONTROL.fullmatch(text)}
        self.quotes = re.compile("|".join(map(re.escape, sorted(self._texts, key=len, reverse=True))) or r"(?!)")
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._copy: Tokenizer | None = None
        self._lock = Lock()
        self._cuts: dict[str, bool] = {}
        self._kept: Recent[Parts, Sequence[int]] = Recent(_ROOM)

    def ids(self, parts: Sequence[str | Special], *, joined: bool) -> list[int]:
        """The ids of these parts, tokenised as one text or, unless `joined`, one by one."""
        stretches = list(self._stretches(parts)) if joined else [(part,) for part in parts]
        found = [self._kept.get(stretch) for stretch in stretches]
        missing = [stretch for stretch, ids in zip(stretches, found, strict=True) if ids is None]
        made = iter(self._encode(missing))
        return list(chain.from_iterable(next(made) if ids is None else ids for ids in found))

    def _stretches(self, parts: Iterable[str | Special]) -> Iterator[Parts]:
        """The parts in runs, each but the last long enough to be kept, and each but the first begun by a token."""
        stretch: list[str | Special] = []
        length = 0
        for part in parts:
            if length >= _LONG and isinstance(part, Special) and self._cuts_text(part.text):
                yield tuple(stretch)
                stretch, length = [], 0
            stretch.append(part)
            length += len(part) if isinstance(part, str) else 0
        yield tuple(stretch)

    def _cuts_text(self, text: str) -> bool:
        """Whether this is a token before which a text can be cut without a change to the ids.

        A tokenizer takes its added tokens out of a text before it does anything else, and reads what is between them
        piece by piece; unless tokens take the white space around them, or run into one another.
        """
        known = self._cuts.get(text)
        if known is None:
            token = self._added.get(text)
            starts = [text[:length] for length in range(1, len(text) + 1)]
            known = self._cuts[text] = (
                token is not None
                and not (token.normalized or token.lstrip or token.rstrip)
                and not any(other.single_word for other in self._added.values())
                and not any(text in other or other.endswith(tuple(starts)) for other in self._added if other != text)
            )
        return known

    def _encode(self, stretches: Sequence[Parts]) -> list[Sequence[int]]:
        """Their ids, kept where they are long."""
        quoting = [any(isinstance(part, str) and self.quotes.search(part) for part in stretch) for stretch in stretches]
        plain = [_text(stretch) for stretch, quotes in zip(stretches, quoting, strict=True) if not quotes]
        made = iter(self._read(plain))
        all_ids: list[Sequence[int]] = []
        for stretch, quotes in zip(stretches, quoting, strict=True):
            ids = self._apart(stretch) if quotes else next(made)
            all_ids.append(ids)
            if sum(len(part) for part in stretch if isinstance(part, str)) >= _LONG:
                self._kept.put(stretch, array("I", ids), sum(map(sys.getsizeof, stretch)) + 4 * len(ids))
        return all_ids

    def _apart(self, stretch: Parts) -> list[int]:
        """Ids of parts that quote special tokens: each part by itself."""
        ids: list[int] = []
        for part in stretch:
            text, quotes = (part, self.quotes.search(part)) if isinstance(part, str) else (part.text, None)
            ids += (_batch(self._blind(), [text]) if quotes else self._read([text]))[0]
        return ids

    def _read(self, texts: Sequence[str]) -> list[list[int]]:
        backend = self._backend
        # Somebody may have left them on: the switch for special tokens, or what a file says of shorter texts.
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return _batch(backend, texts)

    def _blind(self) -> Tokenizer:
        """The tokenizer without an eye for special tokens. It shares the model: to copy that takes a second, in which
        no other thread runs."""
        with self._lock:
            if self._copy is None:
                copy = Tokenizer(self._backend.model)
                for part in ("normalizer", "pre_tokenizer"):
                    if (value := getattr(self._backend, part)) is not None:
                        setattr(copy, part, value)
                tokens = list(self._added.values())  # in the order of their ids, which they so have again
                for token in tokens:
                    token.special = token.content in self._texts
                copy.add_tokens(tokens)
                copy.encode_special_tokens = True
                self._copy = copy
            return self._copy


def _batch(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    # A single `encode` would keep all other threads waiting, the event loop too; a batch lets go of them.
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _text(parts: Iterable[str | Special]) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in parts)


_known: WeakKeyDictionary[Any, _Encoder] = WeakKeyDictionary()


def _encoder(tokenizer: Any) -> _Encoder:
    encoder = _known.get(tokenizer)
    return encoder if encoder is not None else _known.setdefault(tokenizer, _Encoder(tokenizer))


def specials(tokenizer: Any) -> re.Pattern[str]:
    """Finds the texts of the tokenizer's special tokens; compiled once a tokenizer."""
    return _encoder(tokenizer).quotes
