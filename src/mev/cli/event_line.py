"""An event as one line for people: time, type, key and the fields that are set.

Amounts in lamports are shown in SOL, nanoseconds as times or durations, and addresses shortened.
Empty fields are left out.
"""

import base64
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from rich.text import Text

from mev.client.batch import Record
from mev.core.text import shown
from mev.wire.registry import EVENT_TYPES, EventType, Field
from mev.wire.render import renderer

_COLOURS = ("bright_cyan", "bright_magenta", "bright_yellow", "yellow", "green", "blue", "cyan")
_COLOUR = dict(zip(EVENT_TYPES, _COLOURS * len(EVENT_TYPES), strict=False))
_SOL = "So11111111111111111111111111111111111111112"
_SOL_DECIMALS = 9
_TIMES = ("timestamp_ns", "detected_at_ns", "block_time_ns")
_SPEAK_FOR_THEMSELVES = ("kind", "protocol", "venues", "route")
_KEY_WIDTH = 20
_TIMES_FROM_NS = 10**17  # larger values are a time, smaller ones a duration
_ENDS = 4
_LONGEST_WORD = 24
_DAY_NS = 86_400 * 10**9
_NAMED = 3  # entries of a map or a list that are shown


def line(record: Record, today_ns: int) -> Text:
    """Return `record` as one line; times on the day of `today_ns` have no date."""
    event = EVENT_TYPES.get(record.topic)
    try:
        message = event.message.FromString(record.value) if event else None
    except DecodeError:
        message = None
    if event is None or message is None:
        what = (
            f"{len(record.value)} bytes that are no such event, partition "
            f"{record.partition}, offset {record.offset}"
        )
        return _assemble("", (record.topic, "bold red"), ("", ""), [("", what)])
    passed = {event.key, "simulated"}
    when = _when(message, today_ns, passed)
    mark = " sim" if getattr(message, "simulated", False) else ""
    return _assemble(
        when,
        (event.name, _COLOUR[event.name]),
        (_short(str(getattr(message, event.key))), mark),
        _pairs(event, message, passed),
    )


def json_line(record: Record) -> bytes:
    """Return `record` as one line of JSON, in the format of the stream."""
    if record.topic in EVENT_TYPES:
        return _renderer(record.topic)(record.value) + b"\n"
    return b'{"type":"%s","undecodable":"%s"}\n' % (
        record.topic.encode(),
        base64.b64encode(record.value),
    )


@cache
def _renderer(topic: str) -> Callable[[bytes], bytes]:
    return renderer(EVENT_TYPES[topic])


def _assemble(
    when: str, name: tuple[str, str], key: tuple[str, str], pairs: Iterable[tuple[str, str]]
) -> Text:
    text, (word, colour), (which, mark) = Text(), name, key
    which = _printable(which)
    text.append(f"{when:<14}  ", "dim").append(f"{_printable(word):<13} ", colour)
    text.append(which, "bold").append(f"{mark:<{max(_KEY_WIDTH - len(which), 0)}}", "dim")
    for label, value in pairs:
        text.append(f"  {label} " if label else "  ", "dim").append(_printable(value))
    return text


def _printable(text: str) -> str:
    """Return `text` without control characters: events contain text of any publisher."""
    return shown(text).replace("\n", "\\n")


def _when(message: Message, today_ns: int, passed: set[str]) -> str:
    """Return the time or the slot of the event; add the fields used to `passed`."""
    passed.update(_TIMES)
    for name in _TIMES:
        if time_ns := getattr(message, name, 0):
            return _moment(time_ns, today_ns)
    passed.add("slot")
    return str(getattr(message, "slot", ""))


def _pairs(event: EventType, message: Message, passed: set[str]) -> Iterator[tuple[str, str]]:
    for field in _ranked(event):
        if field.name not in passed and (value := getattr(message, field.name)):
            if stem := _token(event, field):
                mint, decimals = (
                    getattr(message, f"{stem}_mint"),
                    getattr(message, f"{stem}_decimals"),
                )
                yield stem, f"{_amount(value, decimals)} {'SOL' if mint == _SOL else _short(mint)}"
            else:
                yield _pair(field, value)


