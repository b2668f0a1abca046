"""Hypothesis strategies for event messages, made from their descriptors."""

import math
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from mev.wire.registry import EventType

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def _one_nan(value: float) -> float:
    """Return `value`, and for each of the many NaN the usual one: JSON knows no other."""
    return math.nan if math.isnan(value) else value


_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: st.floats().map(_one_nan),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32).map(_one_nan),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: TEXT,
}


def messages(event: EventType) -> st.SearchStrategy[Message]:
    """Make messages of `event` that have every required field."""
    return _fields(event.descriptor, event.required).map(lambda fields: event.message(**fields))


def full_message(event: EventType) -> Message:
    """Return a message of `event` in which no field has its default."""
    return event.message(**_full(event.descriptor))


def _fields(
    descriptor: Descriptor, required: tuple[str, ...] = ()
) -> st.SearchStrategy[dict[str, Any]]:
    values = {field.name: _values(field) for field in descriptor.fields}
    needed = {name: values.pop(name).filter(bool) for name in required}
    return st.fixed_dictionaries(needed, optional=values)


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return st.dictionaries(_values(key), _values(value), max_size=3)
    one = _fields(field.message_type) if field.message_type else _SCALARS[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def _full(descriptor: Descriptor) -> dict[str, Any]:
    return {field.name: _full_value(field) for field in descriptor.fields}


def _full_value(field: FieldDescriptor) -> Any:
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return {_full_value(key): _full_value(value)}
    one = _full(field.message_type) if field.message_type else _LARGEST[field.type]
    return [one, one] if field.is_repeated else one


_LARGEST: dict[int, Any] = {
    FieldDescriptor.TYPE_DOUBLE: 1.5e300,
    FieldDescriptor.TYPE_FLOAT: 1.5,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_SINT64: -(2**63),
    FieldDescriptor.TYPE_SINT32: -(2**31),
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_STRING: 'it\'s a \\ "text" of ünicode\n',
}
