"""Evaluation: what is asked, what counts as right, what the figures say; against an endpoint of this process."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from functionary_vllm.evaluation import bfcl_words

needs_bfcl = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason=f"BFCL is missing: {bfcl_words.INSTALL}")


@needs_bfcl
def test_the_blocklist_is_what_bfcl_has() -> None:
    names = bfcl_words.BLOCKLIST.read_text().splitlines()
    assert names == sorted(bfcl_words.bfcl_names())
    assert {"calculate_triangle_area", "absolute_value"} <= set(names)
    assert "Find the area of a triangle with a base of 10 units and height of 5 units." in bfcl_words.bfcl_prompts()


@pytest.mark.parametrize(
    ("written", "snake"),
    [("math.factorial", "math_factorial"), ("getHTTPHeader2", "get_http_header2"), ("Land Use", "land_use")],
)
def test_names_are_compared_in_one_form(written: str, snake: str) -> None:
    assert bfcl_words.snake_case(written) == snake
