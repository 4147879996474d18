"""Records of a run -> the figures that are told of it. No I/O but reading the file that load.py wrote.

The definitions, used in the table, the page and docs/load-testing.md alike; all times of a request count from its
PLANNED time, so that a server (or a generator) that falls behind shows in every request that had to wait:

ttft      first chunk with a token (text, thought, name or argument)      name      first function name
argument  first byte of a function's arguments                           e2e       end of the answer
itl       the gaps between chunks that carry tokens; over all requests together
tpot      (last token - first token) / (tokens - 1), a request
goodput   requests a second without error or problem, and within every limit of the SLO
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from benchmarks.loadgen.client import Record

PERCENTILES = (50, 90, 99)
LATENCIES = {
    "ttft": "time to first token",
    "name": "time to function name",
    "argument": "time to first argument byte",
    "itl": "gap between chunks",
    "tpot": "time per output token",
    "e2e": "whole answer",
}
LATE_S = 0.010  # a send that much behind its plan is late
LAG_MS = 20.0  # an event loop that lags more at p99 spoils the times it takes


class FileError(ValueError):
    """A file that is no run; the message is for the person who named it."""


@dataclass(slots=True)
class Run:
    """The lines of one file: see docs/load-testing.md. `end` is empty if the load process died."""

    about: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    verified: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the begin to the last answer."""
        return max((record.end for record in self.records), default=0.0)


def read_run(path: Path) -> Run:
    run = Run({})
    known = {f.name for f in fields(Record)}
    try:
        lines = path.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                content = orjson.loads(line)
            except orjson.JSONDecodeError:
                if number == len(lines):  # a crash may have cut it
                    break
                raise
            kind = content.pop("type")
            if kind == "run":
                run.about = content
            elif kind == "request":
                run.records.append(Record(**{key: value for key, value in content.items() if key in known}))
            elif kind == "verify":
                run.verified.append(content)
            elif kind == "end":
                run.end = content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is no run of benchmarks.load: {error}") from None
    if not run.about:
        raise FileError(f"{path} is no run of benchmarks.load: it has no line of type run")
    return run


def parse_slo(text: str) -> dict[str, float]:
    """`ttft=500,itl=50` -> milliseconds by figure; the itl of a request is the mean of its gaps."""
    slo = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in LATENCIES:
            raise ValueError(f"{name.strip()!r} is not one of {', '.join(LATENCIES)}")
        slo[name.strip()] = float(value)
    return slo


def latencies(record: Record) -> dict[str, float]:
    """Milliseconds, those that the request has; `itl` as the mean of its gaps."""
    found = {"e2e": (record.end - record.planned) * 1000}
    for figure, at in (("ttft", record.first_token), ("name", record.name), ("argument", record.argument)):
        if at is not None:
            found[figure] = (at - record.planned) * 1000
    if record.gaps:
        found["itl"] = sum(record.gaps) / len(record.gaps)
        if record.tokens_out and record.tokens_out > 1:
            found["tpot"] = sum(record.gaps) / (record.tokens_out - 1)
    return found


def is_good(record: Record, slo: Mapping[str, float]) -> bool:
    """A limit on what an answer does not have, such as a function name in plain text, does not bind it."""
    if record.error or record.problems:
        return False
    found = latencies(record)
    return all(found[figure] <= limit for figure, limit in slo.items() if figure in found)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted values, linear between neighbours, as numpy's default."""
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def distribution(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        **{f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES},
        "max": ordered[-1],
    }


def values_of(run: Run) -> dict[str, list[float]]:
    """The values of each figure in milliseconds, of the requests that were answered; `itl` of every gap."""
    values: dict[str, list[float]] = {figure: [] for figure in LATENCIES}
    for record in run.records:
        if record.error is None:
            for figure, value in latencies(record).items():
                if figure != "itl":
                    values[figure].append(value)
            values["itl"] += record.gaps
    return values


