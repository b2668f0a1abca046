"""Conversion of published events into JSON text.

Field names are those of the `.proto` files, integers are JSON numbers of any width, NaN and
infinities are null. Converters are built once per type, because the Protobuf library's own JSON
writer is ten times slower.
"""

import base64
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from mev.wire.registry import EventType

Render = Callable[[bytes], bytes]
_Convert = Callable[[Any], object]


def renderer(event: EventType) -> Render:
    """Return a function that converts an event's bytes into its JSON object, `"type"` first.

    Bytes that cannot be decoded become `{"type": ..., "undecodable": "<base64>"}`, so that they
    stay visible.
    """
    name, parse = event.name, event.message.FromString
    to_dict = _message(event.descriptor)

    def render(value: bytes) -> bytes:
        try:
            fields = to_dict(parse(value))
        except DecodeError:
            fields = {"undecodable": base64.b64encode(value).decode()}
        return orjson.dumps({"type": name, **fields})

    return render


def _message(descriptor: Descriptor) -> Callable[[Message], dict[str, object]]:
    names = [field.name for field in descriptor.fields]
    converters = [
        (field.name, convert)
        for field in descriptor.fields
        if (convert := _field(field)) is not None
    ]
    if len(names) < 2:
        return lambda message: {
            name: _converted(converters, name, getattr(message, name)) for name in names
        }
    read = attrgetter(*names)

    def to_dict(message: Message) -> dict[str, object]:
        fields = dict(zip(names, read(message), strict=True))
        for name, convert in converters:
            fields[name] = convert(fields[name])
        return fields

    return to_dict


def _converted(converters: list[tuple[str, _Convert]], name: str, value: object) -> object:
    return dict(converters)[name](value) if name in dict(converters) else value


def _field(field: FieldDescriptor) -> _Convert | None:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return _map(_value(field.message_type.fields_by_name["value"]))
    convert = _value(field)
    if field.is_repeated:
        return _repeated(convert)
    return convert


def _value(field: FieldDescriptor) -> _Convert | None:
    if field.message_type:
        return _message(field.message_type)
    if field.enum_type:
        return _enum(field.enum_type)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    return None


def _enum(descriptor: EnumDescriptor) -> _Convert:
    names = {number: value.name for number, value in descriptor.values_by_number.items()}
    return lambda number: names.get(number, number)


def _repeated(convert: _Convert | None) -> _Convert:
    if convert is None:
        return list
    return lambda values: list(map(convert, values))


def _map(convert: _Convert | None) -> _Convert:
    if convert is None:
        return lambda values: {str(key): value for key, value in values.items()}
    return lambda values: {str(key): convert(value) for key, value in values.items()}
