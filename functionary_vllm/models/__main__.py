"""`python -m functionary_vllm.models`: make sure the built-in model is there, and print its folder."""

from __future__ import annotations

import sys

from functionary_vllm.models.builtin import ModelUnavailable, ensure_builtin

try:
    print(ensure_builtin())
except ModelUnavailable as error:
    sys.exit(f"built-in model: {error}")
