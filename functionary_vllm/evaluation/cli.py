"""`functionary-vllm evaluate`: a model behind any OpenAI-compatible endpoint is asked, its answers checked and told.

In: an address and what to ask. Out, in the folder --output: answers.jsonl (each answer as it came: the same command
goes on where a run was cut), results.json and page.html; in the terminal a table, each score with its interval.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from functionary_vllm.evaluation.asking import FREE, STRICT, AnswerFile, OtherRun, ask_all, questions
from functionary_vllm.evaluation.bfcl import CATEGORIES, Bfcl
from functionary_vllm.evaluation.cases import Case, Suite
from functionary_vllm.evaluation.conversations import Chat, Demo
from functionary_vllm.evaluation.endpoint import Endpoint, Gone
from functionary_vllm.evaluation.figures import FileError, doubts, read_results, table, tally
from functionary_vllm.evaluation.heldout import HeldOut, LineError
from functionary_vllm.evaluation.page import page

SUITES = ("demo", "chat", "bfcl")
EXAMPLES = """
examples:
  functionary-vllm evaluate                                          demo and chat: forty conversations, a minute or two
  functionary-vllm evaluate --suite bfcl --mode both --output runs/bfcl         Berkeley's leaderboard, its single turns
  functionary-vllm evaluate --suite demo --heldout own.jsonl           your own conversations, their last answer is gold
  functionary-vllm evaluate --compare runs/ours/results.json runs/vllm/results.json --html compared.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.compare:
            tell([read_results(path) for path in options.compare], options.html)
        else:
            asyncio.run(evaluate(options))
    except (Gone, OtherRun, FileError, LineError, ModuleNotFoundError, OSError) as error:
        print(f"functionary-vllm evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The answers are kept: the same command goes on.", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="functionary-vllm evaluate",
        description="Ask a model behind any OpenAI-compatible endpoint, check its answers, tell the figures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = found.add_argument_group("what is asked")
    what.add_argument(
        "--suite", nargs="+", choices=SUITES, help="default: demo and chat, or only --heldout if it is given"
    )
    what.add_argument(
        "--heldout", type=Path, metavar="FILE.jsonl", help="conversations as OpenAI's fine-tuning takes them"
    )
    what.add_argument("--category", nargs="+", choices=CATEGORIES, default=CATEGORIES, metavar="NAME", help="of BFCL")
    what.add_argument(
        "--limit", type=int, metavar="N", help="at most N cases a kind or category, drawn always the same way"
    )
    what.add_argument(
        "--mode",
        choices=(FREE, STRICT, "both"),
        default=FREE,
        help='constrained: functions are sent with "strict", so that the server enforces their schemas',
    )
    whom = found.add_argument_group("who is asked, and how")
    whom.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    whom.add_argument("--model", help="default: the first that the server names")
    whom.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"), help="default: $OPENAI_API_KEY")
    whom.add_argument("--concurrency", type=int, default=16, metavar="N", help="conversations at once; default: 16")
    whom.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of an answer; default: 512")
    whom.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of a request; default: 300")
    told = found.add_argument_group("what is told")
    told.add_argument(
        "--output", type=Path, default=Path("runs/evaluation"), metavar="FOLDER", help="default: %(default)s"
    )
    told.add_argument("--label", help="what the run is called in tables; default: the model's name")
    told.add_argument(
        "--compare", type=Path, nargs="+", metavar="RESULTS.json", help="ask nothing: only these, side by side"
    )
    told.add_argument("--html", type=Path, metavar="FILE", help="where the page goes; default: page.html in --output")
    return found


def chosen(options: argparse.Namespace) -> list[Suite]:
    names = options.suite or ([] if options.heldout else ["demo", "chat"])
    made: dict[str, Suite] = {"demo": Demo(), "chat": Chat(), "bfcl": Bfcl(options.category)}
    suites = [made[name] for name in SUITES if name in names]
    return [*suites, HeldOut(options.heldout)] if options.heldout else suites


def sample(suite: Suite, limit: int | None) -> list[Case]:
    """All cases; or of each kind as many as wanted, in the order they have, the same ones in each run."""
    cases = suite.cases()
    if limit is None:
        return cases
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i, case in enumerate(cases):
        kinds.setdefault(suite.measures(case), []).append(i)
    kept = {i for members in kinds.values() for i in Random(0).sample(members, min(limit, len(members)))}
    return [case for i, case in enumerate(cases) if i in kept]


async def evaluate(options: argparse.Namespace) -> None:
    suites = chosen(options)
    cases = {suite.name: sample(suite, options.limit) for suite in suites}
    modes = [FREE, STRICT] if options.mode == "both" else [options.mode]
    server = Endpoint(options.url, options.api_key, options.timeout)
    began = time.monotonic()
    try:
        model = options.model or next(iter(await server.models()), "")
        common = {"model": model, "temperature": 0, "max_tokens": options.max_tokens}
        file = AnswerFile(options.output / "answers.jsonl", {**common, "url": options.url})
        for suite in suites:
            for mode in modes:
                asked = list(questions(suite, cases[suite.name], [mode]))
                await ask_all(asked, server, file, common, options.concurrency)
        file.close()
    finally:
        await server.close()
    results = {
        "type": "evaluation",
        "label": options.label or model,
        "model": model,
        "url": options.url,
        "asked": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - began),
        "settings": {**common, "concurrency": options.concurrency, "timeout": options.timeout, "limit": options.limit},
        "material": material(suites, options),
        "suites": {
            suite.name: {mode: tally(suite, cases[suite.name], mode, file.answers) for mode in modes}
            for suite in suites
        },
    }
    path = options.output / "results.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)
    tell([results], options.html or options.output / "page.html")


def material(suites: Sequence[Suite], options: argparse.Namespace) -> dict[str, Any]:
    """Which questions these were, where they are not part of this package."""
    found: dict[str, Any] = {}
    for suite in suites:
        if isinstance(suite, Bfcl):
            found["bfcl"] = f"bfcl-eval {suite.version}"
        elif isinstance(suite, HeldOut):
            digest = hashlib.sha256(options.heldout.read_bytes()).hexdigest()
            found["heldout"] = f"{options.heldout.name}, sha256 {digest}"
    return found


def tell(runs: Sequence[dict[str, Any]], html: Path | None) -> None:
    print(f"\n{table(runs)}\n")
    for doubt in doubts(runs):
        print(f"WARNING: {doubt}")
    if html:
        html.write_text(page(runs), encoding="utf-8")
        print(html)


if __name__ == "__main__":
    sys.exit(main())
