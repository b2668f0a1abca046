"""JSON messages of the protocol: validated requests, and the server's answers.

An invalid message is refused as a whole, with an error that names the field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from mev.core.errors import MevError
from mev.realtime import message_fields
from mev.realtime.errors import BadJsonError, UnknownFieldError, UnknownOpError
from mev.realtime.message_fields import Fields, Types
from mev.realtime.options import DeliveryMode, OnSlow, Start, SubscriptionOptions
from mev.realtime.positions import Beginning, Positions, cursor
from mev.wire import filters, resume

_TERMS = frozenset({"topics", "filter", "on_slow", "max_rate"})
_FIELDS: dict[str, frozenset[str]] = {
    "auth": frozenset({"api_key", "ticket"}),
    "subscribe": _TERMS | {"id", "from", "delivery", "snapshot"},
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
    options: SubscriptionOptions
    start: Start
    snapshot: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """`{"op": "update", "id": "s1", "filter": []}`, with the fields to change."""

    id: str
    fields: Fields

    def options(self, before: SubscriptionOptions, types: Types) -> SubscriptionOptions:
        """Return `before` with the changed fields."""
        topics = (
            message_fields.topics(self.fields["topics"], types)
            if "topics" in self.fields
            else before.topics
        )
        if "filter" in self.fields:
            chosen = _filter(self.fields["filter"], topics, types)
        else:
            chosen = (
                before.filter
                if topics == before.topics
                else _filter(before.filter.text(), topics, types)
            )
        return SubscriptionOptions(
            topics=topics,
            filter=chosen,
            on_slow=message_fields.choice(self.fields, "on_slow", OnSlow, before.on_slow),
            max_rate=message_fields.rate(self.fields["max_rate"])
            if "max_rate" in self.fields
            else before.max_rate,
            delivery=before.delivery,
        )


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """`{"op": "unsubscribe", "id": "s1"}`."""

    id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """`{"op": "ping"}`, with any id."""


class SubscriptionPosition(NamedTuple):
    """The next offsets of a subscription, and its Kafka topics."""

    positions: Positions
    kafka_topics: Sequence[str]


Request = Auth | Subscribe | Update | Unsubscribe | Ping


def decode(text: bytes) -> Fields:
    """Return a message as a JSON object.

    :raises BadJsonError: if it is not one.
    """
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadJsonError(f"the message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadJsonError('the message is not a JSON object; try {"op": "ping"}')
    return fields


def read(fields: Fields, types: Types) -> Request:
    """Return a decoded message as a validated request."""
    op = fields.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        raise UnknownOpError(
            f"no operation {message_fields.echo(op)}; there are {', '.join(_FIELDS)}", field="op"
        )
    unknown = fields.keys() - _FIELDS[op] - {"op"}
    if unknown:
        name = min(unknown)
        allowed = ", ".join(sorted(_FIELDS[op]))
        raise UnknownFieldError(
            f"{op} has no field {message_fields.echo(name)}; it has {allowed}",
            field=name[: message_fields.ECHO],
        )
    return _read(op, fields, types)


def _read(op: str, fields: Fields, types: Types) -> Request:
    match op:
        case "auth":
            return Auth(
                message_fields.string(
                    fields,
                    "ticket" if "ticket" in fields else "api_key",
                    maximum=message_fields.MAX_CREDENTIAL,
                )
            )
        case "subscribe":
            return _subscribe(fields, types)
        case "update":
            return Update(message_fields.subscription_id(fields), fields)
        case "unsubscribe":
            return Unsubscribe(message_fields.subscription_id(fields))
        case _:
            return Ping()


def _subscribe(fields: Fields, types: Types) -> Subscribe:
    topics = message_fields.topics(fields.get("topics"), types)
    options = SubscriptionOptions(
        topics=topics,
        filter=_filter(fields.get("filter", []), topics, types),
        on_slow=message_fields.choice(fields, "on_slow", OnSlow, OnSlow.DROP_OLDEST),
        max_rate=message_fields.rate(fields.get("max_rate")),
        delivery=message_fields.choice(fields, "delivery", DeliveryMode, DeliveryMode.STREAM),
    )
    start = message_fields.start(fields.get("from", "live"), topics, types)
    return Subscribe(
        message_fields.subscription_id(fields),
        options,
        start,
        message_fields.flag(fields, "snapshot"),
    )


def _filter(conditions: object, topics: frozenset[str], types: Types) -> filters.Filter:
    return filters.parse(
        [] if conditions is None else conditions, [types[name] for name in sorted(topics)]
    )


def authenticated() -> bytes:
    """Return the confirmation of an `auth`."""
    return orjson.dumps({"op": "authenticated"})


def subscribed(
    op: str,
    subscription_id: str,
    options: SubscriptionOptions,
    beginning: Beginning,
    log: str,
    types: Types,
) -> bytes:
    """Return the confirmation of a `subscribe` or `update`, with its options and start."""
    topics = [types[name].topic for name in sorted(options.topics)]
    gaps = {at: {"from": first, "to": last} for at, (first, last) in beginning.gaps.items()}
    bounds = {
        at: {"earliest": bound.earliest, "latest": bound.latest}
        for at, bound in beginning.bounds.items()
    }
    return orjson.dumps(
        {
            "op": op,
            "id": subscription_id,
            "topics": sorted(options.topics),
            "filter": options.shown_filter(),
            "on_slow": options.on_slow,
            "max_rate": options.max_rate,
            "delivery": options.delivery,
            "start": beginning.outcome,
            **({"gaps": cursor(gaps, topics)} if gaps else {}),
            "log": log,
            "cursor": cursor(beginning.positions, topics),
            "resume": resume.encode(log, beginning.positions, topics),
            **({"positions": cursor(bounds, topics)} if bounds else {}),
        }
    )


def unsubscribed(subscription_id: str, sequence: int, dropped: int, dropped_total: int) -> bytes:
    """Return the confirmation of an `unsubscribe`, with the counts of :func:`progress`."""
    return _counts("unsubscribed", subscription_id, sequence, dropped, dropped_total)


def pong(fields: Fields) -> bytes:
    """Return the answer to a `ping`, with its id if that is a short string."""
    return orjson.dumps({"op": "pong", **message_fields.reference(fields)})


def progress(subscription_id: str, sequence: int, dropped: int, dropped_total: int) -> bytes:
    """Return a progress message.

    It has the number of events sent, the losses not reported before, and all losses.
    """
    return _counts("progress", subscription_id, sequence, dropped, dropped_total)


def _counts(
    op: str, subscription_id: str, sequence: int, dropped: int, dropped_total: int
) -> bytes:
    body = {
        "op": op,
        "id": subscription_id,
        "sequence": sequence,
        "dropped": dropped,
        "dropped_total": dropped_total,
    }
    return orjson.dumps(body)


def closing(
    code: str, detail: str, retry_after_s: int, log: str, ends: Mapping[str, SubscriptionPosition]
) -> bytes:
    """Return the message that announces a close, with each subscription's position."""
    body = {
        "op": "closing",
        "code": code,
        "detail": detail,
        "retry_after_s": retry_after_s,
        "log": log,
    }
    cursors = {name: cursor(*end) for name, end in ends.items()}
    tokens = {name: resume.encode(log, *end) for name, end in ends.items()}
    return orjson.dumps({**body, "cursors": cursors, "resume": tokens})


def error(cause: MevError, fields: Fields | None = None) -> bytes:
    """Return an error message for a refused request."""
    later = {"retry_after_s": cause.retry_after_s} if cause.retry_after_s is not None else {}
    body = {
        "op": "error",
        "id": None,
        **message_fields.reference(fields or {}),
        "code": cause.code,
        "detail": cause.detail,
        **later,
    }
    return orjson.dumps({**body, **cause.fields})
