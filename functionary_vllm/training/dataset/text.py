"""Small matters of English and of identifiers: lists, articles, capital letters, name styles. Knows nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = (
    *(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]),
    *(["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]),
)


def number_words(number: int) -> str:
    """0 to 20 in words."""
    return _NUMBERS[number]


def join_words(words: Sequence[str], *, oxford: bool = False, last: str = "and") -> str:
    """a, b and c."""
    if len(words) < 2:
        return "".join(words)
    comma = "," if oxford and len(words) > 2 else ""
    return f"{', '.join(words[:-1])}{comma} {last} {words[-1]}"


def lower_first(sentence: str) -> str:
    """The sentence with a small first letter, unless it begins with "I" or an abbreviation."""
    if len(sentence) > 1 and sentence[0].isupper() and (sentence[1].islower() or sentence[1] == " "):
        return sentence if re.match(r"I\b", sentence) else sentence[0].lower() + sentence[1:]
    return sentence


def upper_first(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def words_of(identifier: str) -> str:
    """`maxPrice`, `max_price`, `max price` -> "max price"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", identifier)
    return re.sub(r"[\s_.\-]+", " ", spaced).strip().lower()


def tidy(sentence: str) -> str:
    """A sentence whose optional stretches were left out: spaces, commas and articles set right."""
    sentence = re.sub(r"\s+", " ", sentence).strip()
    sentence = re.sub(r"\s+([,.;:?!](?:\s|$))", r"\1", sentence)
    sentence = re.sub(r"^[,;:]\s*", "", sentence)
    return re.sub(r"(^A|\ba) (?=[aeio][a-z])", r"\1n ", sentence)


def styled(words: str, style: str) -> str:
    """Words as an identifier: snake, camel, pascal, kebab, or flat (wordsrunintoone)."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", words.lower()) if part]
    match style:
        case "camel":
            return parts[0] + "".join(part.capitalize() for part in parts[1:])
        case "pascal":
            return "".join(part.capitalize() for part in parts)
        case "kebab":
            return "-".join(parts)
        case "flat":
            return "".join(parts)
        case _:
            return "_".join(parts)
