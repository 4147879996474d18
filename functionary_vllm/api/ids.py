"""Ids for requests, answers and calls: OpenAI's prefixes with letters and digits."""

from __future__ import annotations

import random
import string

_generator = random.Random()  # its own: an engine may seed the module's for reproducible sampling
_ALPHANUMERIC = string.ascii_letters + string.digits


def new_id(prefix: str, length: int = 24) -> str:
    return prefix + "".join(_generator.choices(_ALPHANUMERIC, k=length))
