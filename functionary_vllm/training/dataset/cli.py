"""`functionary-vllm dataset`: writes conversations for training or for testing to a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from functionary_vllm.training.dataset.api_schemas import PACKAGE, api_concepts
from functionary_vllm.training.dataset.generator import Generator


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="functionary-vllm dataset",
        description="Write synthetic conversations about functions as JSONL: a line has messages, tools and a kind, "
        "the form that OpenAI's fine-tuning takes. `functionary-vllm train` reads it, and any other file of that form.",
    )
    made.add_argument("output", type=Path, help="file to write, e.g. runs/train.jsonl")
    made.add_argument("--lines", type=int, default=50_000, help="conversations to write (default: %(default)s)")
    made.add_argument("--seed", type=int, default=1, help="another seed, other conversations (default: %(default)s)")
    made.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="train",
        help="heldout: functions, phrases and values that train never has",
    )
    made.add_argument(
        "--apis",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"with functions of real APIs, from the package {PACKAGE} where it is installed",
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    arguments = parser().parse_args(argv)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    kinds: Counter[str] = Counter()
    if arguments.apis and not api_concepts():
        print(f"{PACKAGE} is not installed: no functions of real APIs", file=sys.stderr)
    with arguments.output.open("w", encoding="utf-8") as file:
        for line in islice(Generator(arguments.seed, arguments.split, apis=arguments.apis).lines(), arguments.lines):
            kinds[line["kind"]] += 1
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(
        f"{arguments.output}: {kinds.total()} conversations: " + ", ".join(f"{n} {k}" for k, n in kinds.most_common())
    )
    return 0
