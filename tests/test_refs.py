"""References: what they become, and that no schema makes them loop, explode or reach outside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given

from functionary_vllm.refs import MAX_DEPTH, MAX_RESOLVED, SchemaError, dotted, resolve_refs, survey
from tests.test_schema import SCHEMAS, steady

REF_A = {"$ref": "#/$defs/A"}


def failure(schema: Any) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        resolve_refs(schema)
    return caught.value


@pytest.mark.parametrize(
    ("schema", "x"),
    [
        ({"x": REF_A, "$defs": {"A": {"type": "string"}}}, {"type": "string"}),
        ({"x": REF_A, "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"type": "null"}}}, {"type": "null"}),
        ({"x": {"items": [REF_A]}, "$defs": {"A": {"type": "null"}}}, {"items": [{"type": "null"}]}),
        ({"x": {"$ref": "#/$defs/a~1b~0c%25"}, "$defs": {"a/b~c%": {"minimum": 1}}}, {"minimum": 1}),
        ({"x": {"$ref": "#/anyOf/1"}, "anyOf": [{}, {"minimum": 2}]}, {"minimum": 2}),
        ({"x": REF_A, "$defs": {"A": True}}, {}),
        ({"x": REF_A, "$defs": {"A": False}}, {"not": {}}),
        # Keywords beside a reference: remarks win, rules add up.
        (
            {
                "x": {**REF_A, "description": "use", "default": 1},
                "$defs": {"A": {"type": "integer", "description": "kind"}},
            },
            {"type": "integer", "description": "use", "default": 1},
        ),
        (
            {"x": {**REF_A, "minimum": 2}, "$defs": {"A": {"minimum": 1}}},
            {"minimum": 2, "allOf": [{"minimum": 1}]},
        ),
        # Values and names that look like references.
        (
            {"x": {"enum": [REF_A], "const": REF_A, "default": REF_A}},
            {"enum": [REF_A], "const": REF_A, "default": REF_A},
        ),
        ({"x": {"properties": {"$ref": {"type": "null"}}}}, {"properties": {"$ref": {"type": "null"}}}),
        (
            {"x": {"properties": {"default": REF_A}}, "$defs": {"A": {"type": "null"}}},
            {"properties": {"default": {"type": "null"}}},
        ),
    ],
)
def test_resolved(schema: dict[str, Any], x: Any) -> None:
    schema = {"properties": {"x": schema.pop("x")}, **schema}
    before = copy.deepcopy(schema)
    resolved = resolve_refs(schema)
    assert resolved["properties"]["x"] == x
    assert schema == before
    assert list(resolved) == list(schema)


def test_without_references_nothing_is_copied() -> None:
    schema = {"properties": {"x": {"type": "string"}}}
    assert resolve_refs(schema) is schema


def test_whole_schema_is_a_reference() -> None:
    """As generators write it: the reference at the root, the definitions beside it."""
    schema = {"$ref": "#/definitions/F", "definitions": {"F": {"type": "object", "properties": {"a": {}}}}}
    resolved = resolve_refs(schema)
    assert resolved["type"] == "object"
    assert resolved["properties"] == {"a": {}}
    assert "definitions" in resolved


def test_recursion_keeps_its_reference_within_reach() -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/Node"}}}
    resolved = resolve_refs({"properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}})
    assert resolved["properties"]["root"] == node
    assert resolved["$defs"]["Node"]["properties"]["child"] == node
    assert resolve_refs(resolved) is not None  # what is left can be resolved again


def test_recursion_to_the_root() -> None:
    schema = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    assert resolve_refs(schema) == schema


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("#/$defs/B", "points to no schema"),
        ("#/$defs", None),
        ("#/title", "points to no schema"),
        ("#/anyOf/7", "points to no schema"),
        ("#/anyOf/-1", "points to no schema"),
        ("#/anyOf/" + "9" * 5000, "points to no schema"),
        ("#anchor", "inside the schema"),
        ("", "inside the schema"),
        ("other.json", "inside the schema"),
        ("https://example.invalid/schema", "inside the schema"),
        ("file:///etc/hostname", "inside the schema"),
        ("//" * 100_000, "inside the schema"),
    ],
)
def test_bad_reference_names_its_path(ref: str, reason: str | None) -> None:
    schema = {"title": "t", "anyOf": [{}], "properties": {"x": {"items": {"$ref": ref}}}, "$defs": {}}
    if reason is None:  # a map of schemas is an object, too
        assert resolve_refs(schema)["properties"]["x"]["items"] == {}
        return
    error = failure(schema)
    assert error.path == ("properties", "x", "items", "$ref")
    assert reason in error.reason
    assert str(error).startswith("properties.x.items.$ref: ")
    assert len(str(error)) < 300


def test_path_of_a_bad_reference_behind_another() -> None:
    schema = {"properties": {"x": REF_A}, "$defs": {"A": {"items": {"$ref": "#/$defs/B"}}}}
    assert failure(schema).path == ("$defs", "A", "items", "$ref")


@pytest.mark.parametrize("beside", [{}, {"title": "t"}])
def test_references_that_only_lead_to_each_other(beside: dict[str, Any]) -> None:
    schema = {"x": REF_A, "$defs": {"A": {"$ref": "#/$defs/B", **beside}, "B": {"$ref": "#/$defs/A", **beside}}}
    assert "leads back to itself" in failure(schema).reason


def test_long_chain() -> None:
    defs = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)}
    assert "too many references" in failure({"$ref": "#/$defs/d0", "$defs": {**defs, "d5000": {}}}).reason


@pytest.mark.parametrize(("width", "levels"), [(2, 40), (2, 18), (100, 20), (1000, 3)])
def test_growth_is_stopped(width: int, levels: int) -> None:
    defs: dict[str, Any] = {f"d{levels}": {}}
    for i in range(levels):
        defs[f"d{i}"] = {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * width}
    error = failure({"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs})
    assert str(MAX_RESOLVED) in error.reason or str(MAX_DEPTH) in error.reason


def test_many_long_chains_are_stopped() -> None:
    """Each link is looked up once for each link before it."""
    defs: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(20)}
    defs["d20"] = {}
    assert resolve_refs({"$ref": "#/$defs/d0", "$defs": defs})["$defs"]["d0"] == {}
    assert str(MAX_RESOLVED) in failure({"anyOf": [{"$ref": "#/$defs/d0"}] * 5000, "$defs": defs}).reason


def test_repeated_long_text_is_stopped() -> None:
    schema = {"anyOf": [REF_A] * 1000, "$defs": {"A": {"enum": ["x" * 10_000]}}}
    assert str(MAX_RESOLVED) in failure(schema).reason


def test_depth_by_references_is_stopped() -> None:
    defs: dict[str, Any] = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(MAX_DEPTH)}
    defs[f"d{MAX_DEPTH}"] = {}
    assert str(MAX_DEPTH) in failure({"$ref": "#/$defs/d0", "$defs": defs}).reason


@steady
@given(schema=SCHEMAS)
def test_total(schema: dict[str, Any]) -> None:
    try:
        resolved = resolve_refs(schema)
    except SchemaError:
        return
    survey(resolved)  # no deeper than allowed


def test_dotted() -> None:
    assert dotted("tools", (3, "function", "a.b", "$defs", "é")) == 'tools[3].function["a.b"].$defs.é'
    assert dotted("", ("a", 0)) == "a[0]"
    assert len(dotted("x", ("y" * 1_000_000,))) < 100
