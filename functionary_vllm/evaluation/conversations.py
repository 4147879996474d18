"""The two suites whose cases lie beside this file: conversations with functions, and plain prompts.

A demo conversation is asked streamed and whole; both have to pass and to say the same. What the model called is sent
back with the result, as a client does. A plain answer is right if it calls nothing, ends by itself, does not go round
in circles, and has an expected word in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from functionary_vllm.evaluation.cases import Answer, Answers, Case, NotJson, Verdict, parse_arguments

HERE = Path(__file__).parent
ALL = "all conversations"
SENSIBLE = "sensible answers"
RUN, OFTEN = 6, 4  # the same words in a row, so many of them so many times, are a circle


class Demo:
    name = "demo"
    order = ("weather", "car price", "two turns with a result", "plain chat", ALL)

    def cases(self) -> list[Case]:
        data = yaml.safe_load((HERE / "demo.yaml").read_text())
        return [_conversation(one, data["functions"]) for one in data["conversations"]]

    def measures(self, case: Case) -> tuple[str, ...]:
        return case.gold["group"], ALL

    def judge(self, case: Case, ways: Sequence[Answers]) -> Verdict:
        wrong = [_wrong_in(answers, case.gold) for answers in ways]
        why = next(filter(None, wrong), "")
        if not why and len({tuple(answer.said for answer in answers) for answers in ways}) > 1:
            why = "streamed and whole answers differ"
        return Verdict(dict.fromkeys(self.measures(case), not why), why)


def _conversation(one: dict[str, Any], functions: dict[str, Any]) -> Case:
    legacy = one.get("api") == "functions"
    offered = [functions[name] for name in one.get("offer", ())]
    offer: dict[str, Any] = {}
    if offered:
        tools = [{"type": "function", "function": function} for function in offered]
        offer = {"functions": offered} if legacy else {"tools": tools, "tool_choice": "auto"}
    called, turns = "", []
    for turn in one["turns"]:
        if "result" in turn:  # whoever asks adds the id of the call
            role = {"role": "function", "name": called} if legacy else {"role": "tool"}
            turns.append([{**role, "content": turn["result"]}])
        else:
            turns.append([{"role": "user", "content": turn["say"]}])
        called = turn.get("call", called)
    required = {function["name"]: function["parameters"]["required"] for function in offered}
    gold = {"group": one["group"], "turns": one["turns"], "required": required}
    return Case(one["id"], tuple(turns), offer, gold, ways=(True, False))


def _wrong_in(answers: Answers, gold: dict[str, Any]) -> str:
    for turn, answer in zip(gold["turns"], answers, strict=False):
        why = _wrong_call(answer, turn, gold["required"]) if "call" in turn else _wrong_text(answer, turn)
        if why:
            return why
    return "" if len(answers) == len(gold["turns"]) else "the conversation broke off"


def _wrong_call(answer: Answer, turn: dict[str, Any], required: dict[str, list[str]]) -> str:
    if len(answer.calls) != 1:
        return "more than one call" if answer.calls else "no call"
    call = answer.calls[0]
    if call.name != turn["call"]:
        return "another function"
    try:
        given = parse_arguments(call.arguments)
    except NotJson:
        return "broken JSON"
    if not given.keys() >= set(required[call.name]):
        return "an argument left out"
    wanted = turn.get("with", {})
    return (
        "" if all(text.casefold() in str(given[name]).casefold() for name, text in wanted.items()) else "another value"
    )


def _wrong_text(answer: Answer, turn: dict[str, Any]) -> str:
    if answer.calls:
        return "a call that should not be"
    if not answer.text.strip():
        return "nothing said"
    if answer.finish != "stop":
        return "an answer without an end"
    for wanted in turn.get("has", ()):
        choice = wanted if isinstance(wanted, list) else [wanted]
        if not any(_has(answer.text, word) for word in choice):
            return "the expected words are not in it"
    return ""


def _has(text: str, word: str) -> bool:
    """Where it begins a word or number: `4` is not in 14, `sun` not in unsung, but `plant` is in plants."""
    end = r"(?!\d)" if word[-1].isdigit() else ""
    return re.search(rf"(?<![^\W_]){re.escape(word)}{end}", text, re.IGNORECASE) is not None


class Chat:
    name = "chat"
    order = (SENSIBLE,)

    def cases(self) -> list[Case]:
        prompts = yaml.safe_load((HERE / "chat.yaml").read_text())
        return [
            Case(f"{number:02} {prompt['say']}", ([{"role": "user", "content": prompt["say"]}],), {}, prompt)
            for number, prompt in enumerate(prompts, 1)
        ]

    def measures(self, case: Case) -> tuple[str, ...]:
        return (SENSIBLE,)

    def judge(self, case: Case, ways: Sequence[Answers]) -> Verdict:
        answer = ways[0][0]
        words = case.gold.get("has")
        why = _wrong_text(answer, {"has": [words]} if words else {})
        if not why and circles(answer.text):
            why = "goes round in circles"
        return Verdict({SENSIBLE: not why}, why)


def circles(text: str) -> bool:
    words = re.findall(r"\w+", text.casefold())
    runs = Counter(tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    return any(count >= OFTEN for count in runs.values())
