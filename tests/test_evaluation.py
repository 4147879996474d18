"""Evaluation: what is asked, what counts as right, what the figures say; against servers of this process."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from functionary_vllm.evaluation import bfcl_words, equality
from functionary_vllm.evaluation.asking import Question, converse
from functionary_vllm.evaluation.bfcl import CATEGORIES, Bfcl
from functionary_vllm.evaluation.cases import Answer, Call, Case, NotJson, parse_arguments, same
from functionary_vllm.evaluation.cli import main
from functionary_vllm.evaluation.conversations import ALL, SENSIBLE, Chat, Demo, circles
from functionary_vllm.evaluation.endpoint import Endpoint, Gone, with_strict
from functionary_vllm.evaluation.figures import judged, tally, wilson
from functionary_vllm.evaluation.heldout import HeldOut, LineError, read_case
from functionary_vllm.evaluation.page import page
from tests.apps import ARGUMENTS, MODEL, TOOLS, USER, WEATHER, call_text, engine_saying, served

needs_bfcl = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason=f"BFCL is missing: {bfcl_words.INSTALL}")
CALL = Call("get_weather", ARGUMENTS)


# ------------------------------------------------------------------------------------------------ what is equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": 1, "b": [1.0, "x"]}, {"b": [1, "x"], "a": 1}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": None}, {}, False),
        ([1, 2], [2, 1], False),
        ("Paris", "paris", False),
    ],
)
def test_equal_as_json(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is equal


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 3%}', '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000])
def test_no_arguments(text: str) -> None:
    with pytest.raises(NotJson):
        parse_arguments(text)


def test_wilsons_interval() -> None:
    assert [round(value, 3) for value in wilson(20, 20)] == [0.839, 1.0]
    assert [round(value, 3) for value in wilson(160, 400)] == [0.353, 0.449]


# ------------------------------------------------------------------------------------------------ held-out


def line(kind: str | None, gold: str | list[tuple[str, dict[str, Any]]], *before: dict[str, Any]) -> dict[str, Any]:
    last: dict[str, Any] = {"role": "assistant", "content": gold}
    if isinstance(gold, list):
        calls = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in gold]
        last = {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}
    return {"messages": [*USER, *before, last], "tools": TOOLS} | ({"kind": kind} if kind else {})


OSLO, ROME = ("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})
SAID_OSLO, SAID_ROME = (Call(name, json.dumps(arguments)) for name, arguments in (OSLO, ROME))
RESULT = {"role": "tool", "tool_call_id": "a", "content": '{"temperature": 17.5, "sky": "clear"}'}


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "right", "wrong"),
    [
        ("call", [OSLO], Answer(calls=(SAID_OSLO,)), 5, ""),
        ("call", [OSLO], Answer(calls=(Call("get_weather", '{"city":"oslo"}'),)), 4, "another value"),
        ("call", [OSLO], Answer(calls=(Call("get_weather", "{}"),)), 3, "an argument left out"),
        ("call", [OSLO], Answer(calls=(Call("get_weather", '{"city": "Oslo"'),)), 2, "broken JSON"),
        ("call", [OSLO], Answer(calls=(SAID_OSLO, SAID_ROME)), 4, "more than one call"),
        ("call", [OSLO], Answer(calls=(Call("get", "{}"),)), 2, "another function"),
        ("call", [OSLO], Answer("Sunny."), 0, "no call"),
        ("parallel", [OSLO, ROME], Answer(calls=(SAID_ROME, SAID_OSLO)), 5, ""),
        ("parallel", [OSLO, OSLO], Answer(calls=(SAID_ROME, SAID_OSLO)), 4, "other arguments in parallel calls"),
        ("parallel", [OSLO, ROME], Answer(calls=(SAID_OSLO,)), 3, "another number of calls"),
        ("decline", "I cannot.", Answer("No."), 1, ""),
        ("decline", "I cannot.", Answer(calls=(SAID_OSLO,)), 2, "a call that should not be"),
        ("ask", "Which city?", Answer("Tell me the city."), 2, ""),
        ("ask", "Which city?", Answer("Which country?"), 1, "asks for another thing"),
        ("ask", "Which city?", Answer("It is sunny."), 0, "text that asks nothing"),
        ("result", "It is 17.5 degrees.", Answer("Now: 17.5."), 1, ""),
        ("result", "It is 17.5 degrees.", Answer("It is clear."), 0, "nothing of the result in it"),
        ("chat", "Hello.", Answer(" "), 0, "nothing said"),
    ],
)
def test_held_out_answers(kind: str, gold: Any, answer: Answer, right: int, wrong: str) -> None:
    suite = HeldOut(Path())
    verdict = suite.judge(read_case(line(kind, gold, RESULT), "1"), [[answer]])
    assert (sum(verdict.measures.values()), verdict.why) == (right, wrong)
    assert set(verdict.measures) <= set(suite.order)


def test_a_line_without_a_kind_is_what_its_answer_is() -> None:
    golds: list[Any] = ["Hello.", [OSLO], [OSLO, ROME]]
    assert [read_case(line(None, gold), "1").gold["kind"] for gold in golds] == ["chat", "call", "parallel"]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(line("call", [OSLO])) + '\n\n{"messages": []}\n')
    with pytest.raises(LineError, match=r"own\.jsonl, line 3"):
        HeldOut(path).cases()


# ------------------------------------------------------------------------------------------------ demo and chat


class Oracle:
    """Answers a demo conversation as its own file says it should; remembers what it was asked."""

    def __init__(self, case: Case) -> None:
        self.turns = iter(case.gold["turns"])
        self.asked: list[dict[str, Any]] = []

    async def ask(self, body: dict[str, Any]) -> Answer:
        self.asked.append(json.loads(json.dumps(body)))
        turn = next(self.turns)
        if "call" not in turn:
            words = [word[0] if isinstance(word, list) else word for word in turn.get("has", ())]
            return Answer(f"It is {' '.join(words)}.", finish="stop")
        return Answer(
            calls=(Call(turn["call"], json.dumps(self.arguments(body, turn)), "call_1"),), finish="tool_calls"
        )

    def arguments(self, body: dict[str, Any], turn: dict[str, Any]) -> dict[str, str]:
        offered = [*body.get("functions", ()), *(tool["function"] for tool in body.get("tools", ()))]
        required = next(one["parameters"]["required"] for one in offered if one["name"] == turn["call"])
        return {name: f"the {turn['with'].get(name, 'rest')}" for name in required}


async def demo(case: Case, *ways: Oracle) -> str:
    pairs = zip(ways, case.ways, strict=True)
    answers = [await converse(Question("demo", case, "constrained", way), oracle, {}) for oracle, way in pairs]
    return Demo().judge(case, answers).why


async def test_the_demo_can_be_passed() -> None:
    cases = Demo().cases()
    assert len(cases) == 20
    assert [await demo(case, Oracle(case), Oracle(case)) for case in cases] == [""] * 20


async def test_a_result_goes_back_as_clients_send_it() -> None:
    cases = {case.id: case for case in Demo().cases()}
    for name, role in (("tang-result", "tool"), ("song-result-functions", "function")):
        oracle = Oracle(cases[name])
        await converse(Question("demo", cases[name], "unconstrained", True), oracle, {"model": "m"})
        user, assistant, result = oracle.asked[1]["messages"]
        assert (user["role"], assistant["role"], result["role"]) == ("user", "assistant", role)
        called = assistant["function_call"] if role == "function" else assistant["tool_calls"][0]["function"]
        assert called["name"] == "get_car_price"
        assert result["name" if role == "function" else "tool_call_id"] == ("get_car_price", "call_1")[role == "tool"]


class Silent(Oracle):
    async def ask(self, body: dict[str, Any]) -> Answer:
        return Answer("I do not know.", finish="stop")


class Polite(Oracle):
    def arguments(self, body: dict[str, Any], turn: dict[str, Any]) -> dict[str, str]:
        return {**super().arguments(body, turn), "please": "yes"}


async def test_the_demo_can_be_failed() -> None:
    case = next(case for case in Demo().cases() if case.id == "istanbul-result")
    assert await demo(case, Oracle(case), Silent(case)) == "no call"
    assert await demo(case, Oracle(case), Polite(case)) == "streamed and whole answers differ"


def test_plain_answers() -> None:
    suite = Chat()
    cases = {case.gold["say"]: case for case in suite.cases()}
    assert len(cases) == 20
    france = cases["What is the capital of France?"]

    def why(text: str, finish: str = "stop", *calls: Call) -> str:
        return suite.judge(france, [[Answer(text, calls, finish)]]).why

    assert why("It is Paris.") == ""
    assert why("It is Parisian.") == ""  # words count by how they begin
    assert why("It is Lyon.") == "the expected words are not in it"
    assert why("Paris", "length") == "an answer without an end"
    assert why("", "stop", CALL) == "a call that should not be"
    assert why("Paris is a city and it is nice. " * 5) == "goes round in circles"
    assert not circles("one two three four five six " * 3)


# ------------------------------------------------------------------------------------------------ the endpoint


async def ask(engine: Any, body: dict[str, Any], seconds: float = 10) -> Answer:
    with served(engine) as url:
        server = Endpoint(url, "none", seconds)
        try:
            return await server.ask({"model": MODEL, "messages": USER, **body})
        finally:
            await server.close()


@pytest.mark.parametrize("offer", [{"tools": TOOLS}, {"functions": [WEATHER]}], ids=["tools", "functions"])
async def test_streamed_and_whole_answers_are_the_same(offer: dict[str, Any]) -> None:
    text = call_text() if "functions" in offer else f"Well. {call_text()}\n{call_text()}"
    streamed, whole = [await ask(engine_saying(text), {**offer, "stream": stream}) for stream in (True, False)]
    assert streamed.said == whole.said
    assert [call.arguments for call in whole.calls] == [ARGUMENTS] * len(whole.calls)
    assert len(whole.calls) == (1 if "functions" in offer else 2)
    assert streamed.tokens == whole.tokens > 0
    assert all(call.id for call in streamed.calls) == ("tools" in offer)


async def test_what_a_server_does_wrong_is_an_error() -> None:
    assert (await ask(engine_saying("Hi"), {"temperature": 9})).error.startswith("status 400")
    failing = engine_saying("Hi")
    failing.scripts = [[RuntimeError("broken")]]
    assert (await ask(failing, {})).error.startswith("status 500")
    assert (await ask(failing, {"stream": True})).error != ""
    assert (await ask(engine_saying("Hi"), {}, seconds=1e-6)).error == "timeout"
    with pytest.raises(Gone):
        await Endpoint("http://127.0.0.1:9", "none", 5).ask({"model": MODEL, "messages": USER})


async def test_a_schema_that_is_refused_is_asked_without_strict() -> None:
    engine = engine_saying(call_text())

    def refuse(schema: Any) -> None:
        raise ValueError("$: no")

    engine.refuse = refuse
    answer = await ask(engine, with_strict({"tools": TOOLS}))
    assert answer.relaxed
    assert [(call.name, call.arguments) for call in answer.calls] == [(CALL.name, CALL.arguments)]
    assert not (await ask(engine, {"tools": TOOLS})).relaxed


# ------------------------------------------------------------------------------------------------ a run


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    lines = [
        line("call", [("get_weather", json.loads(ARGUMENTS))]),
        line("decline", "I cannot."),
        line("chat", "Hello."),
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_a_run_and_its_second_half(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, output = engine_saying(call_text()), tmp_path / "run"
    with served(engine) as url:
        command = ["--url", url, "--heldout", str(own), "--output", str(output), "--mode", "both", "--label", "ours"]
        assert main(command) == 0
        results = json.loads((output / "results.json").read_text())
        assert len(engine.requests) == 6
        answers = output / "answers.jsonl"
        answers.write_text(answers.read_text()[:-20])  # killed while it wrote
        assert main(command) == 0
        assert len(engine.requests) == 7
        assert main([*command, "--max-tokens", "7"]) == 2
        assert "max_tokens differ" in capsys.readouterr().err
    again = json.loads((output / "results.json").read_text())
    assert again["suites"] == results["suites"]
    measures = results["suites"]["heldout"]["constrained"]["measures"]
    assert measures["exact arguments of one call"] == {"n": 1, "right": 1, "score": 1.0, "low": 0.2065, "high": 1.0}
    assert measures["declines when no function fits"]["score"] == 0
    text = (output / "page.html").read_text()
    assert "<script" not in text
    assert "src=" not in text
    assert text.count("<svg") == 1

    assert main(["--compare", str(output / "results.json"), str(output / "results.json")]) == 0
    table = capsys.readouterr().out
    assert table.count("ours, constrained") == 2
    assert re.search(r"exact arguments of one call +1 +1\.000 \[0\.21 1\.00\]", table)
    assert main(["--compare", str(own)]) == 2


def test_an_error_is_wrong_in_all_that_it_counts_for(own: Path) -> None:
    suite = HeldOut(own)
    cases = suite.cases()
    broken = [Answer(error="timeout")]
    assert judged(suite, cases[1], [broken]).measures == {"declines when no function fits": False}
    asked = {Question("heldout", case, "unconstrained", False).key: broken for case in cases}
    found = tally(suite, cases, "unconstrained", asked)
    assert found["errors"] == {"timeout": 3}
    assert [value["score"] for value in found["measures"].values()] == [0] * 5


def test_a_page_of_nothing_but_text_is_escaped() -> None:
    figures = {"measures": {"<b>": {"n": 1, "right": 1, "score": 1.0, "low": 0.2, "high": 1.0}}, "wrong": {}}
    suites = {"demo": {"unconstrained": {**figures, "errors": {}, "asked without strict": 0, "requests": 1}}}
    about = {"label": "<i>", "model": "m", "url": "u", "asked": "today"}
    assert not {"<b>", "<i>"} & set(page([{**about, "suites": suites}]).split("style"))
    assert "&lt;b&gt;" in page([{**about, "suites": suites}])


def test_where_two_answers_part() -> None:
    assert equality.first_difference([1, 2], [1, 2]) is None
    assert equality.first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert equality.first_difference([1, 2], [1]) == 1
    assert equality.until([5, 6, 2, 7], (2,)) == [5, 6]


# ------------------------------------------------------------------------------------------------ BFCL


@needs_bfcl
def test_the_blocklist_is_what_bfcl_has() -> None:
    names = bfcl_words.BLOCKLIST.read_text().splitlines()
    assert names == sorted(bfcl_words.bfcl_names())
    assert {"calculate_triangle_area", "absolute_value"} <= set(names)
    assert "Find the area of a triangle with a base of 10 units and height of 5 units." in bfcl_words.bfcl_prompts()


@pytest.mark.parametrize(
    ("written", "snake"),
    [("math.factorial", "math_factorial"), ("getHTTPHeader2", "get_http_header2"), ("Land Use", "land_use")],
)
def test_names_are_compared_in_one_form(written: str, snake: str) -> None:
    assert bfcl_words.snake_case(written) == snake


@needs_bfcl
def test_bfcl_is_asked_and_judged_by_its_own_rules() -> None:
    suite = Bfcl(("simple_python", "parallel", "irrelevance", "live_relevance"))
    cases = {case.id: case for case in suite.cases()}
    assert len(cases) == 400 + 200 + 240 + 16
    factorial = cases["simple_python_1"]
    offered = factorial.offer["tools"][0]["function"]
    assert offered["name"] == "math_factorial"
    assert offered["parameters"]["type"] == "object"

    def why(case: str, *calls: tuple[str, str]) -> str:
        return suite.judge(cases[case], [[Answer(calls=tuple(Call(*call) for call in calls))]]).why

    assert why("simple_python_1", ("math_factorial", '{"number": 5}')) == ""
    assert why("simple_python_1", ("math.factorial", '{"number": 5}')).endswith("wrong_func_name")
    assert why("simple_python_1", ("math_factorial", '{"number": 6}')).startswith("value_error")
    assert why("simple_python_1", ("math_factorial", '{"number": 5')) == "broken JSON"
    assert why("simple_python_1", ("math_factorial", "5")) == "arguments that are no object"
    assert why("simple_python_1") == "no call"
    assert why("irrelevance_0") == ""
    assert why("irrelevance_0", ("f", '{"a": ')) == ""  # nothing that can be decoded is no call, for BFCL
    assert why("irrelevance_0", ("f", "{}")) == "a call that should not be"
    assert why("live_relevance_0-0-0") == "no call"
    play = cases["parallel_0"].gold["answers"]
    calls = [
        ("spotify_play", json.dumps({name: values[0] for name, values in a["spotify.play"].items()})) for a in play
    ]
    assert why("parallel_0", *reversed(calls)) == ""
    assert why("parallel_0", calls[0]) != ""


@needs_bfcl
def test_bfcl_leaves_nothing_among_the_packages() -> None:
    Bfcl(("live_relevance",)).cases()
    assert not {"result", "score", ".file_locks"} & {
        path.name for path in bfcl_words.data_folder().parents[1].iterdir()
    }


def test_names_of_measures_are_told_apart() -> None:
    measures = [*CATEGORIES, *HeldOut.order, *Demo.order, *Chat.order]
    assert len(measures) == len(set(measures))
    assert {ALL, SENSIBLE} <= set(measures)
