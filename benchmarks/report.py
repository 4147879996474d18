"""Runs of benchmarks.load, told: a table in the terminal, a page with plots, several runs side by side.

In: the files that load.py wrote. Out: text, and with --html one file that needs nothing else. The limits of goodput are
those of the runs, unless --slo gives others.

    python -m benchmarks.report runs/ours.jsonl runs/theirs.jsonl --html compared.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.loadgen.figures import FileError, Run, parse_slo, read_run, summary, warnings
from benchmarks.loadgen.page import page
from benchmarks.loadgen.tables import counted, timed


def aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def table(runs: Mapping[str, Run], slo: Mapping[str, float] | None = None) -> str:
    """One column a run, then the latencies, and what makes the figures doubtful."""
    found = {name: summary(run, slo) for name, run in runs.items()}
    doubts = [
        f"WARNING{f' ({name})' if len(runs) > 1 else ''}: {warning}"
        for name, run in runs.items()
        for warning in warnings(run, found[name])
    ]
    parts = [aligned(counted(runs, found)), aligned(timed(found)), "\n".join(doubts)]
    return "\n\n".join(part for part in parts if part)


def named(paths: list[Path]) -> dict[str, Path]:
    """Runs by the file's name; by as much of its path as tells them apart."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Runs of benchmarks.load, told.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.jsonl")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no other file")
    parser.add_argument("--slo", type=parse_slo, metavar="ttft=500,itl=50", help="default: that of each run")
    options = parser.parse_args()
    try:
        runs = {name: read_run(path) for name, path in named(options.runs).items()}
    except FileError as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    print(table(runs, options.slo))
    if options.html:
        options.html.write_text(page(runs, options.slo), encoding="utf-8")
        print(f"\n{options.html}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
