"""Resolution of a condition's field in an event type.

Examples: ``slot``, ``route.dex``, ``gauges.cpu``, ``gauges."cpu load"``.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mev.wire.filters.errors import BadFilterError, echo
from mev.wire.filters.scalars import SCALARS, Scalar
from mev.wire.registry import EventType

_BARE_KEY = re.compile(r"[A-Za-z0-9_.:/@%+-]+")


@dataclass(frozen=True, slots=True)
class FieldStep:
    """One field on the path to the values."""

    name: str
    repeated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The path from a message to the values of a field.

    `key` is the map key if the last step is a map.
    """

    text: str
    steps: tuple[FieldStep, ...]
    key: str | None
    scalar: Scalar


def resolve(event: EventType, text: str) -> Path:
    """Return the path that `text` names in `event`, or raise :class:`BadFilterError`."""
    descriptor, rest, steps = event.descriptor, text, list[FieldStep]()
    while True:
        name, dot, rest = rest.partition(".")
        field = descriptor.fields_by_name.get(name) if name.isascii() else None
        if field is None:
            raise _unknown(event, text)
        if is_map := _is_map(field):
            return _entry(field, tuple(steps), rest if dot else None)
        steps.append(FieldStep(name, field.is_repeated and not is_map))
        if field.message_type is None:
            break
        if not dot:
            inner = [f"{text}.{known}" for known in _names(field.message_type)]
            raise BadFilterError(
                f"{text} is a message; name one of its fields: {', '.join(inner)}",
                path=text,
                known=inner,
            )
        descriptor = field.message_type
    if dot:
        raise BadFilterError(
            f"{_dotted(steps)} is of type {_scalar(field).name} and has no fields", path=text
        )
    return Path(text=_dotted(steps), steps=tuple(steps), key=None, scalar=_scalar(field))


def _entry(field: FieldDescriptor, steps: tuple[FieldStep, ...], key: str | None) -> Path:
    prefix = _dotted([*steps, FieldStep(field.name, repeated=False)])
    if not key:
        raise BadFilterError(
            f'{prefix} is a map; name a key of it: {prefix}.name, or {prefix}."any name"',
            path=prefix,
        )
    name = _key(prefix, key)
    shown = name if _BARE_KEY.fullmatch(name) else orjson.dumps(name).decode()
    value = cast("Descriptor", field.message_type).fields_by_name["value"]
    return Path(
        text=f"{prefix}.{shown}",
        steps=(*steps, FieldStep(field.name, repeated=False)),
        key=name,
        scalar=_scalar(value),
    )


def _key(prefix: str, text: str) -> str:
    if _BARE_KEY.fullmatch(text):
        return text
    try:
        name = orjson.loads(text)
    except orjson.JSONDecodeError:
        name = None
    if not isinstance(name, str):
        raise BadFilterError(
            f'{echo(text)} is no key of {prefix}; write {prefix}."any name"', path=prefix
        )
    return name


def _scalar(field: FieldDescriptor) -> Scalar:
    return SCALARS[field.type]


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _dotted(steps: list[FieldStep]) -> str:
    return ".".join(step.name for step in steps)


def _names(descriptor: Descriptor) -> Iterator[str]:
    for field in descriptor.fields:
        if field.message_type is None:
            yield field.name
        elif _is_map(field):
            yield f"{field.name}.<key>"
        else:
            yield from (f"{field.name}.{inner}" for inner in _names(field.message_type))


def _unknown(event: EventType, text: str) -> BadFilterError:
    known, text = list(_names(event.descriptor)), text[:64].encode(errors="replace").decode()
    near = (
        difflib.get_close_matches(text, known, n=3) or [name for name in known if text in name][:3]
    )
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return BadFilterError(
        f"{event.name} has no field {echo(text)}; {hint}it has {', '.join(known)}",
        path=text,
        near=near,
        known=known,
    )
