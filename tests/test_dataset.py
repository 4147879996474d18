"""The synthetic dataset: the same for the same seed, valid, apart from what is held out and from the leaderboard."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from itertools import islice
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from functionary_vllm.training.dataset import cli
from functionary_vllm.training.dataset.api_schemas import PACKAGE, api_concepts
from functionary_vllm.training.dataset.concepts import ConceptError, hand_written, parse_phrase, read_concept
from functionary_vllm.training.dataset.definitions import define, request
from functionary_vllm.training.dataset.families import combined
from functionary_vllm.training.dataset.generator import (
    _FAMILIAR,
    _INFERRED,
    Generator,
    Split,
    blocked_names,
    is_held_out,
)
from functionary_vllm.training.dataset.interpretation import interpret
from functionary_vllm.training.dataset.kind import KindError
from functionary_vllm.training.dataset.pools import pools
from functionary_vllm.training.dataset.text import styled, words_of
from functionary_vllm.training.dataset.values import parse_kind

Line = dict[str, Any]
# Changes with every change of the generator, of its tables and of the concepts: then training begins with other data,
# and the model card's recipe has to name the commit. Print it with
#   python -c "from tests.test_dataset import golden; print(golden())"
GOLDEN = "9f2b5ed2278bca8e"


def lines(count: int, *, split: Any = "train", seed: int = 7, apis: bool = False) -> list[Line]:
    return list(islice(Generator(seed, split, apis=apis).lines(), count))


def golden() -> str:
    text = "".join(json.dumps(line, ensure_ascii=False) for line in lines(500))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def trained() -> list[Line]:
    return lines(2500)


@pytest.fixture(scope="module")
def held_out() -> list[Line]:
    return lines(1500, split="heldout")


def calls_of(line: Line) -> list[tuple[str, Any]]:
    turns = [message for message in line["messages"] if message.get("tool_calls")]
    functions = [call["function"] for turn in turns for call in turn["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def names_of(line: Line) -> list[str]:
    return [tool["function"]["name"] for tool in line.get("tools", [])]


def test_a_seed_always_gives_the_same_lines() -> None:
    assert golden() == GOLDEN


def test_other_seeds_and_splits_give_other_lines(trained: list[Line], held_out: list[Line]) -> None:
    some = (trained, held_out, lines(500, seed=8))
    asked = [{line["messages"][-2]["content"] for line in part if line["kind"] == "call"} for part in some]
    # Short phrases, and answers to questions, meet now and then.
    assert len(asked[0] & asked[2]) < 0.05 * len(asked[2])
    assert len(asked[0] & asked[1]) < 0.05 * len(asked[1])


def test_there_are_thousands_of_concepts_in_many_domains() -> None:
    concepts = (*hand_written(), *combined())
    assert len(hand_written()) > 500
    assert len(concepts) > 2500
    assert len({concept.domain for concept in concepts}) > 15


def test_calls_name_a_function_on_offer_and_fit_its_schema(trained: list[Line], held_out: list[Line]) -> None:
    for line in (*trained, *held_out):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in line.get("tools", [])}
        assert len(schemas) == len(line.get("tools", [])), "two functions of one name"
        assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in schemas)
        for name, arguments in calls_of(line):
            Draft202012Validator(schemas[name]).validate(arguments)
            assert set(arguments) <= set(schemas[name]["properties"])


def test_what_is_passed_was_said_or_is_a_default(trained: list[Line]) -> None:
    """Free text and numbers stand in the words of the user: nothing has to be guessed."""
    unsaid = total = 0
    for line in trained:
        said = " ".join(m["content"] for m in line["messages"] if m["role"] == "user").lower()
        tools = {
            tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in line.get("tools", [])
        }
        for name, arguments in calls_of(line):
            for key, value in arguments.items():
                schema = tools[name][key]
                if isinstance(value, (str, int)) and not isinstance(value, bool) and "enum" not in schema:
                    total += 1
                    unsaid += (
                        str(value).lower() not in said and f"{value:,}" not in said if isinstance(value, int) else 0
                    )
    assert total > 1500
    assert unsaid < 0.12 * total  # words for numbers, times of day


def test_functions_borrow_parameters_only_in_training_and_nobody_fills_them() -> None:
    for held_out in (False, True):
        generator = Generator(5, "heldout" if held_out else "train", apis=False)
        own = {concept.domain + concept.name: {p.name for p in concept.parameters} for concept in generator.all}
        borrowed = 0
        for _ in range(60):
            for offered in generator._scene().offered:
                before = own[offered.concept.domain + offered.concept.name]
                added = {p.name for p in offered.concept.parameters} - before
                borrowed += len(added)
                said = request(offered, generator.rng, held_out=held_out).said
                assert not added & {path.split(".")[0] for path in said}
        assert borrowed == 0 if held_out else borrowed > 30


def test_units_that_are_needed_go_unsaid_only_in_training_and_are_passed_all_the_same() -> None:
    concept = next(c for c in hand_written() if c.name == "get hourly forecast")
    phrase = next(p for p in concept.say if "unit" in p.slots())
    unsaid = {True: 0, False: 0}
    for held_out in unsaid:
        for i in range(100):
            made = request(define(concept, Random(i)), Random(i), phrases=[phrase], held_out=held_out)
            assert made.call.arguments["unit"] in ("celsius", "fahrenheit")
            assert not made.lacking
            unsaid[held_out] += "unit" not in made.said
    assert unsaid[True] == 0
    assert 5 < unsaid[False] < 50


def test_in_training_the_weather_is_offered_more_and_units_are_to_be_inferred() -> None:
    familiar: dict[str, float] = {}
    inferred: dict[str, int] = {}
    splits: tuple[Split, ...] = ("train", "heldout")
    for split in splits:
        generator = Generator(6, split, apis=False)
        offered = [offered for _ in range(300) for offered in generator._scene().offered]
        familiar[split] = sum(one.concept.name in _FAMILIAR for one in offered) / len(offered)
        inferred[split] = sum(words in json.dumps(one.function) for one in offered for words in _INFERRED)
    assert familiar["train"] > 0.005
    assert inferred["train"] > 10
    assert inferred["heldout"] == 0


def test_what_a_result_always_says_is_other_words_in_training_and_told_alike() -> None:
    concept = next(c for c in hand_written() if c.name == "track food order")
    said: dict[bool, set[str]] = {True: set(), False: set()}
    for held_out in said:
        for i in range(60):
            rng = Random(i)
            definition = define(concept, rng)
            content, told = interpret(definition, request(definition, rng), rng, held_out)
            assert content["status"] in told
            assert str(content["minutes"]) in told
            said[held_out].add(content["status"])
    assert said[True] == {"on the way"}
    assert "on the way" in said[False]
    assert len(said[False]) > 5


def test_some_flat_results_are_told_word_by_word() -> None:
    concept = next(c for c in hand_written() if c.name == "summarize monthly spending")
    told = []
    for i in range(60):
        rng = Random(i)
        definition = define(concept, rng)
        content, sentence = interpret(definition, request(definition, rng), rng, held_out=False)
        told.append(
            sentence == f"The total is {content['total']} and the largest category is {content['largest_category']}."
        )
    assert 5 < sum(told) < 35


def test_kinds_are_what_they_say(trained: list[Line]) -> None:
    for line in trained:
        last = line["messages"][-1]
        match line["kind"]:
            case "call":
                assert len(last["tool_calls"]) == 1
            case "parallel":
                assert len(last["tool_calls"]) > 1
            case "result":
                assert line["messages"][-2]["role"] == "tool"
                assert last["content"]
            case "ask" | "decline" | "chat":
                assert last["content"]
                assert not last.get("tool_calls")
            case other:
                pytest.fail(f"no such kind: {other}")


def test_each_kind_has_its_share(trained: list[Line]) -> None:
    kinds = {line["kind"] for line in trained}
    share = {kind: sum(line["kind"] == kind for line in trained) / len(trained) for kind in kinds}
    assert share["call"] > 0.4
    for kind in ("parallel", "result", "ask", "decline", "chat"):
        assert share[kind] > 0.04, kind


def test_held_out_names_are_never_trained(held_out: list[Line]) -> None:
    trained = {
        styled(name, "snake")
        for concept in (*hand_written(), *combined())
        if not is_held_out(concept.stem)
        for name in concept.names
    }
    assert not {styled(words_of(name), "snake") for line in held_out for name in names_of(line)} & trained


def test_held_out_phrases_are_never_trained() -> None:
    concept = next(concept for concept in hand_written() if len(concept.say) > 3)
    from functionary_vllm.training.dataset.definitions import phrases_of

    made = define(concept, Random(1))
    assert not set(phrases_of(made, True)) & set(phrases_of(made, False))


def test_the_leaderboards_names_never_occur(trained: list[Line], held_out: list[Line]) -> None:
    assert len(blocked_names()) > 1000
    used = {styled(words_of(name), "snake") for line in (*trained, *held_out) for name in names_of(line)}
    assert not used & blocked_names()


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
def test_the_leaderboards_questions_never_occur(trained: list[Line], held_out: list[Line]) -> None:
    from functionary_vllm.evaluation.bfcl_words import bfcl_prompts

    questions = {" ".join(words_of(prompt).split()) for prompt in bfcl_prompts()}
    assert len(questions) > 1000
    asked = {
        " ".join(words_of(message["content"]).split())
        for line in (*trained, *held_out)
        for message in line["messages"]
        if message["role"] == "user"
    }
    assert not {text for text in asked & questions if len(text.split()) > 3}


@pytest.mark.skipif(not api_concepts(), reason=f"{PACKAGE} is not installed")
def test_functions_of_real_apis_are_held_out_by_api() -> None:
    assert len(api_concepts()) > 200
    apis = {split: {concept.stem for concept in Generator(1, split).concepts["api"]} for split in ("train", "heldout")}
    assert apis["train"]
    assert apis["heldout"]
    assert not apis["train"] & apis["heldout"]


# --- the form of concepts --------------------------------------------------------------------------------------------

TABLE = {
    "name": "book table",
    "about": "Book a table.",
    "parameters": {
        "place": {"about": "Where.", "value": "restaurant"},
        "seats": {"about": "How many.", "value": "count 2 9"},
        "outside": {"about": "Out?", "optional": True, "choices": {True: "outside", False: "indoors"}},
    },
    "say": ["Book {place}[ for {seats}][, {outside}]", "A table[ for {seats}] at {place}[, {outside}]"],
}


def test_a_request_passes_what_it_says() -> None:
    concept = read_concept(TABLE, "food")
    rng = Random(3)
    for _ in range(50):
        asked = request(define(concept, rng), rng)
        arguments = {key.lower(): value for key, value in asked.call.arguments.items()}
        assert arguments["place"] in asked.text
        assert ("outside" in arguments) == ("outside" in asked.text or "indoors" in asked.text)
        assert not asked.lacking


def test_a_request_can_lack_what_stands_in_brackets() -> None:
    made = define(read_concept(TABLE, "food"), Random(3))
    asked = request(made, Random(1), lacking=True)
    assert asked.lacking == ("seats",)
    assert " for " not in asked.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"say": ["Book {place}", "Book {place} for {seats}"]}, "does not name seats"),
        ({"say": ["Book {place} for {seats} {outside}"] * 2}, "stands in no brackets"),
        ({"say": ["Book {place} for {seats} {when}"] * 2}, "are no parameters"),
        ({"say": ["Book {place} for {seats}"]}, "fewer than two"),
        ({"tell": ["It is {outside}."]}, "optional"),
        ({"parameters": {"place": {"about": "Where.", "value": "restaurants"}}}, "no such kind"),
        ({"color": "red"}, "unknown keys"),
    ],
)
def test_a_broken_concept_is_refused_with_the_reason(change: Line, words: str) -> None:
    with pytest.raises(ConceptError, match=words):
        read_concept({**TABLE, **change}, "food")


def test_phrases_leave_out_stretches_without_a_value() -> None:
    phrase = parse_phrase("Fly to {city}[ on {day}][1 way]")
    assert phrase.spoken({"city": "Rome"}) == "Fly to Rome[1 way]"
    assert phrase.spoken({"city": "Rome", "day": "Monday"}) == "Fly to Rome on Monday[1 way]"


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("integer 1 9", {"type": "integer"}),
        ("rate 1 9", {"type": "number"}),
        ("city", {"type": "string"}),
        ("date", {"type": "string"}),
        ("list of number 1 9", {"type": "array", "items": {"type": "number"}}),
        ("list of city 2 3", {"type": "array", "items": {"type": "string"}}),
    ],
)
def test_values_fit_the_schema_of_their_kind(kind: str, schema: Line) -> None:
    rng = Random(1)
    made = parse_kind(kind)
    assert made.schema() == schema
    for _ in range(30):
        Draft202012Validator(schema).validate(made.draw(rng, False).value)


def test_a_rate_is_said_in_percent_and_passed_as_a_fraction() -> None:
    value = parse_kind("rate 5 5").draw(Random(1), False)
    assert value.value == 0.05
    assert value.said.startswith("5")
    assert "fraction" in parse_kind("rate 5 5").note


def test_unknown_kinds_are_refused() -> None:
    for kind in ("towns", "integer 9 1", "integer x y", "list of"):
        with pytest.raises(KindError):
            parse_kind(kind)


def test_the_command_writes_lines(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some" / "train.jsonl"
    assert cli.main([str(path), "--lines", "20", "--no-apis"]) == 0
    written = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(written) == 20
    assert all(line["messages"] for line in written)
    assert "20 conversations" in capsys.readouterr().out


def test_training_has_values_that_are_in_no_pool_and_evaluation_has_none() -> None:
    kind, known = parse_kind("first_name"), set(pools()["first_name"])
    rng = Random(3)
    assert 50 < sum(kind.draw(rng, held_out=False).value not in known for _ in range(300)) < 130
    assert all(kind.draw(rng, held_out=True).value in known for _ in range(300))
