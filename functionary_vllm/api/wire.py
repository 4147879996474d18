"""Values to JSON bytes, for everything the API sends.

In: what orjson takes. Out: UTF-8 JSON. Text that a model wrote is never an error: a lone surrogate, which UTF-8
cannot carry, goes out as its JSON escape.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
