"""A prompt: text with the format's special tokens kept apart, and the token ids it becomes.

In: parts, from a format's render. Out: ids for the engine, in which text that quotes a special token stays text.
Refuses to know what the parts mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer


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
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Ids for the engine. Special tokens that occur in text parts are taken as ordinary characters."""
        encoder = _encoder(tokenizer)
        if self.joined and not any(encoder.specials.search(p) for p in self.parts if isinstance(p, str)):
            return encoder.encode(self.text)
        ids: list[int] = []
        for part in join(self.parts) if self.joined else self.parts:
            ids += encoder.encode(part.text) if isinstance(part, Special) else encoder.encode_literally(part)
        return ids


def join(parts: Iterable[str | Special]) -> list[str | Special]:
    """Parts with neighbouring texts joined, as a tokenizer has to see them."""
    joined: list[str | Special] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


class _Encoder:
    """Text to ids, for any thread: whether special tokens are read is a switch on the tokenizer, so there are two."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.specials = specials(tokenizer)

    def encode(self, text: str) -> list[int]:
        # Through transformers, which sets the switch back where somebody left it on.
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def encode_literally(self, text: str) -> list[int]:
        if not self.specials.search(text):
            return self.encode(text)
        return list(self._literal.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _literal(self) -> Tokenizer:
        copy = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy


_encoders: WeakKeyDictionary[Any, _Encoder] = WeakKeyDictionary()


def _encoder(tokenizer: Any) -> _Encoder:
    encoder = _encoders.get(tokenizer)
    return encoder if encoder is not None else _encoders.setdefault(tokenizer, _Encoder(tokenizer))


def specials(tokenizer: Any) -> re.Pattern[str]:
    """Finds the texts of the tokenizer's special tokens."""
    texts = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")
