"""All cases of a suite are asked, so many at once; each answer is in a file as soon as it is there.

In: suites, an endpoint, a file. Out: the answers, those included that the file already had: a run that was cut goes on
where it was, and asks only what is missing or was asked differently. Refuses to know what is right.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from functionary_vllm.evaluation.cases import Answer, Call, Case, Suite
from functionary_vllm.evaluation.endpoint import with_strict

FREE, STRICT = "unconstrained", "constrained"  # arguments as the model writes them, or as the schema makes it


class Asked(Protocol):
    async def ask(self, body: dict[str, Any]) -> Answer: ...


class OtherRun(ValueError):
    """The file has the answers of another model or of other settings."""


@dataclass(frozen=True, slots=True)
class Question:
    """A case in one mode and one way. `key` says what is asked, to the letter: the same in both modes, where there are
    no arguments to constrain, and then it is asked once."""

    suite: str
    case: Case
    mode: str
    streamed: bool
    key: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        asked = json.dumps([self.case.turns, self.offer], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:12]
        way = "streamed" if self.streamed else "whole"
        object.__setattr__(self, "key", f"{self.suite}/{self.case.id}/{way}/{digest}")

    @property
    def offer(self) -> dict[str, Any]:
        return with_strict(self.case.offer) if self.mode == STRICT else self.case.offer


def questions(suite: Suite, cases: Sequence[Case], modes: Sequence[str]) -> Iterator[Question]:
    for mode in modes:
        for case in cases:
            for streamed in case.ways:
                yield Question(suite.name, case, mode, streamed)


class AnswerFile:
    """JSON Lines: what the run is, then a line a conversation."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.answers: dict[str, list[Answer]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.splitlines()
        if lines and (found := json.loads(lines[0])) != run:
            differing = ", ".join(key for key in run if run[key] != found.get(key))
            raise OtherRun(
                f"{path} has answers of another run ({differing} differ): name another --output, or remove it"
            )
        for line in lines[1:]:
            with suppress(ValueError):  # the last one may have been cut
                record = json.loads(line)
                self.answers[record["key"]] = [_answer(value) for value in record["answers"]]
        self._file: TextIO = path.open("a", encoding="utf-8")
        if not lines:
            self._write(run)
        elif not text.endswith("\n"):
            self._file.write("\n")

    def add(self, key: str, answers: list[Answer]) -> None:
        self.answers[key] = answers
        self._write({"key": key, "answers": [asdict(answer) for answer in answers]})

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _answer(value: dict[str, Any]) -> Answer:
    return Answer(**{**value, "calls": tuple(Call(**call) for call in value["calls"])})


async def ask_all(
    asked: Sequence[Question], server: Asked, file: AnswerFile, common: dict[str, Any], at_once: int
) -> None:
    """`common`: what each request has: the model, the temperature, the limit. Raises Gone."""
    missing = [question for question in asked if question.key not in file.answers]
    waiting = iter(missing)

    async def work() -> None:
        for question in waiting:  # all workers take from one iterator
            answers = await converse(question, server, common)
            file.add(question.key, answers)
            errors.extend(answer.error for answer in answers if answer.error)
            bar.set_postfix(errors=len(errors), refresh=False)
            bar.update()

    errors: list[str] = []
    name = f"{asked[0].suite}, {asked[0].mode}" if asked else ""
    with tqdm(total=len(asked), initial=len(asked) - len(missing), desc=name, unit="conversation") as bar:
        workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(missing)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()


async def converse(question: Question, server: Asked, common: dict[str, Any]) -> list[Answer]:
    """Turn by turn; it ends before a result of a function that was not called."""
    messages: list[dict[str, Any]] = []
    answers: list[Answer] = []
    legacy = "functions" in question.offer
    for turn in question.case.turns:
        for message in turn:
            if answers and message["role"] in ("tool", "function"):
                if len(answers[-1].calls) != 1:
                    return answers
                if not legacy:
                    message = {**message, "tool_call_id": answers[-1].calls[0].id}
            messages.append(message)
        body = {**common, **question.offer, "messages": messages, "stream": question.streamed}
        answers.append(await server.ask(body))
        if answers[-1].error:
            return answers
        messages.append(_message(answers[-1], legacy))
    return answers


def _message(answer: Answer, legacy: bool) -> dict[str, Any]:
    """What the model said, as the client sends it back."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    called = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
    if called and legacy:
        message["function_call"] = called[0]
    elif called:
        ids = [call.id for call in answer.calls]
        pairs = zip(ids, called, strict=True)
        message["tool_calls"] = [{"id": id_, "type": "function", "function": function} for id_, function in pairs]
    elif not answer.text:
        message["content"] = ""
    return message
