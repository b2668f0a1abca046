"""Tests of numbers in events: exact in every width and form, or refused."""

import time

import orjson
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from mev.wire.codec import JSON, PROTOBUF, Encoded
from mev.wire.encoding import encoder
from mev.wire.registry import EVENT_TYPES, EventType
from mev.wire.times import TimeBounds, time_fields

pytestmark = pytest.mark.usefixtures("native_or_python")
EVER = TimeBounds(earliest_ns=-(2**63), ahead_s=1e10)
RANGES = {
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
}
INTEGERS = [
    (event, field)
    for event in EVENT_TYPES.values()
    for field in event.descriptor.fields
    if field.type in RANGES and not field.is_repeated
]
DIGITS = st.characters(categories=["Nd"], min_codepoint=128)
EDGES = [
    sign * (2**width + near)
    for sign in (1, -1)
    for width in (31, 32, 53, 63, 64)
    for near in range(-2, 3)
]
WRITTEN = st.sampled_from(EDGES) | st.integers(-(2**70), 2**70) | st.integers(-300, 300)


def encoded(
    event: EventType, body: bytes, content_type: str = JSON, times: TimeBounds = EVER
) -> Encoded:
    into = Encoded()
    for _ in encoder(event, max_record_bytes=1 << 20, times=times).encode(body, content_type, into):
        pass
    return into


def complete(event: EventType) -> dict[str, object]:
    """Return the fields that an event is refused without."""
    return {name: "k" if name == event.key else 1 for name in event.required}


def read(event: EventType, body: bytes, name: str) -> object:
    """Return what is published of a field, None when the record is refused."""
    found = encoded(event, body)
    if not found.records:
        assert name in found.rejected[0].reason
        return None
    message = event.message()
    message.ParseFromString(found.records[0]["value"])
    return getattr(message, name)


@given(of=st.sampled_from(INTEGERS), written=WRITTEN, quoted=st.booleans())
def test_integer_is_published_as_written_or_refused(
    of: tuple[EventType, FieldDescriptor], written: int, quoted: bool
) -> None:
    event, field = of
    text = f'"{written}"' if quoted else str(written)
    body = orjson.dumps({**complete(event), field.name: 0})
    body = body.replace(f'"{field.name}":0'.encode(), f'"{field.name}":{text}'.encode())
    low, high = RANGES[field.type]
    wanted = written if low <= written <= high else None
    if written == 0 and field.name in event.required:
        wanted = None
    assert read(event, body, field.name) == wanted


@given(
    of=st.sampled_from(INTEGERS),
    text=st.text(st.sampled_from("0123456789_+-. eE\n\t") | DIGITS, max_size=8),
)
def test_integer_in_string_has_ascii_digits_only(
    of: tuple[EventType, FieldDescriptor], text: str
) -> None:
    event, field = of
    found = read(event, orjson.dumps({**complete(event), field.name: text}), field.name)
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        assert found is None
    elif found is not None:
        assert found == int(text)


@pytest.mark.parametrize("text", ["١٢", "1_0", " 1", "1 ", "inf", "nan", "0x1", "1e400", ""])
def test_number_in_string_is_json_or_refused(text: str) -> None:
    event = EVENT_TYPES["opportunity"]
    for change in ({"probability": text}, {"features": [0.5, text]}, {"probability": True}):
        found = encoded(event, orjson.dumps({"id": "k", **change}))
        assert not found.records, change
    nested = {"id": "k", "route": [{"amount_in": text}]}
    assert not encoded(event, orjson.dumps(nested)).records
    metrics = {"agent_id": "a", "timestamp_ns": 1, "gauges": {"load": text}}
    assert not encoded(EVENT_TYPES["agent_metrics"], orjson.dumps(metrics)).records


# Times.

SECOND_NS = 10**9
EARLIEST_NS = 1_577_836_800 * SECOND_NS  # 2020-01-01
BOUNDS = TimeBounds(earliest_ns=EARLIEST_NS, ahead_s=3600)
TIMED = [(event, name) for event in EVENT_TYPES.values() for name in time_fields(event)]


