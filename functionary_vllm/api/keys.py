"""The keys file: who may use the server, and how much of it.

In: YAML, a list under `keys`, each with a name, the SHA-256 of the key, and limits that need not be there. Out: Keys'
entries, or KeysError with one line that names the place. As a program it makes such an entry: of a new key, or of one
that it reads. A key is made of 256 random bits, so that a plain hash keeps it; one that a person thought of would need
a slow hash, and is not taken. Refuses to know requests.

    keys:
      - name: team-a
        sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        requests_per_minute: 600
        tokens_per_minute: 1000000
        max_concurrent: 32
        priority: 0      # the most urgent that it may ask for: smaller is sooner
      - {name: operator, sha256: …, admin: true}
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import yaml

from functionary_vllm.api.limits import Limits

_SHORTEST: Final = 32  # characters of a key that is given
_LIMITS: Final = tuple(limit.name for limit in fields(Limits))
_KNOWN: Final = {"name", "sha256", "priority", "admin", *_LIMITS}


class KeysError(ValueError):
    """A keys file that cannot be used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it is configured. `priority`: the most urgent that it may ask for; None: any."""

    name: str
    digest: bytes
    limits: Limits
    priority: int | None = None
    admin: bool = False


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: str) -> list[Entry]:
    """Raises KeysError."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise KeysError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise KeysError(f"{path} must have a list of keys under 'keys'")
    entries: list[Entry] = []
    for i, given in enumerate(listed):
        try:
            entries.append(_entry(given))
        except ValueError as error:
            raise KeysError(f"{path}, keys[{i}]: {error}") from None
    for what in ("name", "digest"):
        if len({getattr(entry, what) for entry in entries}) < len(entries):
            raise KeysError(f"{path} has two keys of the same {'name' if what == 'name' else 'hash'}")
    return entries


def _entry(given: Any) -> Entry:
    if not isinstance(given, dict):
        raise ValueError("must be a mapping")
    if unknown := sorted(str(name) for name in given.keys() - _KNOWN):
        raise ValueError(f"unknown {unknown[0]!r}; known are {', '.join(sorted(_KNOWN))}")
    name, digest, priority = given.get("name"), given.get("sha256"), given.get("priority")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.@:-]{1,64}", name):
        raise ValueError("name must be 1 to 64 letters, digits and any of ._-@:")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ValueError("sha256 must be 64 hexadecimal digits (in quotes when there are only digits)")
    if priority is not None and not _is_int(priority):
        raise ValueError("priority must be a whole number")
    if not isinstance(given.get("admin", False), bool):
        raise ValueError("admin must be true or false")
    for limit in _LIMITS:
        if given.get(limit) is not None and not (_is_int(given[limit]) and given[limit] > 0):
            raise ValueError(f"{limit} must be a whole number of at least 1")
    limits = Limits(**{limit: given.get(limit) for limit in _LIMITS})
    return Entry(name, bytes.fromhex(digest), limits, priority, given.get("admin", False))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def main(arguments: Sequence[str] | None = None) -> int:
    """`NAME`: make a key and show it with its entry; `NAME -`: the entry of the key on the first line of the input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-") or given[1:] not in ([], ["-"]):
        print("usage: functionary-vllm hash-key NAME [-]      -: the key is read from the input", file=sys.stderr)
        return 2
    key = sys.stdin.readline().strip() if given[1:] else f"sk-{secrets.token_urlsafe(32)}"
    if len(key) < _SHORTEST:
        print(f"hash-key: a key has at least {_SHORTEST} characters, so that nobody guesses it", file=sys.stderr)
        return 1
    if not given[1:]:
        print(f"# The key, which is shown only here: {key}")
    print(f"- name: {given[0]}\n  sha256: '{digest_of(key.encode()).hex()}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
