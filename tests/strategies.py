"""What models may write: answers in a format's own syntax, and noise made of its markers and their fragments."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from functionary_vllm.conversation import AUTO, Call, Choice, Conversation, Function, Message
from functionary_vllm.detokenizer import ADDED
from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text, merge
from functionary_vllm.formats import get_format, list_formats
from functionary_vllm.formats.base import Format
from functionary_vllm.formats.prompt import Prompt
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.machine import Offered
from functionary_vllm.formats.thinking import ThinkingFormat

# Names that begin one another, and one that is a word of the formats.
NAMES = ("get", "get_weather", "get_weather_now", "text")
# Where a format's values have no types of their own, the schema says them.
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "code": {"type": "string"},
        "text": {"type": "string"},
        "note": {"type": ["string", "null"]},
        "days": {"type": "array"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "sure": {"type": "boolean"},
        "options": {"type": "object"},
    },
}
FUNCTIONS = tuple(Function({"name": name, "description": "", "parameters": PARAMETERS}) for name in NAMES)
FORMATS = list_formats()
VERBATIM = [name for name in FORMATS if get_format(name).verbatim]
# Each format with the real tokenizers (fixtures of conftest.py) that its models have, or the nearest to be had.
TOKENIZERS = [
    ("functionary-v0", "spm_v0_tokenizer"),
    ("functionary-v1", "spm_v1_tokenizer"),
    ("functionary-v2", "spm_v2_tokenizer"),
    ("functionary-v2.5", "llama3_tokenizer"),
    ("functionary-v3.1", "llama31_tokenizer"),
    ("functionary-v3.2", "llama31_tokenizer"),
    ("functionary-v3.2", "llama3_tokenizer"),
    ("hermes", "qwen3_tokenizer"),
    ("hermes", "qwen25_tokenizer"),
    ("hermes", "smollm2_tokenizer"),
    ("functionary-v4r", "llama31_tokenizer"),
    ("functionary-r1", "deepseek_v3_tokenizer"),
    ("functionary-r1-llama", "r1_llama_tokenizer"),
    ("functionary-r1-qwen", "r1_qwen_tokenizer"),
    ("functionary-gemma3", "gemma3_tokenizer"),
    ("functionary-cogito", "qwen25_tokenizer"),
    ("functionary-smol", "functionary_smol_tokenizer"),
]
# Those that render with a checkpoint's template: here they only read.
READERS = [
    *TOKENIZERS,
    ("deepseek-v3", "deepseek_v3_tokenizer"),
    ("deepseek-v3.1", "deepseek_v3_tokenizer"),
    ("deepseek-v3.2", "deepseek_v32_tokenizer"),
    ("deepseek-v4", "deepseek_v4_tokenizer"),
    ("deepseek-v4.1", "deepseek_v4_tokenizer"),
    ("glm", "glm5_tokenizer"),
    ("glm-4.5", "glm45_tokenizer"),
    ("gpt-oss", "harmony_tokenizer"),
    ("llama3-json", "llama31_tokenizer"),
    ("llama4-pythonic", "llama4_tokenizer"),
    ("mistral", "mistral_v11_tokenizer"),
    ("mistral", "mistral_v13_tokenizer"),
    ("mistral-v3", "mistral_v3_tokenizer"),
    ("qwen3-xml", "qwen3_tokenizer"),
    ("qwen3-xml", "qwen35_tokenizer"),
]

characters = st.characters(exclude_categories=["Cs"])
words = st.text(characters, max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | words
    | st.sampled_from(["}", '"', "\\", ">>>get\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    st.dictionaries(words, json_values, max_size=4),
    st.booleans(),
    st.sampled_from([None, None, 2]),
)


# For formats that write members one by one: a member for each type, some left out.
lines = words.filter(lambda text: text.lower().strip() not in ("null", "none"))
typed_objects = st.fixed_dictionaries(
    {},
    optional={
        "city": words,
        "note": st.none() | lines,
        "days": st.lists(json_values, max_size=3),
        "count": st.integers(),
        "ratio": st.floats(allow_nan=False, allow_infinity=False),
        "sure": st.booleans(),
        "options": st.dictionaries(words, json_values, max_size=3),
    },
).map(lambda value: json.dumps(value, ensure_ascii=False))


@dataclass(frozen=True)
class Answer:
    """What an assistant turn says."""

    text: str
    calls: tuple[tuple[str, str], ...]


def answers(fmt: Format) -> st.SearchStrategy[Answer]:
    # White space around a text is lost in some formats' own syntax; a marker inside it would be one.
    text = st.text(characters, max_size=40).map(str.strip).filter(lambda t: not t or t[0] not in "\ufeff<>:[{")
    arguments = objects if fmt.verbatim else typed_objects
    calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), max_size=3 if fmt.parallel else 1)
    return st.builds(lambda t, c: Answer(t, tuple(c)), text, calls).filter(lambda a: a.text or a.calls)


def asked(choice: Choice, **options: Any) -> Conversation:
    """A question with all functions on offer."""
    return Conversation((Message("user", "?"),), FUNCTIONS, choice, **options)


def written(fmt: Format, answer: Answer, thought: str | None = None) -> str:
    """The answer as this format's render writes it, up to its stop token, in the scanner's characters."""
    turn = Message(
        "assistant", answer.text, calls=tuple(Call(f"c{i}", *c) for i, c in enumerate(answer.calls)), reasoning=thought
    )
    if isinstance(fmt, ThinkingFormat):
        return scanned(fmt, Prompt(tuple(fmt.answer(turn))))
    before = (Message("user", "?"),)
    after = (Message("tool", "!", name=answer.calls[0][0]),) if answer.calls else (Message("user", "!"),)
    asked = scanned(fmt, fmt.render(Conversation(before, FUNCTIONS, AUTO)))
    told = scanned(fmt, fmt.render(Conversation((*before, turn, *after), FUNCTIONS, AUTO)))
    assert told.startswith(asked)
    return told[len(asked) :]


def plain(fmt: Format, answer: Answer) -> str:
    """The same in letters, for a tokenizer to read."""
    unbound = get_format(fmt.name)
    text = written(unbound, answer)
    chars = {unbound.alphabet.of(marker): marker for marker in (*unbound.markers, *unbound.stop)}
    return "".join(chars.get(char, char) for char in text)


def scanned(fmt: Format, prompt: Prompt) -> str:
    """A prompt as a detokenizer would give it back: special tokens are special only where the format put them."""
    added = [marker for marker in fmt.markers if re.fullmatch(f"[{ADDED}]", fmt.alphabet.of(marker))]
    tokens = re.compile("|".join(map(re.escape, added)) or r"(?!)")
    return "".join(
        tokens.sub(lambda found: fmt.alphabet.of(found.group()), part)
        if isinstance(part, str)
        else fmt.alphabet.of(part.text)
        for part in prompt.parts
    )


def fragments(fmt: Format) -> st.SearchStrategy[str]:
    """One piece of noise: a marker, a part of one, a name, bits of JSON, or text."""
    opens = [fmt.call_open(name) for name in (*NAMES, "python", "unknown")]
    markup = [*fmt.markers, *opens, fmt.call_close, fmt.call_separator, fmt.text_open, fmt.code_open(), ">>>", "</s>"]
    markup += [fmt.calls_open, fmt.calls_close, *(text for text in plain_markup(fmt))]
    whole = [fmt.alphabet.of(piece) for piece in markup if piece]
    parts = st.sampled_from(whole).flatmap(lambda m: st.integers(0, len(m)).map(lambda n: m[:n]))
    bits = st.sampled_from(
        ['{"a": ', '"', "}", "{}", "[", "]", "\\", "\n", " ", "<think>", "</think>", "user:\n", ":", "🌧", "é"]
    )
    return st.sampled_from(whole) | parts | bits | objects | words


def plain_markup(fmt: Format) -> list[str]:
    """The tags and keys of a call as this format writes it."""
    call = written(fmt, Answer("", (("get", '{"city": "x", "count": 1}'),)))
    return re.findall(r"</?[\w=|]+>?|[\w\"]+[:=(]|[\[\](){}]", call)


def noise(fmt: Format) -> st.SearchStrategy[str]:
    return st.lists(fragments(fmt), max_size=14).map("".join)


def unbound(name: str) -> Format:
    return get_format(name)


OFFERED = Offered.of(FUNCTIONS, python="raw")


def read(
    fmt: Format, text: str, cuts: Sequence[int] = (), *, offered: Offered = OFFERED, cut: bool = False
) -> list[Event]:
    """The merged events of this text, fed in pieces that end at `cuts`."""
    decoder = Decoder(fmt, offered)
    events: list[Event] = []
    bounds = [0, *sorted(cuts), len(text)]
    for start, end in itertools.pairwise(bounds):
        events += decoder.feed_text(text[start:end])
    return merge([*events, *decoder.finish(cut=cut)])


def told(events: Sequence[Event]) -> Answer:
    """The text and the complete calls of some events."""
    text = "".join(event.text for event in events if isinstance(event, Text))
    names = {event.index: event.name for event in events if isinstance(event, CallStart)}
    arguments = dict.fromkeys(names, "")
    for event in events:
        if isinstance(event, CallArguments):
            arguments[event.index] += event.text
    complete = [event.index for event in events if isinstance(event, CallEnd)]
    return Answer(text, tuple((names[i], arguments[i]) for i in complete))


def same(fmt: Format, one: Answer, other: Answer) -> bool:
    """Whether two answers say the same: to the character, or in JSON where a format does not write JSON."""
    if fmt.verbatim:
        return one == other
    return one.text == other.text and [(name, json.loads(arguments)) for name, arguments in one.calls] == [
        (name, json.loads(arguments)) for name, arguments in other.calls
    ]


def spoken(events: Sequence[Event]) -> str:
    """All characters of all events, in order."""
    return "".join(event.text for event in events if isinstance(event, Text | Reasoning | CallArguments))


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(char in rest for char in part)
