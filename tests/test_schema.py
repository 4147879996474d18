"""TypeScript against the reference renderings and goldens of our own; checks against hostile schemas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from functionary_vllm.conversation import Function
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.refs import MAX_DEPTH, resolve_refs
from functionary_vllm.schema import (
    MAX_PROBES,
    check_parameters,
    check_schema,
    check_shape,
    find_refused,
    typescript,
    typescript_v0,
)
from tests.reference import load, needs_reference

PATH = "tools[3].function.parameters"
steady = settings(deadline=None, suppress_health_check=list(HealthCheck))  # the machine may be busy


def function(definition: dict[str, Any]) -> Function:
    parameters = definition.get("parameters")
    return Function({**definition, "parameters": resolve_refs(parameters)} if parameters else definition)


def parameter(schema: Any, **more: Any) -> str:
    """The declaration of one parameter `x`, without what is around it."""
    parameters = {"type": "object", "properties": {"x": schema}, **more}
    text = typescript([Function({"name": "f", "description": "d", "parameters": parameters})])
    return text.split("(_: {\n")[1].split("\n}) => any;")[0]


# --- TypeScript: the reference data -------------------------------------------------------------------------------

# Where we do not follow the templates of the checkpoints (column "jinja") but the older renderer (column "python").
DEVIATIONS = {
    "no type": "`x?: ,` is no declaration: any",
    "anyOf": "`x?: ,` is no declaration: any",
    "const": "`x?: ,` is no declaration: any",
    "allOf $ref (pydantic v1)": "`x?: ,` is no declaration: any",
    "oneOf": "an empty `Format=`, and integer beside number",
    "oneOf nested int": "an empty `Format=`",
    "enum ints": "the separator is lost where a value repeats the last one",
    "enum dup last": "the separator is lost where a value repeats the last one",
    "minimum 0": "a limit of zero is lost",
    "examples dict": "the quotes of the example are torn, its constants are Python's",
    "no params": "the template fails: () => any",
}
# Here neither column can be used.
OWN = {"description None": "the template fails, the older renderer prints None: an empty description"}


@needs_reference
@pytest.mark.parametrize("row", load("functionary/reference_typescript.json"), ids=lambda row: row["case"])
def test_reference_schemas(row: dict[str, Any]) -> None:
    shown = typescript([function(row["function"])])
    if row["case"] in OWN:
        assert shown == row["python"].replace("// None\n", "// \n")
    elif row["case"] in DEVIATIONS:
        assert shown == row["python"]
        assert shown != row.get("jinja"), "no deviation any more: take it from the list"
    else:
        assert shown == row["jinja"]


@needs_reference
def test_deviations_are_in_the_reference() -> None:
    cases = {row["case"] for row in load("functionary/reference_typescript.json")}
    assert cases >= DEVIATIONS.keys() | OWN.keys()


@needs_reference
def test_upstream_case() -> None:
    case = load("functionary/upstream_tests/test_schema_case.json")
    assert typescript([function(definition) for definition in case["functions"]]) == case["expected"]


@needs_reference
@pytest.mark.parametrize(
    "case", (load("functionary/reference_seed_v0.json") or {"cases": []})["cases"], ids=lambda case: case["case"]
)
def test_seed_segments(case: dict[str, Any]) -> None:
    functions = case["functions"] and [function(definition) for definition in case["functions"]]
    shown = typescript_v0(functions)
    first = case["segments"][0]
    if functions is None:
        assert shown == ""
        assert "namespace" not in first
    else:
        assert first == f"system:\n{shown}\n"


# --- TypeScript: goldens of our own ---------------------------------------------------------------------------------

BOOK = {
    "name": "book_table",
    "description": "Book a table",
    "parameters": {
        "type": "object",
        "required": ["guests", "when"],
        "properties": {
            "guests": {"type": "integer", "description": "How many", "minimum": 0, "maximum": 12},
            "when": {"type": "string", "format": "date-time", "description": "Local time."},
            "room": {"type": "string", "enum": ["inside", "garden", "inside"], "default": "inside"},
            "wishes": {"type": "array", "items": {"type": "string"}, "examples": [["window", "child's chair"]]},
            "contact": {
                "type": "object",
                "description": "Who pays",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}, "more": {}},
            },
            "seats": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "object", "properties": {"row": {"type": "integer"}}}},
            },
        },
    },
}
BOOK_TEXT = """\
// Supported function definitions that should be called when necessary.
namespace functions {

// Book a table
type book_table = (_: {
// How many. Maximum=12 Minimum=0
guests: number,
// Local time. Format=date-time
when: string,
// Default="inside".
room?: "inside" | "garden" | "inside",
// Example wishes:
// ["window", "child's chair"]
wishes?: string[],
// Who pays.
contact?: {
    name: string,
    age?: integer | null,
    more?: any,
},
seats?: {
        row?: number,
    }[][],
}) => any;

// 
type now = () => any;

} // namespace functions"""  # noqa: W291 - the empty description of the checkpoints' prompts

