"""What no training data of ours may contain: BFCL's function names and prompts, for a blocklist and a test of overlap.

In: the files of the package `bfcl-eval`, found without importing it (its modules pull in every vendor's client). Out:
names in lower snake_case, prompts as written, of all categories: also of those that we do not ask, and of those that
BFCL itself has retired. `python -m functionary_vllm.evaluation.bfcl_words` writes the blocklist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BLOCKLIST = Path(__file__).resolve().parents[1] / "training" / "dataset" / "blocked_names.txt"
INSTALL = "pip install --no-deps bfcl-eval==2026.3.23"

# A word's end: before a capital that follows a small letter or digit, and before the last capital of a row of them.
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def data_folder() -> Path:
    spec = find_spec("bfcl_eval")
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(f"BFCL's data is in a package of its own: {INSTALL}", name="bfcl_eval")
    return Path(spec.origin).parent / "data"


def snake_case(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", _HUMPS.sub("_", name).lower()).strip("_")


def bfcl_names() -> set[str]:
    """Each name as a whole; a dotted one also by its last part, where that is more than one word."""
    found = set()
    for written in {name for value in _records() for name in _names(value)}:
        found.add(snake_case(written))
        last = snake_case(written.rpartition(".")[2])
        if "_" in last:
            found.add(last)
    return found - {""}


def bfcl_prompts() -> list[str]:
    """What a user says in any of its conversations, each text once."""
    return list(dict.fromkeys(text for value in _records() for text in _prompts(value.get("question", ()))))


def _records() -> Iterator[dict[str, Any]]:
    for path in sorted(data_folder().rglob("*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except ValueError:  # one file is an object over several lines: ids of other questions, no names
                continue
            if isinstance(value, dict):
                yield value


def _names(record: dict[str, Any]) -> Iterator[str]:
    """Functions that are offered, described in a file of their own, or the answer to a question."""
    if {"name", "parameters"} <= record.keys():
        yield record["name"]
    for offered in record.get("function") or ():
        if isinstance(offered, dict):
            yield offered["name"]
    for answer in record.get("ground_truth") or ():
        if isinstance(answer, dict):
            yield from answer


def _prompts(question: Any) -> Iterator[str]:
    if isinstance(question, str):
        yield question
    elif isinstance(question, dict):
        if question.get("role") == "user":
            yield str(question["content"])
    else:
        for part in question:
            yield from _prompts(part)


if __name__ == "__main__":
    BLOCKLIST.write_text("".join(f"{name}\n" for name in sorted(bfcl_names())))
    print(f"{BLOCKLIST}: {len(bfcl_names())} names, of {len(bfcl_prompts())} prompts")
