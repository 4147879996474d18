"""The answers that are played: token ids and pace of each, the request that asks for it, and what must come back.

In: a tokenizer. Out: Cases, numbered; a request names its case by `seed`, which no front end changes. `check` says
whether an answer is the one that was recorded. Refuses to know who plays them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rig.drain import fold

_WORDS = "It rained all day, the wind came from the north, and nobody went out. So we stayed in and read. "
_OPEN, _CLOSE = '<tool_call>\n{"name": "write", "arguments": {"text": "', '"}}\n</tool_call>'


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded answer. `expected` is its text, or the arguments of its call; `pieces` the text of each token;
    `silent` how many tokens there are before a stream's second event: those up to a call's name; `words` how many of
    them are free text, each of which is a delta where no step was merged with another."""

    number: int
    id: str
    tool: bool
    interval_ms: float
    token_ids: list[int]
    pieces: list[str]
    expected: str
    silent: int
    words: int

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


def make_case(tokenizer: Any, number: int, id: str, tokens: int, interval_ms: float) -> Case:
    """An answer of exactly so many tokens, the end token included; a tool call when its id begins so."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    tool = id.startswith("tool")
    before, after = (ids(_OPEN), ids(_CLOSE)) if tool else ([], [])
    room = tokens - len(before) - len(after) - 1
    words = ids(_WORDS * (room // 8 + 1))[:room]
    text = str(tokenizer.decode(words))
    token_ids = [*before, *words, *after, tokenizer.eos_token_id]
    pieces = [str(tokenizer.decode([token_id])) for token_id in token_ids[:-1]]
    expected = json.dumps({"text": text}) if tool else text
    silent = len(ids(_OPEN.partition(', "arg')[0])) if tool else 1
    return Case(number, id, tool, interval_ms, token_ids, pieces, expected, silent, len(words))


def write_recordings(cases: Sequence[Case], folder: Path) -> tuple[Path, Path]:
    """The file for engines, real core and replay alike, and that for the floors."""
    steps, chunks = folder / "recordings.jsonl", folder / "chunks.jsonl"
    steps.write_text("".join(json.dumps(_steps(case)) + "\n" for case in cases))
    chunks.write_text("".join(json.dumps(_chunks(case)) + "\n" for case in cases))
    return steps, chunks


def _steps(case: Case) -> dict[str, Any]:
    return {"id": case.id, "token_ids": case.token_ids, "interval_ms": case.interval_ms}


def _chunks(case: Case) -> dict[str, Any]:
    """One event a token, as a server would write them that reads nothing: all of a call is its argument."""
    head = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000}

    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'model': 'model', 'choices': [choice]}, separators=(',', ':'))}\n\n"

    deltas: list[dict[str, Any]]
    if case.tool:
        deltas = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in case.pieces]
    else:
        deltas = [{"content": piece} for piece in case.pieces]
    events = [*map(event, deltas), event({}, "tool_calls" if case.tool else "stop") + "data: [DONE]\n\n"]
    return {"chunks": events, "interval_ms": case.interval_ms}


def tool(number: int = 0) -> dict[str, Any]:
    name = f"write_{number}" if number else "write"
    properties = {"text": {"type": "string", "description": "What to write."}}
    parameters = {"type": "object", "properties": properties, "required": ["text"]}
    return {"type": "function", "function": {"name": name, "description": "Writes.", "parameters": parameters}}


def body(case: Case, *, stream: bool = True, tools: int = 1, named: bool = False) -> bytes:
    """The request; `named` for our replay engine, which goes by `metadata` and not by the seed."""
    asked: dict[str, Any] = {
        "model": "model",
        "messages": [{"role": "user", "content": "Write of the day."}],
        "stream": stream,
        "seed": case.number,
        "max_tokens": case.tokens + 8,
    }
    if case.tool:
        asked["tools"] = [tool(number) for number in range(tools)]
    if named:
        asked["metadata"] = {"recording": case.id}
    return json.dumps(asked).encode()


def check(case: Case, answer: bytes, *, floor: bool = False) -> tuple[str, int]:
    """What is wrong with an answer, empty when nothing is, and how many deltas it had."""
    try:
        folded = fold(answer)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {error}", 0
    if not folded.done:
        return "no [DONE]", folded.deltas
    if folded.finish != ("tool_calls" if case.tool else "stop"):
        return f"finish_reason {folded.finish!r}", folded.deltas
    if floor:
        wrong = folded.deltas != case.tokens - 1
    elif case.tool:
        wrong = folded.name != "write" or _json(folded.arguments) != json.loads(case.expected)
    else:
        wrong = folded.text != case.expected
    return "not what was recorded" if wrong else "", folded.deltas


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
