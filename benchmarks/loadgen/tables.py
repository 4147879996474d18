"""The tables of runs, as rows of text: the terminal aligns them, the page makes cells of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.loadgen.figures import LATENCIES, Run

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


def counted(runs: Mapping[str, Run], found: Mapping[str, Any]) -> list[list[str]]:
    """A column a run."""
    columns = [rows(run, found[name]) for name, run in runs.items()]
    return [["", *runs], *([label, *(column[label] for column in columns)] for label in columns[0])]


def timed(found: Mapping[str, Any]) -> list[list[str]]:
    """A row a figure and run; the run is not named where there is one only."""
    several = len(found) > 1
    lines = [["ms", *(["run"] if several else []), "count", *COLUMNS]]
    for figure, meaning in LATENCIES.items():
        label = f"{figure}: {meaning}"
        for name in found:
            if values := found[name]["latency"].get(figure):
                told = [str(values["count"]), *(f"{values[column]:.1f}" for column in COLUMNS)]
                lines.append([label, *([name] if several else []), *told])
                label = ""
    return lines
