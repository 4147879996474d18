"""Runs as one HTML page that needs no other file: figures, distributions, courses over time, the tables they come from.

In: runs by name. Out: the text of the page. It has no script and names no address; each run keeps its colour, also in
the dark form, which follows the reader's system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.loadgen.figures import LATENCIES, Run, over_time, percentile, summary, values_of, warnings
from benchmarks.loadgen.plots import SHADES, Series, cumulative, number
from benchmarks.loadgen.plots import over_time as course
from benchmarks.loadgen.tables import counted, timed
from functionary_vllm.evaluation.style import STYLE

QUANTILES = (*(q / 2 for q in range(1, 199)), 99.2, 99.4, 99.6, 99.8, 99.9)
COURSES = {
    "tokens": ("Tokens out", "per second"),
    "ttft": ("Time to first token", "ms, median of the requests that were planned in each interval"),
    "active": ("Requests under way", "mean of each interval"),
    "errors": ("Errors", "requests that failed, by when they ended"),
}

OWN_STYLE = """
h3 { font-size: 15px; margin: 0; } p, .soft { color: var(--soft); margin: 2px 0 0; } .soft { font-size: 13px; }
.run { margin-top: 16px; } .run h3::before, .key span::before { content: ""; display: inline-block; width: 10px;
  height: 10px; border-radius: 3px; margin-right: 8px; background: var(--shade); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; margin-top: 12px; }
.tiles b { display: block; font-size: 24px; font-weight: 600; line-height: 1.25; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; } svg text { fill: var(--soft); font-size: 11px; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
circle { stroke: var(--card); stroke-width: 2; } .grid { stroke: var(--line); } .axis, .tick { stroke: var(--soft); }
.limit { stroke: var(--soft); stroke-dasharray: 4 3; }
"""


def page(runs: Mapping[str, Run], slo: Mapping[str, float] | None = None) -> str:
    found = {name: summary(run, slo) for name, run in runs.items()}
    shades = {name: i % SHADES for i, name in enumerate(runs)}
    loads = (f"{run.about.get('profile')} on {run.about.get('model')}" for run in runs.values())
    titles = " · ".join(dict.fromkeys(loads))
    begun = ", ".join(dict.fromkeys(str(run.about.get("started", "")) for run in runs.values()))
    doubts = [(name, told) for name, run in runs.items() for told in warnings(run, found[name])]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Load: {escape(titles)}</title><style>{STYLE}{OWN_STYLE}</style></head><body><main>",
        f"<h1>Load: {escape(titles)}</h1><p>{escape(begun)}</p>",
        *(f'<div class="warning"><b>{escape(name)}</b>: {escape(told)}.</div>' for name, told in doubts),
        *(tiles(name, found[name], shades[name]) for name in runs),
        "<h2>Latency</h2>",
        '<p class="soft">Share of the answered requests (for the gaps: of all gaps) at or below a time, which counts'
        " from the planned send. Dots: p50, p90, p99; a pointer over them tells the value. Dashed: a limit of the SLO."
        "</p><br>",
        key(shades),
        f'<div class="plots">{"".join(distributions(runs, found, shades))}</div>',
        "<h2>Over time</h2>",
        key(shades),
        f'<div class="plots">{"".join(courses(runs, shades))}</div>',
        "<h2>Figures</h2>",
        grid(counted(runs, found)),
        "<h2>Latencies in milliseconds</h2>",
        grid(timed(found)),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def tiles(name: str, found: Mapping[str, Any], shade: int) -> str:
    def milliseconds(figure: str, percent: str) -> str:
        values = found["latency"].get(figure)
        return f"{number(values[percent])} ms" if values else "none"

    shown = {
        "requests answered a second": number(found["requests_per_s"]),
        f"good ones ({found['good_share']:.0%} of all)": number(found["goodput"]),
        "tokens out a second": number(found["tokens_per_s"]),
        "TTFT p50": milliseconds("ttft", "p50"),
        "TTFT p99": milliseconds("ttft", "p99"),
        "function name p99": milliseconds("name", "p99"),
        "errors, broken streams": f"{found['error_rate']:.1%}, {found['broken']}",
    }
    cells = "".join(
        f'<div><b>{escape(value)}</b><span class="soft">{escape(what)}</span></div>' for what, value in shown.items()
    )
    head = f'<section class="card run" style="--shade:var(--run-{shade})"><h3>{escape(name)}</h3>'
    return f'{head}<div class="tiles">{cells}</div></section>'


def key(shades: Mapping[str, int]) -> str:
    if len(shades) < 2:
        return ""
    names = "".join(f'<span style="--shade:var(--run-{shade})">{escape(name)}</span>' for name, shade in shades.items())
    return f'<div class="key">{names}</div>'


def card(title: str, note: str, drawn: str) -> str:
    return f'<section class="card"><h3>{escape(title)}</h3><p class="soft">{escape(note)}</p>{drawn}</section>'


def distributions(runs: Mapping[str, Run], found: Mapping[str, Any], shades: Mapping[str, int]) -> list[str]:
    values = {name: values_of(run) for name, run in runs.items()}
    cards = []
    for figure, meaning in LATENCIES.items():
        series = [
            curve(name, shades[name], sorted(values[name][figure]), found[name]["latency"][figure])
            for name in runs
            if values[name][figure]
        ]
        limits = sorted({limit for name in runs if (limit := found[name]["slo"].get(figure)) is not None})
        if series:
            drawn = cumulative(meaning, series, [(limit, f"{number(limit)} ms") for limit in limits])
            cards.append(card(meaning.capitalize(), figure, drawn))
    return cards


def curve(name: str, shade: int, ordered: Sequence[float], found: Mapping[str, float]) -> Series:
    points = [(percentile(ordered, q), q) for q in QUANTILES]
    marks = [(found[f"p{q}"], float(q), f"{name}: p{q} {found[f'p{q}']:.1f} ms") for q in (50, 90, 99)]
    return Series(name, shade, [*points, (ordered[-1], 100.0)], marks)


def courses(runs: Mapping[str, Run], shades: Mapping[str, int]) -> list[str]:
    found = {name: over_time(run) for name, run in runs.items()}
    cards = []
    for what, (title, note) in COURSES.items():
        series = [Series(name, shades[name], found[name][what]) for name in runs if found[name][what]]
        if not series:
            continue
        if what == "errors" and not any(value for one in series for _, value in one.points):
            cards.append(card(title, "none", ""))
        else:
            cards.append(card(title, note, course(title, series, draw_bars=what == "errors")))
    return cards


def grid(lines: Sequence[Sequence[str]]) -> str:
    head, *lines = lines
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="card scroll"><table><tr>{top}</tr>{body}</table></div>'
