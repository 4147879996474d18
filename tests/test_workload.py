"""benchmarks/workload.py: a seed plans the same requests, rates are right by count, profiles ask for their kind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from benchmarks.loadgen.folding import Answer, Called
from benchmarks.workload import MATERIAL, PROFILES, Form, Mix, Workload, WorkloadError, arrivals, bfcl_request

BFCL = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "How far is it?"}]],
    "function": [
        {
            "name": "geo.distance",
            "description": "d",
            "parameters": {
                "type": "dict",
                "properties": {
                    "type": {"type": "float"},
                    "points": {"type": "array", "items": {"type": "tuple", "items": {"type": "any"}}},
                },
                "required": ["type"],
            },
        }
    ],
}


def until(kind: str, rate: float, seed: int, seconds: float) -> list[float]:
    return list(itertools.takewhile(lambda at: at < seconds, arrivals(kind, rate, seed)))


@given(st.sampled_from(["poisson", "constant", "burst"]), st.integers(0, 1000))
def test_arrivals_follow_the_seed_and_the_rate(kind: str, seed: int) -> None:
    times = until(kind, 50.0, seed, 200.0)
    assert times == until(kind, 50.0, seed, 200.0)
    assert times == sorted(times)
    # 10,000 are due; of a burst's groups there are 625, so the count's deviation is 16 * 25.
    deviation = {"constant": 1, "poisson": 100, "burst": 400}[kind]
    assert abs(len(times) - 10_000) <= 6 * deviation


def test_how_arrivals_are_spread() -> None:
    assert until("constant", 4.0, 0, 1.0) == [0.0, 0.25, 0.5, 0.75]
    groups = [list(group) for _, group in itertools.groupby(until("burst", 50.0, 1, 20.0))]
    assert {len(group) for group in groups} == {16}
    assert until("poisson", 5.0, 1, 10.0) != until("poisson", 5.0, 2, 10.0)


@pytest.mark.parametrize("profile", PROFILES)
def test_sessions_are_the_seeds_in_any_order(profile: str) -> None:
    mix = Mix(profile, seed=7)
    forward = [Workload(mix, Form()).session(i).body for i in range(40)]
    again = Workload(mix, Form())
    assert [again.session(i).body for i in reversed(range(40))] == forward[::-1]
    assert Workload(Mix(profile, seed=8), Form()).session(0).body != forward[0]
    assert len({json.dumps(body) for body in forward}) == 40


@pytest.mark.parametrize("profile", PROFILES)
def test_lengths_and_tools_stay_in_their_ranges_and_vary(profile: str) -> None:
    mix = Mix(profile, words=(50, 60), tools=(2, 5))
    bodies = [Workload(mix, Form()).session(i).body for i in range(60)]
    counts = {len(body.get("tools", ())) for body in bodies}
    assert counts == ({0} if profile == "chat" else {2, 3, 4, 5})
    texts = [body["messages"][0]["content"].partition("\n\n")[0].split() for body in bodies]
    assert {50 <= len(text) <= 60 + 25 for text in texts} == {True}  # whole sentences


def test_functions_are_ones_that_a_server_takes() -> None:
    names = [function["name"] for function in MATERIAL["functions"]]
    assert len(set(names)) == len(names) >= 20
    for function in MATERIAL["functions"]:
        Draft202012Validator.check_schema(function["parameters"])
        assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])


def test_a_shared_prefix_is_the_same_text_and_tools() -> None:
    workload = Workload(Mix("agent", shared_prefix=300), Form())
    first, second = workload.session(0).body, workload.session(1).body
    assert first["messages"][0] == second["messages"][0]
    assert len(first["messages"][0]["content"].split()) >= 300
    assert first["tools"] == second["tools"]
    assert first["messages"][1] != second["messages"][1]


def test_an_agent_goes_on_with_the_results_of_its_calls() -> None:
    session = Workload(Mix("agent", turns=(4, 4)), Form()).session(0)
    assert session.turns == 4
    before = session.body["messages"]
    calls = [Called("a", "{}", "id0"), Called("b", '{"x": 1}', "id1"), Called("c", '{"cut', "id2")]
    assert session.proceed(Answer("Well.", "", calls, "tool_calls"))
    said, *heard = session.body["messages"][len(before) :]
    assert said["content"] == "Well."
    assert [call["id"] for call in said["tool_calls"]] == ["id0", "id1"]
    assert [(message["role"], message["tool_call_id"]) for message in heard] == [("tool", "id0"), ("tool", "id1")]
    assert session.proceed(Answer("No call."))
    assert session.body["messages"][-1]["role"] == "user"
    assert session.proceed(Answer())
    assert not session.proceed(Answer())


def test_the_form_is_put_over_what_is_asked() -> None:
    asked = {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f"}}]}
    form = Form("m", tool_choice="required", max_tokens=9, temperature=0.0, extra={"seed": 3})
    assert form.body({**asked, "max_completion_tokens": 50, "temperature": 1}) == {
        **asked,
        "model": "m",
        "tool_choice": "required",
        "max_tokens": 9,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
    }
    assert "tool_choice" not in form.body({"messages": asked["messages"]})
    assert "stream_options" not in Form("m", stream=False).body(asked)


def test_the_older_functions_api() -> None:
    session = Workload(Mix("agent", turns=(2, 2)), Form("m", legacy=True)).session(0)
    offered = [tool["function"] for tool in session.body["tools"]]
    session.proceed(Answer(calls=[Called("a", "{}", None)]))
    body = Form("m", legacy=True).body(session.body)
    assert body["functions"] == offered
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(body)
    *_, said, heard = body["messages"]
    assert said["function_call"] == {"name": "a", "arguments": "{}"}
    assert (heard["role"], heard["name"]) == ("function", "a")
    assert "tool_call_id" not in heard


def test_a_dataset_is_played_in_order_and_again(tmp_path: Path) -> None:
    bodies: list[Any] = [{"messages": [{"role": "user", "content": text}]} for text in "ab"]
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(bodies[0]) + "\n\n" + json.dumps({"custom_id": "1", "body": bodies[1]}) + "\n")
    workload = Workload(Mix(dataset=file), Form())
    assert [workload.session(i).body for i in range(3)] == [*bodies, bodies[0]]


def test_bfcl_questions_become_requests(tmp_path: Path) -> None:
    file = tmp_path / "bfcl.json"
    file.write_text(json.dumps(BFCL))
    (tool,) = Workload(Mix("bfcl", dataset=file), Form()).session(0).body["tools"]
    assert tool["function"]["name"] == "geo_distance"
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "type": {"type": "number"},
            "points": {"type": "array", "items": {"type": "array", "items": {}}},
        },
        "required": ["type"],
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no requests"),
        ("{", "line 1"),
        ('{"prompt": "x"}', "no messages"),
        ("[]", "no messages"),
        (None, "cannot be read"),
    ],
)
def test_what_a_dataset_is_refused_for(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "own.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(WorkloadError, match=told):
        Workload(Mix(dataset=file), Form())


def test_bfcl_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WorkloadError, match="pip install --no-deps bfcl-eval"):
        Workload(Mix("bfcl"), Form())
    with pytest.raises(WorkloadError, match="not a question"):
        bfcl_request({"id": "x"})
