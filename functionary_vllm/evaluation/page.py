"""Results as one HTML page that needs no other file: a plot a suite, the table, what was wrong how often.

In: results, of one run or of several that are compared. Out: the text of the page. It has no script and names no
address; its plots are SVG, coloured by CSS variables, so that the page has its dark form.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from functionary_vllm.evaluation.figures import cell, columns, doubts, rows
from functionary_vllm.evaluation.style import STYLE

SHADES = 8
WIDTH, LEFT, RIGHT, BAR, GAP, FOOT = 900, 250, 60, 14, 14, 26

OWN_STYLE = """
p, .soft { color: var(--soft); margin: 2px 0 12px; font-size: 13px; }
.key span::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 8px; background: var(--shade); }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .range { stroke: var(--ink); stroke-width: 1.5; }
"""


def page(runs: Sequence[dict[str, Any]]) -> str:
    names = [name for name, _ in columns(runs)]
    told = rows(runs)
    title = "Function calling: " + ", ".join(dict.fromkeys(str(run["model"]) for run in runs))
    about = "; ".join(f"{run['label']}: {run['model']} at {run['url']}, {run['asked']}" for run in runs)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{STYLE}{OWN_STYLE}</style></head><body><main>",
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