BOOK_V0 = """\
// Supported function definitions that should be called when necessary.
namespace functions {

// Book a table
type book_table = (_: {
// How many
guests: number,
// Local time.
when: string,
room?: "inside" | "garden" | "inside",
wishes?: array,
// Who pays
contact?: object,
seats?: array,
}) => any;

// 
type now = () => any;

} // namespace functions"""  # noqa: W291


def test_golden() -> None:
    functions = [Function(BOOK), Function({"name": "now", "description": None})]
    assert typescript(functions) == BOOK_TEXT
    assert typescript_v0(functions) == BOOK_V0


def test_no_functions() -> None:
    head = "// Supported function definitions that should be called when necessary.\nnamespace functions {\n\n"
    assert typescript([]) == typescript_v0([]) == head + "} // namespace functions"
    assert typescript_v0(None) == ""


def test_seed_tells_empty_parameters_from_none() -> None:
    assert "type f = (_: {\n}) => any;" in typescript_v0([Function({"name": "f", "parameters": {}})])
    assert "type f = () => any;" in typescript_v0([Function({"name": "f", "parameters": None})])


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        (True, "x?: any,"),
        ({"nullable": True}, "x?: any | null,"),
        ({"enum": []}, "x?: any,"),
        ({"type": []}, "x?: any,"),
        ({"type": ["object"], "properties": {}}, "x?: {\n},"),
        ({"oneOf": [{"const": 1}]}, "x?: any,"),
        (
            {"oneOf": [{"type": ["string", "null"]}, {"type": "float"}, {"type": "integer"}]},
            "x?: string | null | number,",
        ),
        ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string"}]}, "// Format=date\nx?: string,"),
        ({"type": "array", "items": True}, "x?: [],"),
        ({"type": "array", "items": {"type": "array", "items": {}}}, "x?: [][],"),
        ({"type": "array", "examples": ["hidden"]}, "x?: [],"),
        (
            {"type": "number", "description": "d", "examples": ["it's", 1.5]},
            "// d.\n// Example x:\n// it's\n// 1.5\nx?: number,",
        ),
        ({"type": "string", "description": None, "maxLength": None}, "x?: string,"),
        ({"$ref": "#"}, "x?: any,"),
    ],
)
def test_corners(schema: Any, shown: str) -> None:
    assert parameter(schema) == shown


@pytest.mark.parametrize(
    ("required", "shown"),
    [(["x"], "x: any,"), ([["x"], 1], "x?: any,"), (None, "x: any,"), ("x", "x: any,"), ("xy", "x?: any,")],
)
def test_required_in_any_shape(required: Any, shown: str) -> None:
    assert parameter({}, required=required) == shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYWORDS = st.sampled_from(
    [
        *(
            "type",
            "enum",
            "items",
            "properties",
            "required",
            "description",
            "default",
            "format",
            "minimum",
            "maxLength",
        ),
        *("oneOf", "anyOf", "not", "pattern", "examples", "nullable", "$ref", "$defs", "additionalProperties"),
    ]
)
VALUES = JSON | st.sampled_from(["object", "array", "string", "integer", "#", "#/$defs/a", "#/properties/a", "("])
SCHEMAS = st.dictionaries(
    KEYWORDS,
    st.recursive(
        VALUES,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.sampled_from("abc"), inner, max_size=4)
        ),
        max_leaves=20,
    ),
    max_size=6,
)


@steady
@given(schema=SCHEMAS)
def test_anything_can_be_shown(schema: dict[str, Any]) -> None:
    check_shape(schema, PATH)
    functions = [Function({"name": "f", "parameters": schema})]
    for text in (typescript(functions), typescript_v0(functions)):
        assert text.endswith("}) => any;\n\n} // namespace functions") or "() => any" in text


# --- Checks -----------------------------------------------------------------------------------------------------


