"""Tests of action schemas: allowed declarations, and the maximum cost of validation."""

import json
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.control import action_schemas
from mev.control.errors import InvalidCommandError, SchemaNotAllowedError

MAX_BYTES = 16 << 10
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
NAMES = st.sampled_from(["a", "b", "lamports"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
COUNTS = st.integers(0, 5)
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["object", "array", "integer", "number", "string", "boolean", "null"]),
    "enum": st.lists(SCALARS, min_size=1, max_size=4),
    "const": SCALARS,
    "minimum": st.integers(-5, 5),
    "exclusiveMaximum": st.floats(-5, 5),
    "maxLength": COUNTS,
    "minItems": COUNTS,
    "maxProperties": COUNTS,
    "required": st.lists(NAMES, max_size=3),
}
ALLOWED = st.recursive(
    st.booleans() | st.fixed_dictionaries({}, optional=LEAVES),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            **LEAVES,
            "items": inner,
            "additionalProperties": inner,
            "properties": st.dictionaries(NAMES, inner, max_size=3),
        },
    ),
    max_leaves=6,
)


def nested(depth: int, leaf: object) -> object:
    """Return `leaf` below the given number of levels of `properties`."""
    for _ in range(depth):
        leaf = {"properties": {"a": leaf}}
    return leaf


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, "params.not"),
        ({"$ref": "http://127.0.0.1:1/x"}, "params.$ref"),
        ({"$dynamicRef": "#a"}, "params.$dynamicRef"),
        ({"$defs": {}}, "params.$defs"),
        ({"allOf": [{}]}, "params.allOf"),
        ({"anyOf": [{}]}, "params.anyOf"),
        ({"oneOf": [{}]}, "params.oneOf"),
        ({"if": {}}, "params.if"),
        ({"pattern": "^(a+)+$"}, "params.pattern"),
        ({"patternProperties": {"^(a+)+$": {}}}, "params.patternProperties"),
        ({"propertyNames": {"pattern": "^(a+)+$"}}, "params.propertyNames"),
        ({"uniqueItems": True}, "params.uniqueItems"),
        ({"contains": {}}, "params.contains"),
        ({"prefixItems": [{}]}, "params.prefixItems"),
        ({"dependentSchemas": {}}, "params.dependentSchemas"),
        ({"unevaluatedProperties": False}, "params.unevaluatedProperties"),
        ({"multipleOf": 1e-300}, "params.multipleOf"),
        ({"properties": {"a": {"items": {"pattern": "x"}}}}, "params.properties.a.items.pattern"),
        ({"additionalProperties": {"not": {}}}, "params.additionalProperties.not"),
        ({"type": 5}, "params.type"),
        ({"type": "text"}, "params.type"),
        ({"type": []}, "params.type"),
        ({"minimum": True}, "params.minimum"),
        ({"minLength": -1}, "params.minLength"),
        ({"minimum": float("nan")}, "params.minimum"),
        ({"enum": []}, "params.enum"),
        ({"enum": [[1]]}, "params.enum"),
        ({"enum": [0] * 101}, "params.enum"),
        ({"required": [1]}, "params.required"),
        ({"properties": []}, "params.properties"),
        ({"properties": {"a": 5}}, "params.properties.a"),
        (nested(8, {}), "params" + ".properties.a" * 8),
        ({"title": "x" * 20_000}, "params"),
        ({"examples": [0] * 600}, "params"),
    ],
)
def test_schema_is_refused_at_the_place_that_is_not_allowed(schema: object, place: str) -> None:
    with pytest.raises(SchemaNotAllowedError) as refused:
        action_schemas.check_schema(schema, "params", max_bytes=MAX_BYTES)
    assert refused.value.fields == {"field": "params", "place": place}
    assert refused.value.detail.startswith(place)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        nested(7, {}),
        {
            "type": ["integer", "null"],
            "minimum": 10**400,
            "description": "pattern and not are words here",
        },
        {
            "properties": {"pattern": {"type": "string"}, "$ref": {}, "not": {"const": "x"}},
            "required": ["pattern"],
        },
        {
            "type": "array",
            "items": {"enum": ["a", 1, None]},
            "maxItems": 3,
            "default": {"any": ["thing"]},
        },
    ],
)
def test_schema_of_allowed_keywords_is_taken(schema: object) -> None:
    action_schemas.check_schema(schema, "params", max_bytes=MAX_BYTES)


@given(JSON)
def test_any_json_is_a_schema_or_refused(schema: object) -> None:
    with suppress(SchemaNotAllowedError):  # and no other error
        action_schemas.check_schema(schema, "params", max_bytes=MAX_BYTES)


@given(ALLOWED, st.dictionaries(NAMES, JSON, max_size=3))
def test_parameters_fit_an_allowed_schema_or_are_refused(
    schema: object, params: dict[str, object]
) -> None:
    action_schemas.check_schema(schema, "params", max_bytes=MAX_BYTES)
    with suppress(InvalidCommandError):  # and no other error
        action_schemas.check_params(params, json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        ({"properties": {"a": {"items": {"enum": list(range(100))}}}}, {"a": [99] * 998}),
        (
            {"properties": {"a": {"items": {"properties": {str(n): True for n in range(500)}}}}},
            {"a": [{"x": 0}] * 499},
        ),
        (
            {"properties": {"a": {"items": {"required": [str(n) for n in range(500)]}}}},
            {"a": [{}] * 998},
        ),
        (
            {
                "additionalProperties": {
                    "additionalProperties": {"additionalProperties": {"const": 1}}
                }
            },
            {str(n): {"a": 1} for n in range(499)},
        ),
    ],
    ids=["enum", "properties", "required", "additionalProperties"],
)
def test_cost_of_largest_check_is_bounded(
    schema: dict[str, object], params: dict[str, object]
) -> None:
    action_schemas.check_schema(schema, "params", max_bytes=MAX_BYTES)
    text = json.dumps(params)
    action_schemas.check_params_size(text, params, max_bytes=MAX_BYTES)
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        with suppress(InvalidCommandError):
            action_schemas.check_params(params, json.dumps(schema))
    finally:
        sys.setprofile(None)
    assert calls < 2_000_000


@pytest.mark.parametrize(
    "params", [{"a": [0] * 1000}, {"a": "x" * 17_000}], ids=["values", "bytes"]
)
def test_large_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(InvalidCommandError, match="are allowed"):
        action_schemas.check_params_size(json.dumps(params), params, max_bytes=MAX_BYTES)
