"""Packs examples: neighbours with a common beginning share it once, and rows are filled with such groups.

In: Examples in the order of their file, in which those of one set of functions stand together. Out: Rows of up to so
many tokens. A row is a list of trees: a shared beginning, then branches that see it and themselves; positions go on
after the beginning in each branch, so the loss is that of the examples one by one. `tree` says so in lengths, for an
attention that works branch by branch; `attention_mask` says it as a matrix, for any other. Only what is learned needs
logits: `logits_to_keep` names the places that predict it. Refuses to know formats and models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from functionary_vllm.training.dataset.examples import Example, Ids

Tree = tuple[int, int, tuple[int, ...]]  # where it starts, length of the shared beginning, lengths of the branches

_MOST = 32  # branches of a group
_LEAST = 8  # tokens: a shorter beginning is not worth sharing
_OPEN = 16  # rows that wait for a group that fits


@dataclass(frozen=True, slots=True)
class Group:
    """Examples that share their first tokens."""

    shared: int
    members: tuple[Example, ...]

    @property
    def size(self) -> int:
        return self.shared + sum(len(example.ids) - self.shared for example in self.members)


@dataclass(slots=True, eq=False)
class Row:
    """Groups that go through the model together."""

    groups: list[Group] = field(default_factory=list)
    size: int = 0

    def add(self, group: Group) -> None:
        self.groups.append(group)
        self.size += group.size


def pack(examples: Sequence[Example], budget: int) -> list[Row]:
    """Rows of at most `budget` tokens; an example that is longer is a row of its own."""
    return list(_rows(groups(examples, budget), budget))


def groups(examples: Sequence[Example], budget: int) -> list[Group]:
    """Neighbours grouped so that as many tokens as possible are saved."""
    common = [0, *(_common(before, after) for before, after in pairwise(examples))]
    # best[j]: what the first j examples save at most, and how many of them are in the last group then.
    best = [(0, 0)]
    for end in range(1, len(examples) + 1):
        best.append((best[end - 1][0], 1))
        shared, whole = 1 << 30, len(examples[end - 1].ids)
        for start in range(end - 1, max(0, end - _MOST), -1):
            shared, whole, count = min(shared, common[start]), whole + len(examples[start - 1].ids), end - start + 1
            saved = shared * (count - 1)
            if shared < _LEAST or whole - saved > budget:
                break
            best[end] = max(best[end], (best[start - 1][0] + saved, count))
    found, end = [], len(examples)
    while end:
        count = best[end][1]
        members = tuple(examples[end - count : end])
        found.append(Group(min(common[end - count + 1 : end], default=0), members))
        end -= count
    return found[::-1]


def _common(before: Example, after: Example) -> int:
    """How many first tokens two examples share, of which none is learned."""
    most = min(before.turns[0][0], after.turns[0][0])
    differ = numpy.flatnonzero(before.ids[:most] != after.ids[:most])
    return int(differ[0]) if len(differ) else most


def _rows(found: Iterable[Group], budget: int) -> Iterator[Row]:
    """Each group goes into the fullest row that has room."""
    waiting: list[Row] = []
    for group in found:
        fitting = [row for row in waiting if row.size + group.size <= budget]
        if not fitting:
            if len(waiting) == _OPEN:
                waiting.sort(key=lambda row: row.size)
                yield waiting.pop()
            waiting.append(Row())
            fitting = waiting[-1:]
        max(fitting, key=lambda row: row.size).add(group)
    yield from waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """A batch of one Row -> what the model takes, and `targets`, `weights` and `declines` of what it is to learn.

    The first token of an answer decides between text and call: it counts `first_weight` times. What comes before
    `call_token` is text, which can be said in many ways: it counts `text_weight` times. With a `decline_weight`, an
    answer without a call is text from its first token on, and `declines` has that weight where it must not be a call.
    With `mask` the batch has a matrix, else a `tree`. With `spans` it also says where each answer stands among the
    targets.
    """

    first_weight: float = 1.0
    text_weight: float = 1.0
    decline_weight: float = 0.0
    call_token: int | None = None
    mask: bool = False
    spans: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        written = _Written()
        for row in rows:  # rows of one batch lie one behind the other, too
            for group in row.groups:
                written.write(group, self._weights)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(numpy.concatenate(written.ids).astype(numpy.int64))[None],
            "position_ids": torch.from_numpy(numpy.concatenate(written.positions))[None],
            "logits_to_keep": torch.from_numpy(numpy.concatenate(written.predictors)),
            "targets": torch.from_numpy(numpy.concatenate(written.targets).astype(numpy.int64)),
            "weights": torch.from_numpy(numpy.concatenate(written.weights)),
            "declines": torch.from_numpy(numpy.concatenate(written.declines)),
        }
        if self.mask:
            batch["attention_mask"] = tree_mask(written.trees, written.size)
        else:
            batch["tree"] = tuple(written.trees)
        if self.spans:
            batch["spans"] = tuple(written.spans)
        return batch

    def _weights(self, answer: Ids) -> tuple[NDArray[numpy.float32], float]:
        """Of each token; and of not calling, at the first."""
        weights = numpy.ones(len(answer), numpy.float32)
        calls = numpy.flatnonzero(answer == self.call_token)
        if self.call_token is not None:
            weights[: calls[0] if len(calls) else None] = self.text_weight
        if self.decline_weight and not len(calls):
            return weights, self.decline_weight
        weights[0] = self.first_weight
        return weights, 0.0


@dataclass(slots=True)
class _Written:
    """A row as it is written, group by group."""

    size: int = 0
    learned: int = 0
    ids: list[Any] = field(default_factory=list)
    positions: list[Any] = field(default_factory=list)
    predictors: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    declines: list[Any] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    spans: list[tuple[int, int, str]] = field(default_factory=list)  # of the targets, with the kind where it is known

    def write(self, group: Group, weigh: Callable[[Ids], tuple[NDArray[numpy.float32], float]]) -> None:
        start, shared = self.size, group.shared
        self._put(group.members[0].ids[:shared], 0)
        for example in group.members:
            shift = self.size - shared  # from places in the example to places in the row
            for turn in example.turns:
                begin, end = turn
                places = numpy.arange(begin - 1, end - 1)
                # The first token after the beginning is predicted by the beginning's last one.
                self.predictors.append(numpy.where(places < shared, start + places, shift + places))
                self.targets.append(example.ids[begin:end])
                weights, decline = weigh(example.ids[begin:end])
                self.weights.append(weights)
                self.declines.append(numpy.zeros(end - begin, numpy.float32))
                self.declines[-1][0] = decline
                kind = example.kind if turn == example.turns[-1] else ""
                self.spans.append((self.learned, self.learned + end - begin, kind))
                self.learned += end - begin
            self._put(example.ids[shared:], shared)
        self.trees.append((start, shared, tuple(len(example.ids) - shared for example in group.members)))

    def _put(self, ids: Any, position: int) -> None:
        self.ids.append(ids)
        self.positions.append(numpy.arange(position, position + len(ids)))
        self.size += len(ids)


def tree_mask(trees: Iterable[Tree], size: int) -> torch.Tensor:
    """The same as a matrix: true where a token (down) sees another (across)."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    for start, shared, branches in trees:
        begin = start + shared
        mask[start:begin, start:begin] = True
        for length in branches:
            mask[begin : begin + length, start : start + shared] = True
            mask[begin : begin + length, begin : begin + length] = True
            begin += length
    return mask.tril_()[None, None]
