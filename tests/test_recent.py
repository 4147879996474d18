"""What is kept for the next one: equal keys, bounded in bytes, the latest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from functionary_vllm.recent import ENTRY, Recent


def test_what_was_not_asked_for_goes_first() -> None:
    recent: Recent[str, int] = Recent(3 * (ENTRY + 10))
    for number, key in enumerate("abc"):
        recent.put(key, number, 10)
    assert recent.get("a") == 0
    recent.put("d", 3, 10)
    assert [recent.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_one_large_value_does_not_push_out_the_others() -> None:
    recent: Recent[str, int] = Recent(4 * ENTRY)
    recent.put("a", 1, 0)
    recent.put("large", 2, 3 * ENTRY)
    assert recent.get("large") is None
    assert recent.get("a") == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2000))))
def test_it_never_holds_more_than_its_room(puts: list[tuple[int, int]]) -> None:
    recent: Recent[int, int] = Recent(4000)
    sizes: dict[int, int] = {}
    for key, size in puts:
        recent.put(key, size, size)
        sizes[key] = size
        assert recent.taken <= 4000
    held = {key: value for key in sizes if (value := recent.get(key)) is not None}
    assert recent.taken == sum(size + ENTRY for size in held.values())


def test_threads() -> None:
    recent: Recent[int, int] = Recent(20 * ENTRY)

    def use(start: int) -> None:
        for number in range(start, start + 2000):
            recent.put(number % 50, number % 50, number % 7)
            assert recent.get(number % 31) in (None, number % 31)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert 0 < recent.taken <= 20 * ENTRY
