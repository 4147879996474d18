"""The loss of a run as a picture.

In: a run's folder with its metrics. Out: `loss.png` there: the loss of training and held-out data over the tokens, and
below it the share of held-out answers that were exact, by kind. Refuses to compute anything new.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from functionary_vllm.training.record import read_metrics


def draw_metrics(folder: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(folder)
    figure, (losses, exact) = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True, layout="constrained")
    _curve(losses, lines, "loss", "training (first tokens weighted)")
    _curve(losses, lines, "eval_all_nll", "held out, a token")
    losses.set(yscale="log", ylabel="loss")
    losses.legend()
    for name in sorted({name for line in lines for name in line if name.endswith("_exact")}):
        _curve(exact, lines, name, name.removeprefix("eval_").removesuffix("_exact"))
    exact.set(xlabel="tokens", ylabel="exact answers, held out", ylim=(0, 1))
    if exact.lines:
        exact.legend(loc="lower right")
    figure.savefig(folder / "loss.png", dpi=120)
    pyplot.close(figure)
    return folder / "loss.png"


def _curve(axes: Any, lines: list[dict[str, Any]], name: str, label: str) -> None:
    points = [(line["tokens"], line[name]) for line in lines if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else "")
