"""Results as one HTML page that needs no other file: a plot a suite, the table, what was wrong how often.

In: results, of one run or of several that are compared. Out: the text of the page. It has no script and names no
address; its plots are SVG, coloured by CSS variables, so that the page has its dark form.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from functionary_vllm.evaluation.figures import cell, columns, doubts, rows

SHADES = 8
WIDTH, LEFT, RIGHT, BAR, GAP, FOOT = 900, 250, 60, 14, 14, 26

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fcfcfb; --ink: #14140f; --soft: #5c5b56; --line: #e3e2dc;
  --warn: #fdf0d5; --warn-line: #e2a93b; --run-0: #2a78d6; --run-1: #eb6834; --run-2: #1baf7a; --run-3: #eda100;
  --run-4: #4a3aa7; --run-5: #e87ba4; --run-6: #008300; --run-7: #e34948; }
@media (prefers-color-scheme: dark) { :root { --page: #111110; --card: #1a1a19; --ink: #f4f3ee; --soft: #b0aea5;
  --line: #33322f; --warn: #33270f; --warn-line: #a9781b; --run-0: #3987e5; --run-1: #d95926; --run-2: #199e70;
  --run-3: #c98500; --run-4: #9085e9; --run-5: #d55181; --run-6: #3f9a3f; --run-7: #e66767; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 40px 0 12px; }
p, .soft { color: var(--soft); margin: 2px 0 12px; font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
.key { display: flex; flex-wrap: wrap; gap: 6px 20px; margin-bottom: 12px; font-size: 14px; }
.key span::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 8px; background: var(--shade); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 4px; padding: 8px 12px;
  margin-top: 12px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .range { stroke: var(--ink); stroke-width: 1.5; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; color: var(--soft); }
td { font-variant-numeric: tabular-nums; } tr:last-child td { border-bottom: 0; }
"""


def page(runs: Sequence[dict[str, Any]]) -> str:
    names = [name for name, _ in columns(runs)]
    told = rows(runs)
    title = "Function calling: " + ", ".join(dict.fromkeys(str(run["model"]) for run in runs))
    about = "; ".join(f"{run['label']}: {run['model']} at {run['url']}, {run['asked']}" for run in runs)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}</h1><p>{escape(about)}</p>",
        *(f'<div class="warning">{escape(doubt)}</div>' for doubt in doubts(runs)),
    ]
    for suite in dict.fromkeys(suite for suite, _, _ in told):
        measured = [(measure, values) for of, measure, values in told if of == suite]
        parts += [
            f"<h2>{escape(suite)}</h2>",
            "<p>Share of right answers; the line is the interval of 95 %.</p>",
            f'<section class="card">{key(names)}{bars(suite, names, measured)}</section><br>',
            grid([["", *(f"{name}, right of n" for name in names)], *map(counted, measured)]),
        ]
    parts += ["<h2>What was wrong</h2>", grid(mistakes(runs)), "</main></body></html>"]
    return "\n".join(part for part in parts if part) + "\n"


def key(names: Sequence[str]) -> str:
    shown = (f'<span style="--shade:var(--run-{i % SHADES})">{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="key">{"".join(shown)}</div>'


Measured = tuple[str, list[dict[str, Any] | None]]


def bars(title: str, names: Sequence[str], measured: Sequence[Measured]) -> str:
    """A group of bars a measure, each with its interval; from 0 to 1."""

    def x(value: float) -> float:
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    group = len(names) * BAR + GAP
    floor = group * len(measured)
    parts = [f'<svg viewBox="0 0 {WIDTH} {floor + FOOT}" role="img" aria-label="{escape(title)}">']
    for fifth in range(6):
        at = x(fifth / 5)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 18}" text-anchor="middle">{fifth / 5:.1f}</text>')
    for row, (measure, values) in enumerate(measured):
        top = row * group + GAP / 2
        middle = top + len(names) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(measure)}</text>')
        for i, value in enumerate(values):
            if value:
                y = top + i * BAR
                tip = escape(f"{names[i]}: {value['right']} of {value['n']}, {cell(value)}")
                parts.append(
                    f'<rect x="{LEFT}" y="{y + 1:.1f}" width="{x(value["score"]) - LEFT:.1f}" height="{BAR - 3}"'
                    f' style="fill:var(--run-{i % SHADES})"><title>{tip}</title></rect>'
                    f'<line class="range" x1="{x(value["low"]):.1f}" x2="{x(value["high"]):.1f}"'
                    f' y1="{y + BAR / 2 - 0.5:.1f}" y2="{y + BAR / 2 - 0.5:.1f}"/>'
                    f'<text x="{x(value["high"]) + 6:.1f}" y="{y + BAR - 3:.1f}">{value["score"]:.3f}</text>'
                )
    return "\n".join([*parts, "</svg>"])


def counted(measured: Measured) -> list[str]:
    measure, values = measured
    return [measure, *(f"{value['right']} of {value['n']}, {cell(value)}" if value else "-" for value in values)]


def mistakes(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a measure and reason, the most frequent of the first column first."""
    told = columns(runs)
    found: dict[tuple[str, str, str], list[int]] = {}
    for i, (_, suites) in enumerate(told):
        for suite, figures in suites.items():
            for measure, whys in figures["wrong"].items():
                for why, count in whys.items():
                    found.setdefault((suite, measure, why), [0] * len(told))[i] = count
    lines = [[" · ".join(what), *map(str, counts)] for what, counts in found.items()]
    return [["", *(name for name, _ in told)], *(lines or [["nothing", *("" for _ in told)]])]


def grid(lines: Sequence[Sequence[str]]) -> str:
    head, *lines = lines
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line) + "</tr>" for line in lines)
    return f'<div class="card scroll"><table><tr>{top}</tr>{body}</table></div>'