@cache
def _ranked(event: EventType) -> tuple[Field, ...]:
    """Return the fields by importance: a narrow terminal cuts the end of the line."""
    tokens = {stem for field in event.fields if (stem := _token(event, field))}
    told = {f"{stem}_{part}" for stem in tokens for part in ("mint", "decimals")}
    return tuple(sorted((field for field in event.fields if field.name not in told), key=_rank))


def _rank(field: Field) -> int:
    if field.type == "bool" or field.name in {"error", *_SPEAK_FOR_THEMSELVES}:
        return 0
    if field.name.endswith(("profit_lamports", "profit_amount")):
        return 1
    if (
        field.name.endswith(("_id", "_schema", "units", "slot", "signature"))
        or "base58" in field.description
    ):
        return 4
    return 3 if field.repeated else 2


def _token(event: EventType, field: Field) -> str:
    """Return the name of a token amount whose decimals are known, else an empty string."""
    stem = field.name.removesuffix("_amount")
    return (
        stem if stem != field.name and f"{stem}_decimals" in event.descriptor.fields_by_name else ""
    )


def _amount(value: int, decimals: int) -> str:
    text = f"{value / 10**decimals:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _pair(field: Field, value: Any) -> tuple[str, str]:
    if value is True:
        return "", field.name
    if field.unit == "lamports":
        return field.name.removesuffix("_lamports"), f"{_amount(value, _SOL_DECIMALS)} SOL"
    if field.unit == "ns":
        return field.name.removesuffix("_ns"), _moment(
            value, value
        ) if value > _TIMES_FROM_NS else _duration(value)
    return "" if field.name in _SPEAK_FOR_THEMSELVES else field.name, _shown(field, value)


def _shown(field: Field, value: Any) -> str:
    if field.type.startswith("map<"):
        return _map(value)
    if field.repeated:
        return _several(value)
    return f"{value:,.6g}" if isinstance(value, float) else _short(str(value))


def _several(values: Any) -> str:
    """Return a list as its words if short; for messages, the first text field of each."""
    words = [_word(value) for value in values]
    if not all(isinstance(word, str) for word in words):
        return f"({len(words)})"
    short = [_short(str(word)) for word in words]
    return (
        " > ".join(short)
        if len(short) <= _NAMED
        else f"{short[0]} > … > {short[-1]} ({len(short)})"
    )


def _word(value: Any) -> object:
    if not isinstance(value, Message):
        return value
    first = next(
        (
            field.name
            for field in value.DESCRIPTOR.fields
            if field.type == FieldDescriptor.TYPE_STRING
        ),
        None,
    )
    return getattr(value, first) if first else None


def _map(values: Any) -> str:
    shown = [f"{name}={values[name]:,.6g}" for name in sorted(values)[:_NAMED]]
    return " ".join(
        [*shown, *([f"and {len(values) - _NAMED} more"] if len(values) > _NAMED else [])]
    )


def _moment(time_ns: int, today_ns: int) -> str:
    seconds, rest = divmod(time_ns, 10**9)
    if time_ns // _DAY_NS == today_ns // _DAY_NS:
        return f"{time.strftime('%H:%M:%S', time.gmtime(seconds))}.{rest // 10**6:03}"
    return time.strftime("%m-%d %H:%M:%S", time.gmtime(seconds))


def _duration(time_ns: int) -> str:
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if time_ns >= size:
            return f"{time_ns / size:.3g} {unit}"
    return f"{time_ns} ns"


def _short(word: str) -> str:
    """Return an address or a signature shortened to its ends; other words are unchanged."""
    return (
        f"{word[:_ENDS]}…{word[-_ENDS:]}" if len(word) > _LONGEST_WORD and word.isalnum() else word
    )
