"""What was worked out lately, kept by all that it was worked out from.

In: a key that the value depends on and on nothing else, the value, the bytes of both. Out: the value, for an equal
key. Bounded in bytes: what was not asked for longest goes first. Safe in threads. Refuses to know what it keeps;
nobody may change a value, since the next one is given the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

ENTRY: Final = 256  # bytes of keeping something at all, about; so the number of entries is bounded too


class Recent(Generic[Key, Value]):
    def __init__(self, room: int) -> None:
        self._room = room
        self._taken = 0
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    @property
    def taken(self) -> int:
        return self._taken

    def get(self, key: Key) -> Value | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value. One that would push out half of the others is not worth it."""
        size += ENTRY
        if size > self._room // 2:
            return
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._kept[key] = value, size
            self._taken += size - before
            while self._taken > self._room:
                _, (_, gone) = self._kept.popitem(last=False)
                self._taken -= gone