def test_points_in_time_are_marked_in_the_protocol() -> None:
    """Signed nanoseconds are points in time, unsigned ones durations; none is nested."""
    for event in EVENT_TYPES.values():
        signed = {f.name for f in event.fields if f.unit == "ns" and f.type == "sint64"}
        assert set(time_fields(event)) == signed
        assert {f.name for f in event.fields if f.name.endswith("_ns")} - signed <= {"latency_ns"}
        for field in event.descriptor.fields:
            inner = field.message_type.fields if field.message_type else []
            assert all(not f.name.endswith("_ns") for f in inner)


def body_of(event: EventType, name: str, times_ns: list[int], content_type: str) -> bytes:
    items = [{**complete(event), event.key: f"k{i}", name: t} for i, t in enumerate(times_ns)]
    for item in items:
        for other in event.required:
            if other not in {event.key, name}:
                item[other] = time.time_ns()
    if content_type == JSON:
        return orjson.dumps(items)
    values = [event.message(**item).SerializeToString() for item in items]
    assert all(len(value) < 128 for value in values)
    return b"".join(bytes([len(value)]) + value for value in values)


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
@pytest.mark.parametrize(
    ("event", "name"), TIMED, ids=lambda x: x if isinstance(x, str) else x.name
)
def test_time_in_another_unit_is_refused_with_the_likely_one(
    event: EventType, name: str, content_type: str
) -> None:
    now_ns = time.time_ns()
    times = [now_ns, now_ns // 1000, now_ns // 10**6, now_ns // SECOND_NS, EARLIEST_NS]
    found = encoded(event, body_of(event, name, times, content_type), content_type, BOUNDS)
    assert len(found.records) == 2
    assert [(r.index, r.reason.split(";")[0]) for r in found.rejected] == [
        (1, f"{name}: {times[1]} looks like microseconds"),
        (2, f"{name}: {times[2]} looks like milliseconds"),
        (3, f"{name}: {times[3]} looks like seconds"),
    ]


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
@pytest.mark.parametrize(
    ("event", "name"), TIMED, ids=lambda x: x if isinstance(x, str) else x.name
)
def test_time_out_of_bounds_is_refused(event: EventType, name: str, content_type: str) -> None:
    hour_ns = 3600 * SECOND_NS
    now_ns = time.time_ns()
    good = [EARLIEST_NS, now_ns, now_ns + hour_ns]
    bad = [EARLIEST_NS - 1, -5, -(2**63), now_ns + 2 * hour_ns, 92 * 10**17, 2**63 - 1]
    found = encoded(event, body_of(event, name, good + bad, content_type), content_type, BOUNDS)
    assert len(found.records) == len(good)
    assert [r.index for r in found.rejected] == [3, 4, 5, 6, 7, 8]
    assert all("from 2020-01-01T00:00:00Z to 3600 s from now" in r.reason for r in found.rejected)
    assert "is 2261-" in found.rejected[4].reason


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
def test_time_that_is_not_known_may_be_left_out(content_type: str) -> None:
    event = EVENT_TYPES["arbitrage"]
    body = body_of(event, "block_time_ns", [0], content_type)
    assert len(encoded(event, body, content_type, BOUNDS).records) == 1


@given(time_ns=st.integers(-(2**63), 2**63 - 1))
def test_any_time_is_published_or_refused_by_name(time_ns: int) -> None:
    event = EVENT_TYPES["tick"]
    body = body_of(event, "timestamp_ns", [time_ns], JSON)
    before, found, after = time.time_ns(), encoded(event, body, JSON, BOUNDS), time.time_ns()
    if EARLIEST_NS <= time_ns <= BOUNDS.latest_ns(before):
        assert found.records
    elif not EARLIEST_NS <= time_ns <= BOUNDS.latest_ns(after):
        assert found.rejected[0].reason.startswith("timestamp_ns: ")
