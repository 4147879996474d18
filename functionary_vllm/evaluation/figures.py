"""Answers to figures: of each measure how many cases, how many right, and the interval that goes with it.

In: a suite, its cases, their answers. Out: plain values that a results file holds. Errors of the server are wrong
answers. The interval is Wilson's, of 95 %: it says how far chance alone, in the choice of the cases, can move a score.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from functionary_vllm.evaluation.asking import Question, questions
from functionary_vllm.evaluation.cases import Answer, Case, Suite, Verdict

Z = 1.959964  # of 95 %, two-sided


class FileError(ValueError):
    """No results file."""


def wilson(right: int, n: int) -> tuple[float, float]:
    if not n:
        return 0.0, 1.0
    share, spread = right / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def tally(suite: Suite, cases: Sequence[Case], mode: str, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Of one suite in one mode."""
    asked: dict[str, list[Question]] = {}
    for question in questions(suite, cases, [mode]):
        asked.setdefault(question.case.id, []).append(question)
    right: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    whys: dict[str, Counter[str]] = {}
    given: dict[str, Answer] = {}
    for case in cases:
        ways = [answers[question.key] for question in asked[case.id]]
        given |= {f"{question.key} {i}": a for question in asked[case.id] for i, a in enumerate(answers[question.key])}
        verdict = judged(suite, case, ways)
        counted.update(verdict.measures.keys())
        right.update(measure for measure, good in verdict.measures.items() if good)
        if verdict.why:
            whys.setdefault(suite.measures(case)[0], Counter())[verdict.why] += 1
    ordered = [measure for measure in suite.order if measure in counted]
    ordered += [measure for measure in counted if measure not in ordered]
    return {
        "cases": len(cases),
        "requests": len(given),
        "errors": dict(Counter(answer.error for answer in given.values() if answer.error)),
        "asked without strict": sum(answer.relaxed for answer in given.values()),
        "tokens": sum(answer.tokens for answer in given.values()),
        "measures": {measure: score(right[measure], counted[measure]) for measure in ordered},
        "wrong": {measure: dict(found.most_common()) for measure, found in whys.items()},
    }


def judged(suite: Suite, case: Case, ways: Sequence[Sequence[Answer]]) -> Verdict:
    error = next((answer.error for answers in ways for answer in answers if answer.error), "")
    if error:
        return Verdict(dict.fromkeys(suite.measures(case), False), error.partition(":")[0])
    return suite.judge(case, ways)


def score(right: int, n: int) -> dict[str, Any]:
    low, high = wilson(right, n)
    return {"n": n, "right": right, "score": round(right / n, 4), "low": round(low, 4), "high": round(high, 4)}


def read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["type"] == "evaluation":
            return dict(results)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FileError(f"{path}: no results of an evaluation: {error}") from None
    raise FileError(f"{path}: no results of an evaluation")


def columns(runs: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each run in each mode: its name, and what it has of the suites; a mode is told where a run has two."""
    found = []
    for run in runs:
        modes = list(dict.fromkeys(mode for suite in run["suites"].values() for mode in suite))
        for mode in modes:
            name = f"{run['label']}, {mode}" if len(modes) > 1 or len(runs) == 1 else run["label"]
            found.append((name, {suite: of[mode] for suite, of in run["suites"].items() if mode in of}))
    return found


def rows(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any] | None]]]:
    """Suite, measure, and the score in each column, where it was measured."""
    told = columns(runs)
    found: dict[tuple[str, str], None] = {}
    for _, suites in told:
        for suite, figures in suites.items():
            found.update(dict.fromkeys((suite, measure) for measure in figures["measures"]))
    ordered = sorted(found, key=lambda row: list(dict.fromkeys(suite for suite, _ in found)).index(row[0]))
    return [
        (suite, measure, [suites.get(suite, {}).get("measures", {}).get(measure) for _, suites in told])
        for suite, measure in ordered
    ]


def cell(value: dict[str, Any] | None) -> str:
    return f"{value['score']:.3f} [{value['low']:.2f} {value['high']:.2f}]" if value else "-"


def table(runs: Sequence[dict[str, Any]]) -> str:
    """For the terminal: a line a measure, a column a run and mode; n where all columns have the same."""
    lines = [["", "n", *(name for name, _ in columns(runs))]]
    suite = ""
    for of, measure, values in rows(runs):
        if of != suite:
            lines.append([suite := of, "", *("" for _ in values)])
        counts = sorted({value["n"] for value in values if value})
        lines.append([f"  {measure}", " to ".join(str(n) for n in counts), *(cell(value) for value in values)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def doubts(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader has to know before the figures."""
    found = []
    for name, suites in columns(runs):
        for suite, figures in suites.items():
            if failed := sum(figures["errors"].values()):
                kinds = ", ".join(f"{error} ({count})" for error, count in list(figures["errors"].items())[:3])
                found.append(f"{name}, {suite}: {failed} of {figures['requests']} requests failed: {kinds}")
            if relaxed := figures["asked without strict"]:
                found.append(f"{name}, {suite}: {relaxed} of {figures['requests']} requests went without strict")
    return found