def summary(run: Run, slo: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The figures of a run; goodput by its own SLO, unless another is given."""
    slo = (run.about.get("slo") or {}) if slo is None else slo
    records = [record for record in run.records if record.error != "interrupted"]
    answered = [record for record in records if record.error is None]
    sent = [record for record in records if record.sent is not None]
    late = [record.sent - record.planned for record in records if record.sent is not None]
    seconds = run.seconds or math.inf
    tokens_out = sum(record.tokens_out or 0 for record in answered)
    good = sum(is_good(record, slo) for record in records)
    return {
        "slo": dict(slo),
        "seconds": run.seconds,
        "requests": len(records),
        "sent": len(sent),
        "answered": len(answered),
        "interrupted": len(run.records) - len(records),
        "late": sum(lateness > LATE_S for lateness in late),
        "latest_ms": max(late, default=0.0) * 1000,
        "missed": sum(record.error == "missed" for record in records),
        "errors": Counter(record.error for record in records if record.error),
        "error_rate": 1 - len(answered) / len(records) if records else 0.0,
        "problems": Counter(problem for record in records for problem in record.problems),
        "broken": sum(bool(record.problems) for record in records),
        "calls": sum(len(record.calls) for record in answered),
        "verified": Counter(str(line["outcome"]) for line in run.verified),
        "tokens_in": sum(record.tokens_in or 0 for record in answered),
        "tokens_cached": sum(record.tokens_cached or 0 for record in answered),
        "tokens_out": tokens_out,
        "chunks": sum(record.chunks for record in answered),
        "requests_per_s": len(answered) / seconds,
        "tokens_per_s": tokens_out / seconds,
        "goodput": good / seconds,
        "good_share": good / len(records) if records else 0.0,
        "latency": {figure: distribution(values) for figure, values in values_of(run).items() if values},
        "generator": run.end.get("generator", {}),
    }


def warnings(run: Run, found: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the figures: what failed, and why they may not be the server's."""
    told = []
    generator = found["generator"]
    if not run.end:
        told.append("the run has no end: the load process died, and what was under way then is not in the figures")
    elif run.end.get("interrupted"):
        told.append(f"the run was interrupted, {found['interrupted']} requests were under way")
    if found["late"] > 0.01 * max(1, found["sent"]):
        why = " (--concurrency held them back)" if run.about.get("concurrency") else ""
        told.append(
            f"{found['late']} of {found['sent']} requests went out more than {LATE_S * 1000:.0f} ms late{why}, the"
            f" latest by {found['latest_ms']:.0f} ms; their latencies count from the planned time"
        )
    if found["missed"]:
        told.append(f"{found['missed']} requests were never sent")
    examples = {record.error: record.message for record in run.records if record.message}
    told += [f"{error}, for example: {message}" for error, message in examples.items() if error != "interrupted"]
    share = generator.get("cpu_share", 0.0)
    if share > 0.85:
        told.append(f"the generator used {share:.0%} of a core, its limit: split the load over several processes")
    elif generator.get("lag_p99_ms", 0) > LAG_MS:
        told.append(
            f"the generator was late to look: its event loop lagged {generator['lag_p99_ms']:.0f} ms at p99 while it"
            f" used {share:.0%} of a core; give it a core of its own"
        )
    if found["answered"] and not found["tokens_out"]:
        told.append("the server tells no usage: tokens are not counted")
    return told


def over_time(run: Run, bins: int = 60) -> dict[str, list[tuple[float, float]]]:
    """Tokens a second, the median ttft of what was planned then, requests under way and errors, as (seconds, value).
    A request's tokens are spread evenly over its chunks, which came when its gaps say."""
    width = max(run.seconds / bins, 1e-9)
    tokens, errors, active = [0.0] * bins, [0.0] * bins, [0.0] * bins
    ttft: list[list[float]] = [[] for _ in range(bins)]

    def bin_of(at: float) -> int:
        return min(bins - 1, max(0, int(at / width)))

    for record in run.records:
        if record.error and record.error != "interrupted":
            errors[bin_of(record.end)] += 1
        if record.sent is not None:
            for i in range(bin_of(record.sent), bin_of(record.end) + 1):
                active[i] += max(0.0, min(record.end, (i + 1) * width) - max(record.sent, i * width)) / width
        share = (record.tokens_out or record.chunks) / max(1, record.chunks)
        if record.first_token is None:
            tokens[bin_of(record.end)] += record.tokens_out or 0
            continue
        at = record.first_token
        ttft[bin_of(record.planned)].append((at - record.planned) * 1000)
        tokens[bin_of(at)] += share
        for gap in record.gaps:
            at += gap / 1000
            tokens[bin_of(at)] += share
    middles = [(i + 0.5) * width for i in range(bins)]
    return {
        "tokens": [(at, count / width) for at, count in zip(middles, tokens, strict=True)],
        "ttft": [(at, percentile(sorted(values), 50)) for at, values in zip(middles, ttft, strict=True) if values],
        "errors": list(zip(middles, errors, strict=True)),
        "active": list(zip(middles, active, strict=True)),
    }
