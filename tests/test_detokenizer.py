"""Detokenizer: ids to text equals decoding at once, whatever the grouping; stop strings; private characters."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from functionary_vllm.detokenizer import PRIVATE, Alphabet, Detokenizer, StopStrings
from tests.strategies import characters

TOKENIZERS = ["llama3_tokenizer", "llama31_tokenizer", "qwen3_tokenizer", "smollm2_tokenizer", "spm_v1_tokenizer"]
many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def stream(alphabet: Alphabet, ids: list[int], bounds: list[int]) -> str:
    detokenizer = Detokenizer(alphabet)
    edges = [0, *sorted(bounds), len(ids)]
    pieces = [detokenizer.feed(ids[start:end]) for start, end in itertools.pairwise(edges)]
    return "".join(pieces) + detokenizer.finish()


@pytest.mark.parametrize("fixture", TOKENIZERS)
@many
@given(text=st.text(characters, max_size=60), data=st.data())
def test_text_comes_back(fixture: str, text: str, data: st.DataObject, request: pytest.FixtureRequest) -> None:
    """All planes, emoji, combining marks: what was encoded is decoded, in any grouping."""
    tokenizer = request.getfixturevalue(fixture)
    alphabet = Alphabet(tokenizer, ())
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    bounds = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
    whole = stream(alphabet, ids, [])
    assert whole == stream(alphabet, ids, bounds) == stream(alphabet, ids, list(range(len(ids))))
    assert whole.removeprefix(" ") == tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ")


@pytest.mark.parametrize("fixture", TOKENIZERS)
@many
@given(data=st.data())
def test_any_ids_are_decoded_as_tokenizers_would(
    fixture: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    """Ids that no text encodes to: broken bytes become U+FFFD, as `tokenizers` decodes them."""
    tokenizer = request.getfixturevalue(fixture)
    ids = data.draw(st.lists(st.integers(0, min(len(tokenizer), 30_000) - 1), max_size=12))
    alphabet = Alphabet(tokenizer, ())
    bounds = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
    whole = stream(alphabet, ids, [])
    assert stream(alphabet, ids, bounds) == whole
    if not fixture.startswith("spm"):  # `tokenizers` gives one U+FFFD a byte there, and strips the first space
        assert whole == tokenizer.decode(ids, skip_special_tokens=True)


def test_markers_are_private_characters(llama31_tokenizer: Any, qwen3_tokenizer: Any) -> None:
    alphabet = Alphabet(llama31_tokenizer, ("<|python_tag|>", "<function="))
    ids = llama31_tokenizer.encode("a<|python_tag|>b<|eot_id|>c", add_special_tokens=False)
    text = stream(alphabet, ids, [])
    tag = alphabet.of("<|python_tag|>")
    assert text == f"a{tag}bc"  # a special token that nobody asked for vanishes
    assert PRIVATE.fullmatch(tag)
    assert alphabet.of("<function=") == "<function="  # no token of this tokenizer
    assert alphabet.spell(text) == "abc"
    added = Alphabet(qwen3_tokenizer, ("<tool_call>",))
    call = stream(added, qwen3_tokenizer.encode("<tool_call>", add_special_tokens=False), [])
    assert PRIVATE.fullmatch(call)
    assert added.spell(call) == "<tool_call>"  # added but not special: a reader may see it


def test_text_cannot_forge_a_marker(llama31_tokenizer: Any) -> None:
    alphabet = Alphabet(llama31_tokenizer, ("<|python_tag|>",))
    ids = llama31_tokenizer.encode("<|python_tag|>", add_special_tokens=False, split_special_tokens=True)
    assert len(ids) > 1
    assert stream(alphabet, ids, list(range(len(ids)))) == "<|python_tag|>"


def test_a_character_waits_for_its_last_byte(llama3_tokenizer: Any) -> None:
    ids = llama3_tokenizer.encode("🌧", add_special_tokens=False)
    assert len(ids) > 1
    detokenizer = Detokenizer(Alphabet(llama3_tokenizer, ()))
    assert "".join(detokenizer.feed([i]) for i in ids[:-1]) == ""
    assert detokenizer.pending
    assert detokenizer.feed(ids[-1:]) == "🌧"
    assert not detokenizer.pending


def test_an_unfinished_character_is_not_lost(llama3_tokenizer: Any) -> None:
    ids = llama3_tokenizer.encode("🌧", add_special_tokens=False)
    detokenizer = Detokenizer(Alphabet(llama3_tokenizer, ()))
    assert detokenizer.feed(ids[:-1]) + detokenizer.finish() == "\ufffd"


def word_tokenizer() -> Any:
    """A decoder that looks at neighbours (WordPiece), for which there is no byte table."""
    vocab = {"[UNK]": 0, "hel": 1, "##lo": 2, "world": 3, "<|x|>": 4}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    return tokenizer


def test_other_decoders_go_through_decode_stream() -> None:
    tokenizer = word_tokenizer()
    alphabet = Alphabet(tokenizer, ("<|x|>",))
    assert alphabet.pieces is not None
    assert not alphabet.pieces.exact
    for bounds in ([], [1], [1, 2, 3]):
        assert stream(alphabet, [1, 2, 3, 4, 3], bounds) == f"hello world{alphabet.of('<|x|>')}world"


stops = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=500, deadline=None)
@given(text=st.text("abc\n", max_size=30), stops=stops, data=st.data())
def test_stop_strings(text: str, stops: list[str], data: st.DataObject) -> None:
    """The text before the first stop string, in any grouping, and nothing else."""
    positions = [text.find(stop) for stop in stops if stop in text]
    expected = (text[: min(positions)], True) if positions else (text, False)
    finder = StopStrings(stops)
    shown, met = "", False
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5))), len(text)]
    for start, end in itertools.pairwise(edges):
        if not met:
            piece, met = finder.feed(text[start:end])
            shown += piece
    if not met:
        piece, met = finder.finish()
        shown += piece
    assert (shown, met) == expected


def test_stop_strings_hold_back_no_more_than_they_must() -> None:
    finder = StopStrings(["END", "\n\n"])
    assert finder.feed("hello E") == ("hello ", False)
    assert finder.feed("x\n") == ("Ex", False)
    assert finder.held == "\n"
