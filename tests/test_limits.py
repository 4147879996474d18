"""What one key may use, and every other limit: for each a request that crosses it."""

from __future__ import annotations

import pytest

from functionary_vllm.api.limits import Limits, Usage, _duration
from functionary_vllm.errors import RateLimited


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(usage: Usage) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in usage.headers()}


def test_requests_a_minute_fill_up_again() -> None:
    clock = Clock()
    usage = Usage(Limits(requests_per_minute=3), clock)
    for _ in range(3):
        usage.begin()
        usage.end()
    assert told(usage) == {"limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m0s"}
    with pytest.raises(RateLimited) as caught:
        usage.begin()
    assert (caught.value.code, caught.value.retry_after) == ("requests_per_minute", pytest.approx(20))
    clock.now += 20
    usage.begin()
    with pytest.raises(RateLimited):
        usage.begin()


def test_tokens_a_minute_count_prompt_and_answer() -> None:
    clock = Clock()
    usage = Usage(Limits(tokens_per_minute=600), clock)
    usage.spend(400)
    usage.charge(300)  # an answer is not stopped for it: the bucket is in debt
    assert told(usage) == {"limit-tokens": "600", "remaining-tokens": "0", "reset-tokens": "1m10s"}
    with pytest.raises(RateLimited) as caught:
        usage.spend(100)
    assert (caught.value.code, caught.value.retry_after) == ("tokens_per_minute", pytest.approx(20))
    clock.now += 20
    usage.spend(100)
    usage.charge(-100)  # it was not run after all
    usage.spend(100)


def test_a_prompt_that_is_larger_than_the_limit_needs_a_full_bucket() -> None:
    clock = Clock()
    usage = Usage(Limits(tokens_per_minute=60), clock)
    usage.spend(100)
    with pytest.raises(RateLimited):
        usage.spend(100)
    clock.now += 100
    usage.spend(100)


def test_requests_at_once() -> None:
    usage = Usage(Limits(max_concurrent=1))
    usage.begin()
    with pytest.raises(RateLimited) as caught:
        usage.begin()
    assert caught.value.code == "max_concurrent"
    usage.end()
    usage.begin()
    assert not told(usage)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0204, "20ms"), (1.26, "1.3s"), (60, "1m0s"), (362.5, "6m2.5s")]
)
def test_durations_look_like_openais(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
