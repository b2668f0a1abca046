"""Reasons why a JSON object is not a valid event: the first wrong field, and what it expects.

Only used for refused records.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import cast

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
_INTEGERS = (
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_SINT32,
)
_RANGES = {
    FieldDescriptor.TYPE_UINT64: (0.0, 2.0**64),
    FieldDescriptor.TYPE_UINT32: (0.0, 2.0**32),
    FieldDescriptor.TYPE_SINT64: (-(2.0**63), 2.0**63),
    FieldDescriptor.TYPE_SINT32: (-(2.0**31), 2.0**31),
}
_EXACT = 2.0**53
"""At and above this, a number with a point or an exponent, parsed as a double, may be inexact."""
FLOAT_LIMIT = 2.0**128 - 2.0**103
"""Values of this size or larger are infinite in a `float` field."""
_INTEGER_TEXT = re.compile(r"-?[0-9]+")
_FLOAT_TEXT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")


def explain(descriptor: Descriptor, item: Mapping[object, object], path: str = "") -> str | None:
    """Return the first field of `item` that does not fit `descriptor`, with the reason, or None.

    `path` is the prefix of every name.
    """
    fields = {**descriptor.fields_by_camelcase_name, **descriptor.fields_by_name}
    for name, value in item.items():
        field = fields.get(str(name))
        if field is None:
            return f"{path}{name}: unknown field of {descriptor.name}"
        if value is not None and (reason := _explain_field(field, value, f"{path}{name}")):
            return reason
    return None


def inexact_number(
    descriptor: Descriptor, item: Mapping[object, object], path: str = ""
) -> str | None:
    """Return the first number of `item` that Python parses as another value than its text, or None.

    Protobuf's own parser accepts what Python's `int` and `float` accept: digits of any script,
    underscores, floats that were rounded to another integer, and floats that a `float` field cannot
    hold.
    """
    fields = {**descriptor.fields_by_camelcase_name, **descriptor.fields_by_name}
    for name, value in item.items():
        field = fields.get(str(name))
        if field is None:
            continue
        for place, one in _values(field, value, f"{path}{name}"):
            if reason := _inexact(_element(field), one, place):
                return reason
    return None


def _element(field: FieldDescriptor) -> FieldDescriptor:
    """Return the value field of a map entry, else `field`."""
    message = field.message_type
    return message.fields_by_name["value"] if message and message.GetOptions().map_entry else field


def _values(field: FieldDescriptor, value: object, path: str) -> Iterable[tuple[str, object]]:
    """Return the values of `field` with their paths; values of the wrong JSON type are omitted."""
    if _element(field) is not field:
        return [(f"{path}.{k}", v) for k, v in value.items()] if isinstance(value, Mapping) else []
    if not field.is_repeated:
        return [(path, value)]
    return [(f"{path}[{i}]", v) for i, v in enumerate(value)] if isinstance(value, list) else []


def _inexact(field: FieldDescriptor, value: object, path: str) -> str | None:
    if field.message_type:
        return (
            inexact_number(field.message_type, value, f"{path}.")
            if isinstance(value, Mapping)
            else None
        )
    if field.type in _FLOATS:
        if isinstance(value, bool):
            return f"{path}: expected a number, got a boolean"
        return _inexact_float(field, value, path) if isinstance(value, int | float | str) else None
    if field.type in _INTEGERS:
        if isinstance(value, float):
            return _inexact_integer(field, value, path)
        if isinstance(value, str) and not _INTEGER_TEXT.fullmatch(value):
            return f"{path}: expected an integer, got a string"
    return None


def _inexact_integer(field: FieldDescriptor, value: float, path: str) -> str | None:
    low, high = _RANGES[field.type]
    if not low <= value < high or (value == low and low <= -_EXACT):
        return f"{path}: {value} is out of range or not an integer"
    if abs(value) >= _EXACT:
        return (
            f"{path}: {value} has a point or an exponent and may have lost digits; "
            "write it as an integer or a string"
        )
    return None


def _inexact_float(field: FieldDescriptor, value: float | str, path: str) -> str | None:
    if isinstance(value, str):
        if not _FLOAT_TEXT.fullmatch(value):
            return f"{path}: expected a number, got a string"
        if value.endswith("Infinity"):
            return None
    number, shown = float(value), str(value)[:40]
    if math.isinf(number):
        return f"{path}: {shown} is out of range"
    if field.type == FieldDescriptor.TYPE_FLOAT and abs(number) >= FLOAT_LIMIT:
        return f"{path}: {shown} is out of range of a 32-bit float, which ends at 3.4028235e+38"
    return None


def _explain_field(descriptor: FieldDescriptor, value: object, path: str) -> str | None:
    if descriptor.message_type and descriptor.message_type.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            return f"{path}: expected an object, got {json_name(value)}"
        inner = descriptor.message_type.fields_by_name["value"]
        return next(
            filter(None, (_explain_value(inner, v, f"{path}.{k}") for k, v in value.items())), None
        )
    if not descriptor.is_repeated:
        return _explain_value(descriptor, value, path)
    if not isinstance(value, list):
        return f"{path}: expected an array, got {json_name(value)}"
    return next(
        filter(None, (_explain_value(descriptor, v, f"{path}[{i}]") for i, v in enumerate(value))),
        None,
    )


def _explain_value(descriptor: FieldDescriptor, value: object, path: str) -> str | None:
    if descriptor.message_type:
        if not isinstance(value, Mapping):
            return f"{path}: expected an object, got {json_name(value)}"
        return explain(descriptor.message_type, value, f"{path}.")
    if descriptor.type == FieldDescriptor.TYPE_STRING:
        return (
            None if isinstance(value, str) else f"{path}: expected a string, got {json_name(value)}"
        )
    if descriptor.type == FieldDescriptor.TYPE_BOOL:
        return (
            None
            if isinstance(value, bool)
            else f"{path}: expected true or false, got {json_name(value)}"
        )
    return _explain_number(descriptor, value, path)


def _explain_number(descriptor: FieldDescriptor, value: object, path: str) -> str | None:
    expected = "a number" if descriptor.type in _FLOATS else "an integer"
    if value is None:
        return f"{path}: expected {expected}, got null"
    try:
        json_format.ParseDict(
            {descriptor.name: [value] if descriptor.is_repeated else value}, _holder(descriptor)
        )
    except (json_format.ParseError, TypeError, ValueError, OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{path}: {value} is out of range or not {expected}"
        if isinstance(value, str) and _INTEGER_TEXT.fullmatch(value):
            return f"{path}: {value[:40]} is out of range"
        return f"{path}: expected {expected}, got {json_name(value)}"
    return None


def _holder(descriptor: FieldDescriptor) -> Message:
    return message_factory.GetMessageClass(cast("Descriptor", descriptor.containing_type))()


def json_name(value: object) -> str:
    """Return the name of a parsed value's JSON type, with its article."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]
