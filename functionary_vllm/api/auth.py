"""Who gets in: API keys, as `Authorization: Bearer` or `x-api-key`.

In: an ASGI scope; the keys that were given as settings, and a file of them, which is read again when it has changed.
Out: the Key of the request; AuthenticationFailed, or PermissionDenied where only an admin's key will do. Liveness and
readiness stay open, so that a supervisor needs no key. A key is looked up by a hash that no other process can know,
so the time it takes says nothing about the keys there are. A file that is broken when it is read again changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import Scope

from functionary_vllm.api.keys import Entry, KeysError, digest_of, read_keys
from functionary_vllm.api.limits import Limits, Usage
from functionary_vllm.errors import AuthenticationFailed, PermissionDenied

log = logging.getLogger(__name__)

_OPEN = frozenset({"/health", "/ready"})
_ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_LOOK_EVERY_S = 1.0


@dataclass(slots=True)
class Key:
    """Who asks. `usage` is there when there are limits; `priority` is the most urgent that may be asked for."""

    name: str = ""
    priority: int | None = None
    admin: bool = False
    usage: Usage | None = None


ANYBODY = Key()


class Keys:
    """Those that are known; without any, everybody gets in, but nobody is an admin.

    `workers`: so many processes share what each key may use.
    """

    def __init__(self, keys: Iterable[str], path: str | None = None, workers: int = 1) -> None:
        """Raises KeysError."""
        self._given = [Entry(f"key-{i}", digest_of(key.encode()), Limits()) for i, key in enumerate(keys, start=1)]
        self._path = path
        self._workers = workers
        self._secret = secrets.token_bytes(32)
        self._usages: dict[str, Usage] = {}  # by name; kept as long as the process, so that no reload empties a count
        self._known: dict[bytes, tuple[bytes, Key]] = {}
        self._seen = self._stamp()
        self._learn(read_keys(path) if path is not None else [])

    @property
    def several(self) -> bool:
        return len(self._known) > 1

    def check(self, scope: Scope) -> Key:
        path: str = scope["path"]
        if path in _OPEN:
            return ANYBODY
        key = self._find(_given(scope)) if self._known else ANYBODY
        if not key.admin and (path in _ADMIN or path == "/admin" or path.startswith("/admin/")):
            raise PermissionDenied("This needs a key with 'admin: true' in the keys file (--keys-file).")
        return key

    def _find(self, given: bytes) -> Key:
        digest = digest_of(given)
        known, key = self._known.get(self._blind(digest), (b"", ANYBODY))
        if not hmac.compare_digest(digest, known):
            raise AuthenticationFailed("Incorrect API key provided.")
        return key

    def _blind(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret).digest()

    async def watch(self) -> None:
        """Read the file again whenever it has changed, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(_LOOK_EVERY_S)
            stamp = self._stamp()
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                self._learn(await asyncio.to_thread(read_keys, self._path))
            except KeysError as error:
                log.error("The keys stay as they are: %s", error)
            else:
                log.info("The keys have been read again: %d from %s", len(self._known) - len(self._given), self._path)

    def _stamp(self) -> tuple[int, ...]:
        if self._path is not None:
            with suppress(OSError):
                found = os.stat(self._path)
                return found.st_mtime_ns, found.st_size, found.st_ino
        return ()

    def _learn(self, entries: Iterable[Entry]) -> None:
        known: dict[bytes, tuple[bytes, Key]] = {}
        for entry in (*self._given, *entries):
            key = Key(entry.name, entry.priority, entry.admin, self._usage(entry))
            known[self._blind(entry.digest)] = (entry.digest, key)
        self._known = known

    def _usage(self, entry: Entry) -> Usage | None:
        limits = entry.limits.share(self._workers)
        usage = self._usages.get(entry.name)
        if usage is None:
            if limits == Limits():
                return None
            usage = self._usages[entry.name] = Usage(limits)
        elif usage.limits != limits:
            usage.limit(limits)
        return usage


def _given(scope: Scope) -> bytes:
    """The key that the request shows. Raises AuthenticationFailed when there is none."""
    other = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise AuthenticationFailed("Incorrect API key provided: the scheme is Bearer.")
            return bytes(key.strip())
        if name == b"x-api-key":
            other = bytes(value.strip())
    if not other:
        raise AuthenticationFailed(
            "You didn't provide an API key. Provide it in an Authorization header using Bearer auth "
            "(Authorization: Bearer YOUR_KEY).",
        )
    return other
