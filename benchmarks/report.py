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
from typing import Any

from benchmarks.figures import LATENCIES, FileError, Run, parse_slo, read_run, summary, warnings
from benchmarks.page import page

COLUMNS = ("p50", "p90", "p99", "max", "mean")


def counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(values.items())) or "none"


def rows(run: Run, found: Mapping[str, Any]) -> dict[str, str]:
    """What is told of a run and its summary, by the words it is told with; the latencies stand apart."""
    about, generator = run.about, found["generator"]
    load = f"{about.get('rate')}/s {about.get('arrival')}"
    if about.get("arrival") == "closed":
        load = f"closed, {about.get('concurrency')} at once"
    limits = ", ".join(f"{figure} ≤ {limit:g} ms" for figure, limit in found["slo"].items()) or "no limits"
    return {
        "model": str(about.get("model")),
        "profile, load": f"{about.get('profile')}, {load}",
        "requests": f"{found['requests']} in {found['seconds']:.1f} s",
        "answered": f"{found['answered']} ({found['requests_per_s']:.2f}/s), {found['calls']} calls",
        "goodput": f"{found['goodput']:.2f}/s ({found['good_share']:.1%}; {limits})",
        "tokens out": f"{found['tokens_out']} ({found['tokens_per_s']:.1f}/s), in {found['chunks']} chunks",
        "tokens in": f"{found['tokens_in']}, {found['tokens_cached']} of them cached",
        "errors": f"{found['error_rate']:.1%}: {counts(found['errors'])}" if found["errors"] else "none",
        "broken streams": f"{found['broken']}: {counts(found['problems'])}" if found["broken"] else "none",
        "stream = whole": counts(found["verified"]) if run.verified else "not asked for",
        "late, missed": f"{found['late']} (at most {found['latest_ms']:.1f} ms), {found['missed']}",
        "generator": f"lag p99 {generator['lag_p99_ms']:.1f} ms, {generator['cpu_share']:.0%} of a core"
        if generator
        else "unknown",
    }


def aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def table(runs: Mapping[str, Run], slo: Mapping[str, float] | None = None) -> str:
    """One column a run, then the latencies, and what makes the figures doubtful."""
    found = {name: summary(run, slo) for name, run in runs.items()}
    told = [rows(run, found[name]) for name, run in runs.items()]
    counted = [["", *runs], *([key, *(column[key] for column in told)] for key in told[0])]
    several = len(runs) > 1
    timed = [["ms", *([""] if several else []), *COLUMNS]]
    for figure, meaning in LATENCIES.items():
        label = f"{figure}: {meaning}"
        for name in runs:
            if values := found[name]["latency"].get(figure):
                timed.append([label, *([name] if several else []), *(f"{values[column]:.1f}" for column in COLUMNS)])
                label = ""
    doubts = [
        f"WARNING{f' ({name})' if several else ''}: {warning}"
        for name, run in runs.items()
        for warning in warnings(run, found[name])
    ]
    return "\n\n".join([aligned(counted), aligned(timed), *(["\n".join(doubts)] if doubts else [])])


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
