"""The JSON messages of the protocol: what clients say, checked, and what the server answers.

A message with anything wrong in it is refused as a whole, with an error that names the field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from mev.core.errors import MevError
from mev.realtime import websocket
from mev.realtime.errors import BadJsonError, InvalidFieldError, UnknownFieldError, UnknownOpError, UnknownTopicError, UnsupportedError
from mev.realtime.websocket import Opcode

_MAX_ID = 64
_ECHO = 80

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Auth:
    """`{"op": "auth", "api_key": "..."}`."""

    api_key: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """`{"op": "subscribe", "id": "s1", "topics": ["tick"]}`."""

    id: str
    topics: frozenset[str]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """`{"op": "unsubscribe", "id": "s1"}`."""

    id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """`{"op": "ping"}`, with any id."""


Request = Auth | Subscribe | Unsubscribe | Ping

_FIELDS: dict[str, frozenset[str]] = {
    "auth": frozenset({"api_key"}),
    "subscribe": frozenset({"id", "topics", "filter", "from", "on_slow", "max_rate"}),
    "unsubscribe": frozenset({"id"}),
    "ping": frozenset({"id"}),
}


def decode(text: bytes) -> Fields:
    """Parse a message as far as its being a JSON object."""
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadJsonError(f"the message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadJsonError('the message is not a JSON object; try {"op": "ping"}')
    return fields


def read(fields: Fields, topics: frozenset[str]) -> Request:
    """Check a decoded message against the operations there are and the event types in `topics`."""
    op = fields.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        raise UnknownOpError(f"no operation {_echo(op)}; there are {', '.join(_FIELDS)}", field="op")
    unknown = fields.keys() - _FIELDS[op] - {"op"}
    if unknown:
        name = min(unknown)
        raise UnknownFieldError(f"{op} has no field {_echo(name)}; it has {', '.join(sorted(_FIELDS[op]))}", field=name[:_ECHO])
    return _read(op, fields, topics)


def _read(op: str, fields: Fields, topics: frozenset[str]) -> Request:
    match op:
        case "auth":
            return Auth(_string(fields, "api_key", maximum=4096))
        case "subscribe":
            _refuse_unsupported(fields)
            return Subscribe(_string(fields, "id", maximum=_MAX_ID), _topics(fields.get("topics"), topics))
        case "unsubscribe":
            return Unsubscribe(_string(fields, "id", maximum=_MAX_ID))
        case _:
            return Ping()


def _string(fields: Fields, name: str, *, maximum: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= maximum:
        raise InvalidFieldError(f"{name} is a string of 1 to {maximum} characters", field=name)
    return value


def _topics(value: object, known: frozenset[str]) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise InvalidFieldError("topics is a list of one or more event types", field="topics")
    wanted = frozenset(value)
    unknown = wanted - known
    if unknown:
        names = sorted(known)
        raise UnknownTopicError(f"no event type {_echo(min(unknown))}; there are {', '.join(names)}", field="topics", known=names)
    return wanted


def _refuse_unsupported(fields: Fields) -> None:
    if fields.get("filter"):
        raise UnsupportedError("filters are not supported yet; leave filter out", field="filter")
    if fields.get("from", "live") != "live":
        raise UnsupportedError('only "from": "live" is supported yet', field="from")
    if fields.get("on_slow", "drop_oldest") != "drop_oldest":
        raise UnsupportedError('only "on_slow": "drop_oldest" is supported yet', field="on_slow")
    if fields.get("max_rate") is not None:
        raise UnsupportedError("max_rate is not supported yet; leave it out", field="max_rate")


def _echo(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _ECHO else f"{text[:_ECHO]}..."


def authenticated() -> bytes:
    """Confirm an `auth`."""
    return _message({"op": "authenticated"})


def subscribed(subscription_id: str, topics: frozenset[str]) -> bytes:
    """Confirm a `subscribe`, with what was understood."""
    return _message({"op": "subscribed", "id": subscription_id, "topics": sorted(topics), "from": "live", "on_slow": "drop_oldest"})


def unsubscribed(subscription_id: str, dropped: int) -> bytes:
    """Confirm an `unsubscribe`, with the losses not reported before."""
    return _message({"op": "unsubscribed", "id": subscription_id, "dropped": dropped})


def pong(fields: Fields) -> bytes:
    """Answer a `ping`, with its id when that is a short string."""
    return _message({"op": "pong", **_reference(fields)})


def error(cause: MevError, fields: Fields | None = None) -> bytes:
    """Tell what was wrong with a message."""
    return _message({"op": "error", "id": None, **_reference(fields or {}), "code": cause.code, "detail": cause.detail, **cause.fields})


def _reference(fields: Fields) -> dict[str, str]:
    value = fields.get("id")
    return {"id": value} if isinstance(value, str) and len(value) <= _MAX_ID else {}


def _message(fields: Fields) -> bytes:
    return websocket.frame(Opcode.TEXT, orjson.dumps(fields))