def nested(depth: int, schema: Any) -> dict[str, Any]:
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"properties": {"ids": {"items": {"pattern": "("}}}}, f"{PATH}.properties.ids.items.pattern"),
        ({"properties": {"x": {"type": "float"}}}, f"{PATH}.properties.x.type"),
        ({"required": True}, f"{PATH}.required"),
        ({"anyOf": [{}, {"minimum": "1"}]}, f"{PATH}.anyOf[1].minimum"),
        ({"properties": {"a.b": {"minLength": -1}}}, f'{PATH}.properties["a.b"].minLength'),
        ({"pattern": "a{99999999999999999999}"}, f"{PATH}.pattern"),
        ({"pattern": "a" * 10_001}, f"{PATH}.pattern"),
        ({"pattern": "(" * 5_000 + ")" * 5_000}, f"{PATH}.pattern"),
        ({"$defs": {"A": {"type": "strnig"}}}, f"{PATH}.$defs.A.type"),
        (nested(MAX_DEPTH, {}), PATH),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else "",
)
def test_check_names_the_place(schema: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, PATH)
    assert caught.value.param == param
    assert caught.value.code == "invalid_function_parameters"
    assert param in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        BOOK["parameters"],
        {"pattern": r"^\p{Lu}[\p{L}\u{1F600}]{2,3}\cA(?<name>x)\k<name>\/(?<!y)(?<=z)\d$"},
        {
            "pattern": r"^[\u0000-a\u0080-\uffff \u0041-z\u{41}-z\u{1F600}é-ÿ\U00010000-\U0010ffff]*\\u12$",
            "patternProperties": {"^é": {}},
        },
        nested(MAX_DEPTH // 2, {}),
        {"$schema": "https://example.invalid/none", "$id": "https://example.invalid/x", "unknown": {"type": 1}},
        {"type": "object", "properties": {"x": {"$ref": "https://example.invalid/none"}}},
    ],
)
def test_check_accepts(schema: Any) -> None:
    check_schema(schema, PATH)


def test_hostile_lists_are_compared_once() -> None:
    """A checker that compares each member with all others needs hours for these."""
    for schema in ({"type": [{"a": i} for i in range(100_000)]}, {"required": [str(i) for i in range(100_000)] * 2}):
        with pytest.raises(InvalidRequest):
            check_schema(schema, PATH)
    check_schema({"enum": [{"a": i} for i in range(100_000)]}, PATH)


def test_hostile_patterns_are_cheap() -> None:
    """Each of these classes costs re a millisecond or more as it stands: minutes together."""
    for form in (r"[\u0100-\uffff\W]", "[\u0100-\uffff\\W]", r"(?i:[\u0100-\uffff])", r"[\U00000100-\U0000ffff]"):
        check_schema({"patternProperties": {f"{i}{form * 300}": {} for i in range(200)}}, PATH)


METASCHEMA = Draft202012Validator(Draft202012Validator.META_SCHEMA)
NUMBERS = st.sampled_from([0, 1, -1, 1.0, 1.5, True, "1", None])
KINDS = st.sampled_from(["string", "float", "null", 1, None])
STRINGS = st.lists(st.sampled_from(["a", "b", 1, "a"]), max_size=3)
KEYWORD_VALUES = {
    "type": KINDS | st.lists(KINDS, max_size=3),
    "multipleOf": NUMBERS,
    "exclusiveMinimum": NUMBERS,
    "minLength": NUMBERS,
    "maxContains": NUMBERS,
    "uniqueItems": NUMBERS,
    "readOnly": NUMBERS,
    "title": NUMBERS,
    "$ref": NUMBERS,
    "contentEncoding": NUMBERS,
    "required": STRINGS | JSON,
    "dependentRequired": st.dictionaries(st.just("a"), STRINGS) | JSON,
    "enum": STRINGS | JSON,
    "examples": STRINGS | JSON,
    "const": JSON,
    "default": JSON,
    "other": JSON,
}


def with_parts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    maps = st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    lists = st.lists(inner, max_size=2)
    keys = ["properties", "$defs", "dependentSchemas", "patternProperties", "anyOf", "prefixItems", "items", "not"]
    keys += ["unevaluatedItems", "contentSchema", "propertyNames", "definitions", "allOf"]
    return st.dictionaries(st.sampled_from(keys), maps | lists | inner, max_size=3)


@settings(steady, max_examples=400)
@given(
    st.recursive(st.fixed_dictionaries({}, optional=KEYWORD_VALUES) | st.booleans() | NUMBERS, with_parts, max_leaves=6)
)
def test_check_agrees_with_the_metaschema(schema: Any) -> None:
    accepted = True
    try:
        check_schema(schema, PATH)
    except InvalidRequest:
        accepted = False
    assert accepted == METASCHEMA.is_valid(schema)


