"""Answers counted by kind: how sure the model was of each, and whether greedy decoding would have given it.

In: rows of an evaluation, with what the model found likeliest. Out: shares. An answer is exact when every token of it
was the likeliest, and decided right when it begins as a call where the right one does, and only there. Refuses to know
what the tokens mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


class Scores:
    """`first_token` is what calls begin with; where that is no single token, decided right is the first token right."""

    def __init__(self, first_token: int | None) -> None:
        self._first = first_token
        self.counts: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(self, nll: Tensor, likeliest: Tensor, inputs: dict[str, Any]) -> None:
        targets = inputs["targets"]
        self.counts["all", "tokens"] += len(targets)
        self.counts["all", "nll"] += float(nll.sum())
        for begin, end, kind in inputs["spans"]:
            if not kind:
                continue
            said, right = int(likeliest[begin]), int(targets[begin])
            decided = said == right if self._first is None else (said == self._first) == (right == self._first)
            exact = bool((likeliest[begin:end] == targets[begin:end]).all())
            self.counts[kind, "answers"] += 1
            self.counts[kind, "decided"] += decided
            self.counts[kind, "exact"] += exact
            self.counts[kind, "tokens"] += end - begin
            self.counts[kind, "nll"] += float(nll[begin:end].sum())

    def take(self, parts: Iterable[Mapping[tuple[str, str], float]]) -> None:
        """Count what was counted elsewhere, too."""
        for part in parts:
            for name, count in part.items():
                self.counts[name] += count

    def shares(self) -> dict[str, float]:
        """`all` is every answer of every conversation; a kind is the last answers of its conversations."""
        found: dict[str, float] = {}
        for kind in sorted({kind for kind, _ in self.counts}):
            of = {name: count for (k, name), count in self.counts.items() if k == kind}
            found[f"{kind}_nll"] = round(of["nll"] / max(of["tokens"], 1), 5)
            if answers := of.get("answers"):
                found[f"{kind}_decided"] = round(of["decided"] / answers, 4)
                found[f"{kind}_exact"] = round(of["exact"] / answers, 4)
                found[f"{kind}_n"] = int(answers)
        return found
