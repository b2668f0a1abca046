"""Parsing and validation of single fields of client messages."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TypeVar

from mev.bus.kafka import Position
from mev.core.clock import check_time, to_ns
from mev.realtime.errors import InvalidFieldError, NoSlotError, UnknownTopicError
from mev.realtime.options import AtCursor, AtSlot, AtTime, Earliest, Live, Start
from mev.wire.registry import EventType
from mev.wire.resume import decode, fingerprint

_E = TypeVar("_E", bound=StrEnum)
ECHO = 80
MAX_ID = 64
MAX_CREDENTIAL = 4096
MAX_RATE = 10_000_000
_MAX_OFFSET = 2**63 - 1
MAX_PATTERNS = 64
MAX_PATTERN = 64
_FROM = (
    '"live", "earliest", {"time": "2026-01-31T12:00:00Z"}, {"slot": 1}, {"resume": "..."} '
    'or {"cursor": {"tick": {"0": 1}}, "log": "..."}'
)

Fields = Mapping[str, object]
Types = Mapping[str, EventType]


def string(fields: Fields, name: str, *, maximum: int) -> str:
    """Return the required string `name`."""
    value = fields.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= maximum:
        raise InvalidFieldError(f"{name} is a string of 1 to {maximum} characters", field=name)
    return value


def subscription_id(fields: Fields) -> str:
    """Return the client's id for a subscription."""
    return string(fields, "id", maximum=MAX_ID)


def topics(value: object, types: Types) -> frozenset[str]:
    """Return the event types that match a list of names and patterns."""
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_PATTERNS
        or not all(isinstance(name, str) for name in value)
    ):
        raise InvalidFieldError(
            f'topics is a list of 1 to {MAX_PATTERNS} event types or patterns such as "agent_*"',
            field="topics",
        )
    found: set[str] = set()
    if max(map(len, value)) > MAX_PATTERN:  # matching takes quadratic time
        raise InvalidFieldError(
            f"a pattern of topics has at most {MAX_PATTERN} characters", field="topics"
        )
    for pattern in value:
        matches = [name for name in types if fnmatchcase(name, pattern)]
        if not matches:
            names = sorted(types)
            raise UnknownTopicError(
                f"no event type {echo(pattern)}; there are {', '.join(names)}",
                field="topics",
                known=names,
            )
        found.update(matches)
    return frozenset(found)


def choice(fields: Fields, name: str, options: type[_E], default: _E) -> _E:
    """Return one of `options`."""
    value = fields.get(name, default)
    if isinstance(value, str) and value in list(options):
        return options(value)
    raise InvalidFieldError(f"{name} is {' or '.join(options)}, not {echo(value)}", field=name)


def flag(fields: Fields, name: str) -> bool:
    """Return a boolean, false if it is missing."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InvalidFieldError(f"{name} is true or false, not {echo(value)}", field=name)
    return value


def rate(value: object) -> int | None:
    """Return events per second, None if unlimited."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RATE:
        raise InvalidFieldError(
            "max_rate is a number of events a second, 1 to 10,000,000", field="max_rate"
        )
    return value


def start(value: object, wanted: frozenset[str], types: Types) -> Start:
    """Return the start of a subscription to `wanted`."""
    match value:
        case "live":
            return Live()
        case "earliest":
            return Earliest()
        case {"time": str(text), **rest} if not rest:
            return AtTime(_time_ms(text))
        case {"slot": int(slot), **rest} if (
            not rest and 0 <= slot < 2**64 and not isinstance(slot, bool)
        ):
            return AtSlot(_checked_slot(slot, wanted, types))
        case {"cursor": dict(partitions), **rest} if rest.keys() <= {"log"} and isinstance(
            rest.get("log", ""), str | None
        ):
            log = rest.get("log")
            return AtCursor(
                _positions(partitions, wanted, types),
                fingerprint(log) if isinstance(log, str) else None,
            )
        case {"resume": str(token), **rest} if not rest:
            return _resumed(token, wanted, types)
        case _:
            raise InvalidFieldError(f"from is {_FROM}", field="from")


def reference(fields: Fields) -> dict[str, str]:
    """Return the `id` of a message for its answer, if it is a short string."""
    value = fields.get("id")
    return {"id": value} if isinstance(value, str) and len(value) <= MAX_ID else {}


def echo(value: object) -> str:
    """Return a client's value, truncated for a message."""
    text = repr(value)
    return text if len(text) <= ECHO else f"{text[:ECHO]}..."


def _time_ms(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidFieldError(
            f"{echo(text)} is not a time such as 2026-01-31T12:00:00Z", field="from"
        ) from None
    if time.tzinfo is None:
        raise InvalidFieldError(
            f"{echo(text)} says no time zone; put Z behind it for UTC", field="from"
        )
    try:
        return to_ns(check_time(time)) // 1_000_000
    except ValueError as error:
        raise InvalidFieldError(f"{echo(text)} is {error}", field="from") from None


def _checked_slot(slot: int, wanted: frozenset[str], types: Types) -> int:
    without = sorted(name for name in wanted if "slot" not in types[name].descriptor.fields_by_name)
    if without:
        raise NoSlotError(
            f"events of {', '.join(without)} belong to no slot; start them at a time", field="from"
        )
    return slot


def _resumed(token: str, wanted: frozenset[str], types: Types) -> AtCursor:
    log, positions = decode(token, types)
    topics = {types[name].topic for name in wanted}
    return AtCursor({at: offset for at, offset in positions.items() if at[0] in topics}, log)


def _positions(
    partitions: dict[object, object], wanted: frozenset[str], types: Types
) -> dict[Position, int]:
    found: dict[Position, int] = {}
    for name, offsets in partitions.items():
        if not isinstance(name, str) or name not in wanted:
            raise InvalidFieldError(
                f"the cursor has {echo(name)}, which is none of the topics", field="from"
            )
        if not isinstance(offsets, dict):
            raise InvalidFieldError(
                f"the cursor of {name} is an object of partition to next offset", field="from"
            )
        for partition, offset in offsets.items():
            whole = (
                isinstance(offset, int)
                and not isinstance(offset, bool)
                and 0 <= offset <= _MAX_OFFSET
            )
            if not (partition.isascii() and partition.isdigit() and len(partition) < 8 and whole):
                shown = f"{echo(partition)}: {echo(offset)}"
                raise InvalidFieldError(
                    f"the cursor of {name} has {shown}, no partition and offset", field="from"
                )
            found[types[name].topic, int(partition)] = offset
    return found