@pytest.mark.parametrize("schema", [None, 1, "x", [], [{}], True])
def test_shape_must_be_an_object(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_shape(schema, PATH)
    assert (caught.value.param, caught.value.code) == (PATH, "invalid_type")


@pytest.mark.parametrize("schema", [{"required": True}, {"properties": {"x": {"type": "float"}, "y": []}}, {"type": 7}])
def test_shape_lets_odd_schemas_pass(schema: Any) -> None:
    check_shape(schema, PATH)


def test_shape_refuses_the_deep_and_the_unreadable() -> None:
    schema: Any = {}
    for _ in range(100_000):
        schema = {"items": schema}
    for bad in (schema, {"title": "\ud800"}, {"\udfff": 1}):
        with pytest.raises(InvalidRequest) as caught:
            check_shape(bad, PATH)
        assert caught.value.param == PATH


@pytest.mark.parametrize(("kind", "valid"), [("object", True), (["object", "null"], True), ("string", False)])
def test_parameters_are_an_object(kind: Any, valid: bool) -> None:
    if valid:
        check_parameters({"type": kind}, PATH)
        return
    with pytest.raises(InvalidRequest) as caught:
        check_parameters({"type": kind}, PATH)
    assert caught.value.param == f"{PATH}.type"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of re, for a pattern like "[[a]"
@steady
@given(schema=SCHEMAS)
def test_check_raises_only_refusals(schema: dict[str, Any]) -> None:
    param: str | None = PATH
    try:
        check_schema(schema, PATH)
    except InvalidRequest as refusal:
        param = refusal.param
    assert param is not None
    assert param.startswith(PATH)


# --- The place an engine refuses ------------------------------------------------------------------------------------


def engine(refuses: str) -> Any:
    """An engine that cannot enforce one keyword, wherever it stands."""

    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            return refuses in value or any(map(holds, value.values()))
        return isinstance(value, list) and any(map(holds, value))

    def validate(schema: Any) -> None:
        if holds(schema):
            raise ValueError("unsupported")

    return validate


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (
            {"properties": {"a": {}, "ids": {"items": {"type": "string", "pattern": "x"}}}},
            ".properties.ids.items.pattern",
        ),
        ({"pattern": "x"}, ".pattern"),
        ({"anyOf": [{"type": "null"}, {"not": {"pattern": "x"}}]}, ".anyOf[1].not.pattern"),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"pattern": "x"}}}, ".$defs.A.pattern"),
        ({"const": {"pattern": "x"}}, ".const"),
    ],
)
def test_find_refused(schema: Any, place: str) -> None:
    assert find_refused(schema, PATH, engine("pattern")) == PATH + place


def test_find_refused_looks_behind_references_last() -> None:
    def validate(schema: Any) -> None:
        engine("pattern")(schema)

    node = {"properties": {"child": {"$ref": "#/$defs/N"}, "name": {"pattern": "x"}}}
    place = ".$defs.N.properties.name.pattern"
    assert find_refused({"items": {"$ref": "#/$defs/N"}, "$defs": {"N": node}}, PATH, validate) == PATH + place


def test_find_refused_blames_the_type_last() -> None:
    def validate(schema: Any) -> None:
        if schema.get("type") == "string" and "format" in schema:
            raise ValueError("no format of strings")

    assert find_refused({"type": "string", "format": "x"}, PATH, validate) == f"{PATH}.format"


def test_find_refused_gives_definitions_to_the_parts() -> None:
    def validate(schema: Any) -> None:
        if "$ref" in str(schema.get("properties")) and "$defs" not in schema:
            raise ValueError("dangling")
        engine("pattern")(schema.get("properties"))

    part = {"properties": {"n": {"$ref": "#/$defs/N"}}}
    schema = {"properties": {"a": part, "b": {"properties": {"c": {"pattern": "x"}}}}, "$defs": {"N": {}}}
    assert find_refused(schema, PATH, validate) == f"{PATH}.properties.b.properties"


def test_find_refused_asks_a_bounded_number_of_times() -> None:
    asked = 0

    def validate(schema: Any) -> None:
        nonlocal asked
        asked += 1
        raise ValueError("no")

    wide = {"properties": {f"p{i}": {} for i in range(10 * MAX_PROBES)}, **{f"k{i}": 1 for i in range(10 * MAX_PROBES)}}
    assert find_refused(wide, PATH, validate) == f"{PATH}.properties.p0"
    wide = {"properties": {f"p{i}": {"pattern": "x"} for i in range(10 * MAX_PROBES)}}
    asked = 0

    def late(schema: Any) -> None:
        nonlocal asked
        asked += 1
        if len(schema.get("properties", ())) > 1:
            raise ValueError("too many")

    assert find_refused(wide, PATH, late) == PATH
    assert asked <= MAX_PROBES
