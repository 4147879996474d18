"""The two forms of a code interpreter's arguments, and text that tokenizers can read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functionary_vllm.conversation import Function, python_code, python_json, unicode_text
from tests.test_schema import steady


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('{"code": "print(1)\\n"}', "print(1)\n"),
        (' \n{"code":"é"} ', "é"),
        ('{"code": ""}', ""),
        ('{"code": "\\ud83d"}', "\ufffd"),
        ("print(1)", "print(1)"),
        ("", ""),
        ('{"code": 1}', '{"code": 1}'),
        ('{"code": "a", "lang": "py"}', '{"code": "a", "lang": "py"}'),
        ('{"code": "a"', '{"code": "a"'),
        ('{"x": 1}', '{"x": 1}'),
        ('["code"]', '["code"]'),
        ('"code"', '"code"'),
        ('{"a":' * 100_000, '{"a":' * 100_000),
    ],
    ids=lambda text: text[:20],
)
def test_python_code(arguments: str, code: str) -> None:
    assert python_code(arguments) == code


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ('print("é")\n', '{"code": "print(\\"é\\")\\n"}'),
        ("", '{"code": ""}'),
        ('{"code":"1"}', '{"code":"1"}'),
        ('{"x": 1}', '{"code": "{\\"x\\": 1}"}'),
    ],
)
def test_python_json(code: str, arguments: str) -> None:
    assert python_json(code) == arguments


@steady
@given(st.text() | st.builds(json.dumps, st.dictionaries(st.sampled_from(["code", "x"]), st.text() | st.integers())))
def test_the_two_forms_agree(text: str) -> None:
    assert python_code(python_json(text)) == python_code(text)
    assert python_json(python_json(text)) == python_json(text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [("a\ud83d", "a\ufffd"), ("\ud83d\ude00", "😀"), ("\udc00\ud800", "\ufffd\ufffd"), ("é😀", "é😀")],
)
def test_unicode_text(text: str, clean: str) -> None:
    assert unicode_text(text) == clean


def test_a_function_without_its_optional_parts() -> None:
    function = Function({"name": "f", "description": None})
    assert (function.name, function.description, dict(function.parameters)) == ("f", "", {})
