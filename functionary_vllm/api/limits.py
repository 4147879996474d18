"""What one key may use: requests and tokens a minute, and requests at once.

In: what a key begins, spends and ends. Out: nothing, or RateLimited with the time after which there will be enough
again; and OpenAI's x-ratelimit headers. Requests and tokens are buckets that fill evenly and hold a minute's worth.
A prompt is charged when its request begins, the answer when it has ended, so a bucket may be in debt. Refuses to know
HTTP, and whose limits these are.

Source of the headers: OpenAI API reference, "Rate limits".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

from functionary_vllm.errors import RateLimited

_AT_ONCE_RETRY_S = 1.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Limits:
    """None: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def share(self, workers: int) -> Limits:
        """That of one of several processes, which do not know of each other."""
        return Limits(*(None if n is None else max(1, n // workers) for n in astuple(self)))


class _Bucket:
    __slots__ = ("_at", "_clock", "_level", "limit")

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    def level(self) -> float:
        now = self._clock()
        self._level = min(float(self.limit), self._level + (now - self._at) * self.limit / 60)
        self._at = now
        return self._level

    def missing(self, amount: float) -> float:
        """Seconds until there is as much, or the bucket is full; 0 when there is."""
        return max(0.0, min(amount, self.limit) - self.level()) * 60 / self.limit

    def take(self, amount: float) -> None:
        self._level = min(float(self.limit), self._level - amount)


class Usage:
    """One key's."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        """These from now on, with full buckets; requests under way stay counted."""
        self.limits = limits
        self._requests = _Bucket(n, self._clock) if (n := limits.requests_per_minute) else None
        self._tokens = _Bucket(n, self._clock) if (n := limits.tokens_per_minute) else None

    def begin(self) -> None:
        """A request; `end` is to follow, unless this raises RateLimited."""
        limit = self.limits.max_concurrent
        if limit is not None and self._running >= limit:
            message = f"This key's limit of {limit} requests at once is reached."
            raise RateLimited(message, _AT_ONCE_RETRY_S, code="max_concurrent")
        _spend(self._requests, 1, "requests")
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.end()

    def spend(self, tokens: int) -> None:
        """Those of a prompt. Raises RateLimited; a prompt that is larger than the limit needs a full bucket."""
        _spend(self._tokens, tokens, "tokens")

    def charge(self, tokens: int) -> None:
        """Those of an answer; less than nothing gives back what was not used."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is None:
                continue
            for name, value in (
                ("limit", str(bucket.limit)),
                ("remaining", str(max(0, int(bucket.level())))),
                ("reset", _duration(bucket.missing(bucket.limit))),
            ):
                found.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
        return found


def _spend(bucket: _Bucket | None, amount: int, kind: str) -> None:
    if bucket is None:
        return
    if missing := bucket.missing(amount):
        message = f"This key's limit of {bucket.limit} {kind} a minute is reached."
        raise RateLimited(message, missing, code=f"{kind}_per_minute")
    bucket.take(amount)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 20ms."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
