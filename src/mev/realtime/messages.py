"""The JSON messages of the protocol: what clients say, checked, and what the server answers.

A message with anything wrong in it is refused as a whole, with an error that names the field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from mev.core.errors import MevError
from mev.realtime import reading
from mev.realtime.cursor import Cursor, cursor
from mev.realtime.errors import BadJsonError, UnknownFieldError, UnknownOpError
from mev.realtime.start import Beginning, Start
from mev.realtime.terms import Delivery, OnSlow, Terms
from mev.wire import filters
from mev.wire.registry import EventType

Fields = Mapping[str, object]
Types = Mapping[str, EventType]
_TERMS = frozenset({"topics", "filter", "on_slow", "max_rate"})
_FIELDS: dict[str, frozenset[str]] = {
    "auth": frozenset({"api_key", "ticket"}),
    "subscribe": _TERMS | {"id", "from", "delivery"},
    "update": _TERMS | {"id"},
    "unsubscribe": frozenset({"id"}),
    "ping": frozenset({"id"}),
}


@dataclass(frozen=True, slots=True)
class Auth:
    """`{"op": "auth", "api_key": "..."}`, or with a `ticket`."""

    credential: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """`{"op": "subscribe", "id": "s1", "topics": ["tick"]}`."""

    id: str
    terms: Terms
    start: Start


@dataclass(frozen=True, slots=True)
class Update:
    """`{"op": "update", "id": "s1", "filter": []}`: only the fields that change."""

    id: str
    fields: Fields

    def terms(self, before: Terms, types: Types) -> Terms:
        """Return `before` with the fields that change."""
        topics = reading.topics(self.fields["topics"], types) if "topics" in self.fields else before.topics
        if "filter" in self.fields:
            chosen = _filter(self.fields["filter"], topics, types)
        else:
            chosen = before.filter if topics == before.topics else _filter(before.filter.text(), topics, types)
        return Terms(
            topics=topics,
            filter=chosen,
            on_slow=reading.choice(self.fields, "on_slow", OnSlow, before.on_slow),
            max_rate=reading.rate(self.fields["max_rate"]) if "max_rate" in self.fields else before.max_rate,
            delivery=before.delivery,
        )


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """`{"op": "unsubscribe", "id": "s1"}`."""

    id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """`{"op": "ping"}`, with any id."""


Request = Auth | Subscribe | Update | Unsubscribe | Ping


def decode(text: bytes) -> Fields:
    """Parse a message as far as its being a JSON object."""
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadJsonError(f"the message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadJsonError('the message is not a JSON object; try {"op": "ping"}')
    return fields


def read(fields: Fields, types: Types) -> Request:
    """Check a decoded message against the operations there are and the event types in `types`."""
    op = fields.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        raise UnknownOpError(f"no operation {reading.echo(op)}; there are {', '.join(_FIELDS)}", field="op")
    unknown = fields.keys() - _FIELDS[op] - {"op"}
    if unknown:
        name = min(unknown)
        allowed = ", ".join(sorted(_FIELDS[op]))
        raise UnknownFieldError(f"{op} has no field {reading.echo(name)}; it has {allowed}", field=name[: reading.ECHO])
    return _read(op, fields, types)


def _read(op: str, fields: Fields, types: Types) -> Request:
    match op:
        case "auth":
            return Auth(reading.string(fields, "ticket" if "ticket" in fields else "api_key", maximum=4096))
        case "subscribe":
            return _subscribe(fields, types)
        case "update":
            return Update(reading.subscription_id(fields), fields)
        case "unsubscribe":
            return Unsubscribe(reading.subscription_id(fields))
        case _:
            return Ping()


def _subscribe(fields: Fields, types: Types) -> Subscribe:
    topics = reading.topics(fields.get("topics"), types)
    terms = Terms(
        topics=topics,
        filter=_filter(fields.get("filter", []), topics, types),
        on_slow=reading.choice(fields, "on_slow", OnSlow, OnSlow.DROP_OLDEST),
        max_rate=reading.rate(fields.get("max_rate")),
        delivery=reading.choice(fields, "delivery", Delivery, Delivery.STREAM),
    )
    return Subscribe(reading.subscription_id(fields), terms, reading.start(fields.get("from", "live"), topics, types))


def _filter(conditions: object, topics: frozenset[str], types: Types) -> filters.Filter:
    return filters.parse([] if conditions is None else conditions, [types[name] for name in sorted(topics)])


def authenticated() -> bytes:
    """Confirm an `auth`."""
    return orjson.dumps({"op": "authenticated"})


def subscribed(op: str, subscription_id: str, terms: Terms, beginning: Beginning, log: str, types: Types) -> bytes:
    """Confirm a `subscribe` or `update`, with what was understood and where it begins."""
    topics = [types[name].topic for name in sorted(terms.topics)]
    gaps = {at: {"from": first, "to": last} for at, (first, last) in beginning.gaps.items()}
    bounds = {at: {"earliest": bound.earliest, "latest": bound.latest} for at, bound in beginning.bounds.items()}
    return orjson.dumps(
        {
            "op": op,
            "id": subscription_id,
            "topics": sorted(terms.topics),
            "filter": terms.shown_filter(),
            "on_slow": terms.on_slow,
            "max_rate": terms.max_rate,
            "delivery": terms.delivery,
            "start": beginning.outcome,
            **({"gaps": cursor(gaps, topics)} if gaps else {}),
            "log": log,
            "cursor": cursor(beginning.positions, topics),
            **({"positions": cursor(bounds, topics)} if bounds else {}),
        }
    )


def unsubscribed(subscription_id: str, dropped: int) -> bytes:
    """Confirm an `unsubscribe`, with the losses not reported before."""
    return orjson.dumps({"op": "unsubscribed", "id": subscription_id, "dropped": dropped})


def pong(fields: Fields) -> bytes:
    """Answer a `ping`, with its id when that is a short string."""
    return orjson.dumps({"op": "pong", **reading.reference(fields)})


def progress(subscription_id: str, sequence: int, dropped: int) -> bytes:
    """Say how many events were sent in all, and how many were lost and not told of."""
    return orjson.dumps({"op": "progress", "id": subscription_id, "sequence": sequence, "dropped": dropped})


def closing(code: str, detail: str, retry_after_s: int, log: str, cursors: Mapping[str, Cursor]) -> bytes:
    """Say that the connection is about to be closed, and where each subscription can go on."""
    body = {"op": "closing", "code": code, "detail": detail, "retry_after_s": retry_after_s, "log": log, "cursors": cursors}
    return orjson.dumps(body)


def error(cause: MevError, fields: Fields | None = None) -> bytes:
    """Tell what was wrong with a message."""
    later = {"retry_after_s": cause.retry_after_s} if cause.retry_after_s is not None else {}
    body = {"op": "error", "id": None, **reading.reference(fields or {}), "code": cause.code, "detail": cause.detail, **later}
    return orjson.dumps({**body, **cause.fields})
