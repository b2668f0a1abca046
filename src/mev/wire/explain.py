"""Why a JSON object is not an event: the path of the first field that does not fit, and what was expected there.

Only the slow path of a refusal comes here; what fits never does.
"""

from collections.abc import Mapping
from typing import cast

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


def explain(descriptor: Descriptor, item: Mapping[object, object], path: str = "") -> str | None:
    """Name the first field of `item` that does not fit `descriptor`, and why; `path` goes before every name."""
    fields = {**descriptor.fields_by_camelcase_name, **descriptor.fields_by_name}
    for name, value in item.items():
        field = fields.get(str(name))
        if field is None:
            return f"{path}{name}: unknown field of {descriptor.name}"
        if value is not None and (reason := _explain_field(field, value, f"{path}{name}")):
            return reason
    return None


def _explain_field(descriptor: FieldDescriptor, value: object, path: str) -> str | None:
    if descriptor.message_type and descriptor.message_type.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            return f"{path}: expected an object, got {json_name(value)}"
        inner = descriptor.message_type.fields_by_name["value"]
        return next(filter(None, (_explain_value(inner, v, f"{path}.{k}") for k, v in value.items())), None)
    if not descriptor.is_repeated:
        return _explain_value(descriptor, value, path)
    if not isinstance(value, list):
        return f"{path}: expected an array, got {json_name(value)}"
    return next(filter(None, (_explain_value(descriptor, v, f"{path}[{i}]") for i, v in enumerate(value))), None)


_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)


def _explain_value(descriptor: FieldDescriptor, value: object, path: str) -> str | None:
    if descriptor.message_type:
        if not isinstance(value, Mapping):
            return f"{path}: expected an object, got {json_name(value)}"
        return explain(descriptor.message_type, value, f"{path}.")
    if descriptor.type == FieldDescriptor.TYPE_STRING:
        return None if isinstance(value, str) else f"{path}: expected a string, got {json_name(value)}"
    if descriptor.type == FieldDescriptor.TYPE_BOOL:
        return None if isinstance(value, bool) else f"{path}: expected true or false, got {json_name(value)}"
    return _explain_number(descriptor, value, path)


def _explain_number(descriptor: FieldDescriptor, value: object, path: str) -> str | None:
    expected = "a number" if descriptor.type in _FLOATS else "an integer"
    if value is None:
        return f"{path}: expected {expected}, got null"
    try:
        json_format.ParseDict({descriptor.name: [value] if descriptor.is_repeated else value}, _holder(descriptor))
    except (json_format.ParseError, TypeError, ValueError, OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{path}: {value} is out of range or not {expected}"
        return f"{path}: expected {expected}, got {json_name(value)}"
    return None


def _holder(descriptor: FieldDescriptor) -> Message:
    return message_factory.GetMessageClass(cast("Descriptor", descriptor.containing_type))()


def json_name(value: object) -> str:
    """Name the JSON type of a parsed value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array", dict: "an object"}
    return names[type(value)]
