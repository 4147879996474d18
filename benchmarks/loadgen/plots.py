"""Small plots as SVG text: lines and bars over one x axis, coloured by CSS variables, so that a page has its dark form.

In: series of points. Out: one <svg> that names no file and no font of its own. Knows nothing of what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34
SHADES = 8  # CSS variables --run-0 to --run-7

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One run's points; `marks` are (x, y, what a pointer over them tells)."""

    name: str
    shade: int
    points: Points
    marks: Sequence[tuple[float, float, str]] = ()


@dataclass(frozen=True, slots=True)
class Axes:
    """What the plane is: ranges, ticks and where a value lies."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    log_x: bool = False
    y_suffix: str = ""
    limits: Sequence[tuple[float, str]] = field(default=())  # vertical lines

    def at_x(self, value: float) -> float:
        low, high = self.x
        value = min(max(value, low), high)
        part = math.log(value / low) / math.log(high / low) if self.log_x else (value - low) / (high - low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def number(value: float) -> str:
    """Short, as on an axis: 0.5, 12, 3.4k."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1000:.3g}k" if value >= 10_000 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def steps(low: float, high: float, count: int = 5) -> list[float]:
    """Round values between two."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_steps(low: float, high: float) -> list[float]:
    """1, 2, 5 of each power of ten; fewer over a long range."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low < 300 else (1, 3) if high / low < 10_000 else (1,)
    found = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    return [value for value in found if low <= value <= high]


def svg(title: str, axes: Axes, drawn: Sequence[str]) -> str:
    """The frame of each plot: grid, ticks, labels, and what is drawn in it."""
    floor = HEIGHT - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in steps(*axes.y, count=4):
        y = axes.at_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}{axes.y_suffix}</text>')
    for value in log_steps(*axes.x) if axes.log_x else steps(*axes.x):
        x = axes.at_x(value)
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(axes.x_label)}</text>')
    for value, told in axes.limits:
        if axes.x[0] <= value <= axes.x[1]:
            x = axes.at_x(value)
            parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}"/>')
            parts.append(f'<text x="{x + 4:.1f}" y="{TOP + 8}">{escape(told)}</text>')
    return "\n".join([*parts, *drawn, "</svg>"])


def line(series: Series, axes: Axes) -> str:
    path = " ".join(f"{axes.at_x(x):.1f},{axes.at_y(y):.1f}" for x, y in series.points)
    dots = "".join(
        f'<circle cx="{axes.at_x(x):.1f}" cy="{axes.at_y(y):.1f}" r="4" style="fill:var(--run-{series.shade})">'
        f"<title>{escape(told)}</title></circle>"
        for x, y, told in series.marks
    )
    return f'<polyline points="{path}" style="stroke:var(--run-{series.shade})"/>{dots}'


def bars(series: Series, axes: Axes, slot: tuple[int, int]) -> str:
    """Bars of equal width, the `slot[0]`-th of `slot[1]` that stand side by side."""
    if len(series.points) < 2:
        return ""
    whole = axes.at_x(series.points[1][0]) - axes.at_x(series.points[0][0])
    width = max(1.0, (whole - 2) / slot[1])
    floor = HEIGHT - BOTTOM
    return "".join(
        f'<rect x="{axes.at_x(x) - whole / 2 + 1 + slot[0] * width:.1f}" y="{axes.at_y(y):.1f}" width="{width:.1f}"'
        f' height="{floor - axes.at_y(y):.1f}" style="fill:var(--run-{series.shade})">'
        f"<title>{escape(series.name)}: {number(y)} at {number(x)} s</title></rect>"
        for x, y in series.points
        if y > 0
    )


def cumulative(title: str, series: Sequence[Series], limits: Sequence[tuple[float, str]]) -> str:
    """Share of the values (y, percent) that are at most x milliseconds; logarithmic where the values spread far."""
    low = max(0.1, min(one.points[0][0] for one in series))
    high = max(low * 1.05, *(one.points[-1][0] for one in series))
    log = high / low > 8
    axes = Axes((low, high) if log else (0.0, high), (0.0, 100.0), "ms", log, "%", limits)
    return svg(title, axes, [line(one, axes) for one in series])


def over_time(title: str, series: Sequence[Series], draw_bars: bool = False) -> str:
    last = max(point[0] for one in series for point in one.points)
    top = max(point[1] for one in series for point in one.points)
    axes = Axes((0.0, last), (0.0, top * 1.05 or 1.0), "seconds from the begin")
    if draw_bars:
        return svg(title, axes, [bars(one, axes, (i, len(series))) for i, one in enumerate(series)])
    return svg(title, axes, [line(one, axes) for one in series])
