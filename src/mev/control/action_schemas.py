"""JSON Schemas of action parameters: the allowed keywords, and the validation of parameters.

Agents write these schemas, so their cost is bounded by construction. No allowed keyword refers to
another schema, combines schemas or matches a pattern: each value of the parameters is compared with
one part of the schema. The largest check takes a quarter of a second.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from mev.control.errors import InvalidCommandError, SchemaNotAllowedError

MAX_SCHEMA_NODES = 512
MAX_SCHEMA_DEPTH = 8
MAX_ENUM_VALUES = 100
MAX_PARAMS_NODES = 1000
MAX_PARAMS_DEPTH = 32
_LONGEST_DETAIL = 300
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_SCALARS = (str, int, float, bool, type(None))


def check_schema(schema: object, place: str, *, max_bytes: int) -> None:
    """Check that `schema` is small and has only allowed keywords.

    :raises SchemaNotAllowedError: naming the first place that is not allowed.
    """
    size_bytes = len(json.dumps(schema))
    if size_bytes > max_bytes:
        raise _not_allowed(
            place, place, f"the schema has {size_bytes} bytes; {max_bytes} are allowed"
        )
    nodes = count_nodes(schema)
    if nodes > MAX_SCHEMA_NODES:
        raise _not_allowed(
            place, place, f"the schema has {nodes} values; {MAX_SCHEMA_NODES} are allowed"
        )
    waiting = [(schema, place, 1)]
    while waiting:
        found, at, depth = waiting.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise _not_allowed(place, at, f"schemas are nested {MAX_SCHEMA_DEPTH} deep at most")
        waiting += [(inner, name, depth + 1) for inner, name in _checked(found, at, place)]


def check_params(params: Mapping[str, object], schema_json: str) -> None:
    """Check parameters against a schema that :func:`check_schema` allows.

    :raises InvalidCommandError: naming the first parameter that does not fit.
    """
    validator = Draft202012Validator(json.loads(schema_json or "{}"), registry=Registry())
    # Only the first error: an array of objects may have very many.
    error = next(validator.iter_errors(params), None)
    if error is not None:
        place = "params" + "".join(f"[{part!r}]" for part in error.absolute_path)
        raise InvalidCommandError(f"{place}: {error.message[:_LONGEST_DETAIL]}", field=place)


def check_params_size(params_json: str, params: object, *, max_bytes: int) -> None:
    """Check that parameters are small.

    :raises InvalidCommandError: if they are too long or have too many values.
    """
    if len(params_json) > max_bytes:
        raise InvalidCommandError(
            f"params: {len(params_json)} bytes; {max_bytes} are allowed", field="params"
        )
    if (nodes := count_nodes(params)) > MAX_PARAMS_NODES:
        raise InvalidCommandError(
            f"params: {nodes} values; {MAX_PARAMS_NODES} are allowed", field="params"
        )


def count_nodes(value: object) -> int:
    """Return the number of values in a JSON document, including itself.

    Member names are not counted.
    """
    count, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return count


def _not_allowed(field: str, place: str, why: str) -> SchemaNotAllowedError:
    return SchemaNotAllowedError(f"{place}: {why}", field=field, place=place)


def _checked(schema: object, place: str, field: str) -> Iterator[tuple[object, str]]:
    """Check the keywords of one schema; yield its inner schemas with their places."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _not_allowed(field, place, "a schema is an object or a boolean")
    for keyword, value in schema.items():
        at = f"{place}.{keyword[:80]}"
        fits = _KEYWORDS.get(keyword)
        if fits is None:
            raise _not_allowed(field, at, f"the keyword is not allowed; use {', '.join(_KEYWORDS)}")
        if not fits(value):
            raise _not_allowed(field, at, "the value does not fit the keyword")
        if keyword == "properties":
            yield from ((inner, f"{at}.{name[:80]}") for name, inner in value.items())
        elif keyword in {"items", "additionalProperties"}:
            yield value, at


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, _SCALARS)


_KEYWORDS: Mapping[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "properties": lambda value: isinstance(value, dict),
    "required": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "additionalProperties": lambda value: isinstance(value, dict | bool),
    "minProperties": _is_count,
    "maxProperties": _is_count,
    "items": lambda value: isinstance(value, dict | bool),
    "minItems": _is_count,
    "maxItems": _is_count,
    "minimum": _is_number,
    "maximum": _is_number,
    "exclusiveMinimum": _is_number,
    "exclusiveMaximum": _is_number,
    "minLength": _is_count,
    "maxLength": _is_count,
    "enum": lambda value: (
        isinstance(value, list)
        and 0 < len(value) <= MAX_ENUM_VALUES
        and all(map(_is_scalar, value))
    ),
    "const": _is_scalar,
    "title": _is_text,
    "description": _is_text,
    "format": _is_text,  # an annotation: it is not validated
    "default": lambda _: True,
    "examples": lambda value: isinstance(value, list),
    "$schema": _is_text,
}
