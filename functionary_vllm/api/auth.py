"""Who gets in: API keys as `Authorization: Bearer`.

In: an ASGI scope. Out: nothing, or AuthenticationFailed. Liveness and readiness stay open, so that a supervisor
needs no key. Keys are compared as digests and in constant time, each with all of them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import Scope

from functionary_vllm.errors import AuthenticationFailed

_OPEN = frozenset({"/health", "/ready"})


class Keys:
    """The configured keys; without any, everybody gets in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def check(self, scope: Scope) -> None:
        if not self._digests or scope["path"] in _OPEN:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if given is None:
            raise AuthenticationFailed(
                "You didn't provide an API key. Provide it in an Authorization header using Bearer auth "
                "(Authorization: Bearer YOUR_KEY).",
            )
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        known = sum(hmac.compare_digest(digest, other) for other in self._digests)
        if scheme.lower() != b"bearer" or not known:
            raise AuthenticationFailed("Incorrect API key provided.")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
