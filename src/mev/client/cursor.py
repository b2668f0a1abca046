"""Cursors and start positions of subscriptions."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from mev.client.errors import BadCursorError
from mev.wire.registry import EVENT_TYPES
from mev.wire.resume import encode

Positions = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Next offset of each partition of each event type, in the log that the server names `log`."""

    positions: Positions = field(default_factory=dict)
    log: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor in `text`, as written by :meth:`__str__`, or positions alone.

        :raises BadCursorError: when `text` is not a cursor.
        """
        try:
            document = json.loads(text)
            if "cursor" not in document:
                return cls(_read(document))
            return cls(_read(document["cursor"]), _log(document.get("log")))
        except (ValueError, TypeError, AttributeError) as error:
            raise BadCursorError(
                f'not a cursor ({error}); one looks like {{"cursor": {{"tick": {{"0": 4711}}}}}}'
            ) from None

    @classmethod
    def of(cls, document: object, log: object) -> "Cursor":
        """Return the cursor of a server message; missing fields are empty."""
        return cls(_read(document) if document else {}, log if isinstance(log, str) else None)

    def __str__(self) -> str:
        return json.dumps(self.wire(), separators=(",", ":"))

    def wire(self) -> dict[str, Any]:
        """Return the cursor in the form that `subscribe` accepts."""
        cursor = {
            topic: {str(number): offset for number, offset in of_topic.items()}
            for topic, of_topic in self.positions.items()
        }
        return {"cursor": cursor} | ({"log": self.log} if self.log is not None else {})

    def token(self) -> str:
        """Return the cursor as the server's resume token.

        Empty when it names no log, or an event type that is newer than this package.
        """
        if self.log is None or not self.positions.keys() <= EVENT_TYPES.keys():
            return ""
        topics = {name: EVENT_TYPES[name].topic for name in self.positions}
        return encode(
            self.log,
            {(topics[name], partition): offset for name, partition, offset in _steps(self)},
            topics.values(),
        )

    def moved(self, steps: Iterable[tuple[str, int, int]]) -> "Cursor":
        """Return the cursor advanced to each `(event type, partition, next offset)`.

        It never moves back.
        """
        positions: dict[str, Mapping[int, int]] = dict(self.positions)
        for topic, partition, offset in steps:
            of_topic = positions.get(topic, {})
            if of_topic.get(partition, -1) < offset:
                positions[topic] = {**of_topic, partition: offset}
        return Cursor(positions, self.log)

    def merged(self, other: "Cursor") -> "Cursor":
        """Return the higher position of both per partition.

        A cursor of another log replaces this one.
        """
        if self.log is not None and other.log is not None and other.log != self.log:
            return other
        return Cursor(self.positions, other.log or self.log).moved(_steps(other))

    def retained(self, topics: Iterable[str], start: "Cursor") -> "Cursor":
        """Return the cursor for `topics` only.

        Partitions it does not name start where `start` says.
        """
        positions = {
            topic: {**start.positions.get(topic, {}), **self.positions.get(topic, {})}
            for topic in topics
        }
        return Cursor(positions, start.log or self.log)


@dataclass(frozen=True, slots=True)
class Slot:
    """Start at the first event of a slot of the chain."""

    number: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Start after a batch, by its `resume` token."""

    token: str


Start = Literal["live", "earliest"] | datetime | Slot | Cursor | Resume


def wire_start(start: Start) -> object:
    """Return the `from` field of a `subscribe` message."""
    match start:
        case Cursor():
            return start.wire()
        case Resume():
            return {"resume": start.token}
        case Slot():
            return {"slot": start.number}
        case datetime():
            if start.tzinfo is None:
                raise ValueError(
                    "a time to start from needs a time zone, for instance datetime.now(UTC)"
                )
            return {"time": start.isoformat().replace("+00:00", "Z")}
        case _:
            return start


def _read(document: object) -> Positions:
    if not isinstance(document, dict):
        raise TypeError("expected an object")
    return {
        str(topic): {int(partition): _offset(offset) for partition, offset in of_topic.items()}
        for topic, of_topic in document.items()
    }


def _log(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no name of a log")
    return value


def _offset(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no offset")
    return value


def _steps(cursor: Cursor) -> Iterable[tuple[str, int, int]]:
    return (
        (topic, partition, offset)
        for topic, of_topic in cursor.positions.items()
        for partition, offset in of_topic.items()
    )
