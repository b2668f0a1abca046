"""The native encoder against the Python one: equal records, reasons and errors for every body."""

import json
import math
import random
from typing import Literal

import numpy as np
import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from mev.core import native
from mev.sink.block import join
from mev.wire.codec import JSON, NDJSON, PROTOBUF, Encoded, Encoder, MalformedBodyError
from mev.wire.registry import EVENT_TYPES, EventType
from mev.wire.times import TimeBounds
from tests.services import require
from tests.unit.wire.messages import messages

if native.is_used():
    from mev._native import BodyConverter
    from mev.wire.native_codec import NativeEncoder
    from mev.wire.native_tables import tables
else:
    require(native.describe())

EVENTS = list(EVENT_TYPES.values())
BOUNDS = TimeBounds(earliest_ns=1_577_836_800 * 10**9, ahead_s=3600)
EVER = TimeBounds(earliest_ns=-(2**63), ahead_s=1e10)
LIMIT = 600
Outcome = tuple[Encoded, str]


def outcome(encoder: Encoder | NativeEncoder, body: bytes, content_type: str) -> Outcome:
    """Return the records and refusals of a body, or its error."""
    encoded = Encoded()
    try:
        for _ in encoder.encode(body, content_type, encoded):
            pass
    except MalformedBodyError as error:
        return Encoded(), f"{error.detail} {error.fields}"
    return encoded, ""


def assert_same(
    event: EventType, body: bytes, content_type: str, times: TimeBounds = EVER, limit: int = 1 << 20
) -> Encoded:
    """Check that both encoders give the same for `body`; return it."""
    ours, theirs = (
        outcome(kind(event, max_record_bytes=limit, times=times), body, content_type)
        for kind in (NativeEncoder, Encoder)
    )
    assert ours == theirs
    return ours[0]


INTEGERS = st.sampled_from(
    [
        *(
            str(sign * (2**width + near))
            for width in (31, 32, 53, 63, 64)
            for near in (-1, 0, 1)
            for sign in (1, -1)
        ),
        *(
            "0",
            "-0",
            "00",
            "01",
            "-01",
            "1.0",
            "1e3",
            "1E+2",
            "-1.5",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "",
        ),
        *("9007199254740993.0", "1e400", "-1e400", "1e-400", "123456789012345678901234567890"),
    ]
) | st.integers(-(2**70), 2**70).map(str)
FLOATS = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)
    | st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
    | st.sampled_from(
        ["3.4028235e38", "3.4028235677973366e38", "3.4028236e38", "-0.0", "0e5", "NaN"]
    )
)
STRINGS = (
    st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=False))
    | st.text(max_size=12).map(json.dumps)
    | st.sampled_from(
        [r'"\ud83d\ude00"', r'"\ud83d"', r'"\ude00\ud83d"', r'"\u00zz"', r'"\x"', r'"a\/b"']
    )
    | st.sampled_from(['"NaN"', '"Infinity"', '"-Infinity"', '"nan"', '"1.5"', '"1e3"', '"\t"'])
    | INTEGERS.map(lambda text: f'"{text}"')
)
OTHER = st.sampled_from(
    ["null", "true", "false", "{}", "[]", "[null]", "[[]]", '{"a":1}', "tru", "x"]
)
SCALARS = INTEGERS | FLOATS | STRINGS | OTHER
SPACE = st.sampled_from(["", "", "", " ", "\n", "\t\r ", "\v"])


def value_of(field: FieldDescriptor) -> st.SearchStrategy[str]:
    """Make JSON text that a field may have, and anything else."""
    good = {
        FieldDescriptor.TYPE_STRING: STRINGS,
        FieldDescriptor.TYPE_BOOL: st.sampled_from(["true", "false"]),
        FieldDescriptor.TYPE_DOUBLE: FLOATS | INTEGERS | STRINGS,
        FieldDescriptor.TYPE_FLOAT: FLOATS | INTEGERS | STRINGS,
    }.get(field.type, INTEGERS | INTEGERS.map(lambda text: f'"{text}"'))
    if (message := field.message_type) is not None:
        if message.GetOptions().map_entry:
            entries = st.lists(
                st.tuples(STRINGS, value_of(message.fields_by_name["value"])), max_size=4
            )
            return entries.flatmap(members) | SCALARS
        good = objects(message)
    if field.is_repeated:
        return st.lists(good, max_size=3).map(lambda values: f"[{','.join(values)}]") | SCALARS
    return good | SCALARS


def objects(descriptor: Descriptor) -> st.SearchStrategy[str]:
    """Make JSON text of objects that are almost messages."""
    member = st.sampled_from(list(descriptor.fields)).flatmap(
        lambda field: st.tuples(
            st.sampled_from(
                [*([json.dumps(field.name)] * 4), json.dumps(field.camelcase_name), '"x"']
            ),
            value_of(field),
        )
    )
    return st.lists(member, max_size=5).flatmap(members)


def members(pairs: list[tuple[str, str]]) -> st.SearchStrategy[str]:
    """Make the text of an object, with white space."""
    return SPACE.map(
        lambda space: "{" + ",".join(f"{space}{name}{space}:{space}{v}" for name, v in pairs) + "}"
    )


def complete(event: EventType, text: str) -> str:
    """Return `text` with the fields that the event requires in front."""
    required = {name: "k" if name == event.key else 1 for name in event.required}
    return json.dumps(required)[:-1] + ("," + text[1:] if len(text) > 2 else "}")


@given(st.data(), st.sampled_from(EVENTS), SPACE)
def test_json_that_is_almost_events(data: st.DataObject, event: EventType, space: str) -> None:
    texts = data.draw(st.lists(objects(event.descriptor), max_size=3))
    texts += [complete(event, text) for text in texts]
    for text in texts:
        assert_same(event, text.encode("utf-8", "surrogatepass"), JSON)
    array = f"{space}[{space},{space}".join(["", *texts])[1 + 2 * len(space) :]
    assert_same(event, f"{space}[{space}{f'{space},'.join(texts)}]{space}".encode(), JSON)
    assert_same(event, array.encode(), JSON)
    lines = f"{space}\n".join(text.replace("\n", " ") for text in texts)
    assert_same(event, lines.encode(), NDJSON)
    assert_same(event, "\n".join(texts).encode(), NDJSON, BOUNDS, LIMIT)


@given(st.data(), st.sampled_from(EVENTS))
def test_valid_messages_in_any_form(data: st.DataObject, event: EventType) -> None:
    sent = data.draw(st.lists(messages(event), min_size=1, max_size=4))
    for form in (True, False):
        items = [
            json_format.MessageToDict(message, preserving_proto_field_name=form) for message in sent
        ]
        shuffled = [dict(data.draw(st.permutations(list(item.items())))) for item in items]
        for body in (orjson.dumps(items), json.dumps(shuffled, indent=1).encode()):
            found = assert_same(event, body, JSON)
            assert len(found.records) == len(sent)
        assert_same(event, b"\n".join(map(orjson.dumps, shuffled)), NDJSON)
        assert_same(event, orjson.dumps(items), JSON, BOUNDS, LIMIT)
    values = [message.SerializeToString() for message in sent]
    assert len(assert_same(event, join(values), PROTOBUF).records) == len(sent)
    assert_same(event, join(values), PROTOBUF, BOUNDS, LIMIT)


@given(st.data(), st.sampled_from(EVENTS))
def test_valid_messages_need_no_python_code(data: st.DataObject, event: EventType) -> None:
    sent = data.draw(st.lists(messages(event), min_size=1, max_size=4))
    converter = BodyConverter(
        tables(event.descriptor),
        key=event.key,
        required=event.required,
        times=(),
        max_record_bytes=1 << 20,
        earliest_ns=0,
    )
    items = [json_format.MessageToDict(message) for message in sent]
    bodies: list[tuple[bytes, Literal["json", "lines", "delimited"]]] = [
        (orjson.dumps(items), "json"),
        (b"\n".join(map(orjson.dumps, items)), "lines"),
        (join([message.SerializeToString() for message in sent]), "delimited"),
    ]
    for body, form in bodies:
        for _, undecided, _ in converter.pieces(body, form, 0):
            assert not undecided


def changes(data: st.DataObject, body: bytes) -> bytes:
    """Change, insert and remove some bytes."""
    raw = bytearray(body)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(raw)))
        inserted = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"\\", b",", b"}", b"]"])
        )
        raw[place : place + data.draw(st.integers(0, 3))] = inserted
    return bytes(raw)


@given(st.data(), st.sampled_from(EVENTS))
def test_changed_bytes(data: st.DataObject, event: EventType) -> None:
    sent = data.draw(st.lists(messages(event), min_size=1, max_size=3))
    items = [json_format.MessageToDict(m, preserving_proto_field_name=True) for m in sent]
    assert_same(event, changes(data, orjson.dumps(items)), JSON)
    assert_same(event, changes(data, b"\n".join(map(orjson.dumps, items))), NDJSON)
    values = [message.SerializeToString() for message in sent]
    assert_same(event, changes(data, join(values)), PROTOBUF)
    assert_same(event, join([changes(data, value) for value in values]), PROTOBUF)


@given(st.binary(max_size=80), st.sampled_from([JSON, NDJSON, PROTOBUF]), st.sampled_from(EVENTS))
def test_arbitrary_bytes(body: bytes, content_type: str, event: EventType) -> None:
    assert_same(event, body, content_type)


def content_of(wire_type: int, content: bytes) -> bytes:
    """Return `content` in the form of a wire type."""
    match wire_type:
        case 0:
            return bytes(byte | 0x80 for byte in content[:10]) + b"\x01"
        case 1:
            return content.ljust(8, b"\0")[:8]
        case 2:
            return bytes([len(content)]) + content
        case 5:
            return content.ljust(4, b"\0")[:4]
        case _:
            return content


FIELD = st.tuples(st.integers(0, 20), st.integers(0, 7), st.binary(max_size=12))


@given(st.lists(FIELD, max_size=6), st.sampled_from(EVENTS), st.binary(max_size=4))
def test_fields_of_any_wire_type(
    fields: list[tuple[int, int, bytes]], event: EventType, tail: bytes
) -> None:
    required = {name: "k" if name == event.key else 1 for name in event.required}
    value = event.message(**required).SerializeToString()
    for number, wire_type, content in fields:
        tag = number << 3 | wire_type
        value += bytes([tag & 0x7F | 0x80, tag >> 7]) if tag > 0x7F else bytes([tag])
        value += content_of(wire_type, content)
    assert_same(event, join([value, value + tail]), PROTOBUF)


@given(
    x=st.floats(2.0**-69, 2.0**17, width=32),
    steps=st.integers(-40, 40),
    digits=st.sampled_from([".17e", ".18e", ".16f", ".18f", ".19f", ".25f"]),
)
def test_numbers_between_two_floats(x: float, steps: int, digits: str) -> None:
    """A number is rounded to 64 bits, then to 32: numbers near the middle of two floats differ."""
    above = float(np.nextafter(np.float32(x), np.float32(np.inf)))
    middle = (x + above) / 2 + steps * math.ulp(x)
    texts = [repr(middle), f"{middle:{digits}}", f"-{middle:{digits}}"]
    body = f'{{"id":"a","features":[{",".join(texts)}]}}'.encode()
    assert len(assert_same(EVENT_TYPES["opportunity"], body, JSON).records) == 1


TICK = EVENT_TYPES["tick"]
GOOD = b'{"market_id":"m","timestamp_ns":1}'


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b",".join([GOOD] * 3000) + b"]",
        b"[" + b",".join([GOOD, b'{"market_id":"m"}'] * 2000) + b"]",
        b"[" + b",".join([GOOD] * 3000) + b",]",
        b"[" + b",".join([GOOD] * 3000) + b"] x",
        b"[" + GOOD + b',{"x":' + b"[" * 600 + b"]" * 600 + b"}]",
        b"[" + GOOD + b',{"x":' + b"[" * 1100 + b"]" * 1100 + b"}]",
        b"[" + GOOD + b',{"x":' + b"[" * 1100,
        b"[" + GOOD + b"," + b" " * 600_000 + GOOD + b"]",
        b'[{"market_id":"' + b"\xf0\x9f\x98\x80" * 1000 + b'","timestamp_ns":1}]',
        b'[{"market_id":"' + b"\xed\xa0\x80" + b'","timestamp_ns":1}]',
        b'{"timestamp_ns":1,"market_id":"m"}',
        b'{"timestamp_ns":1,"market_id":"m","market_id":"n"}',
        b'{"market_id":"","timestamp_ns":1,"marketId":"n"}',
        b'{"market_id":null,"timestamp_ns":1}',
        b'{"simulated":true,"timestamp_ns":1,"market_id":null,"bid_price":1}',
        b'{"bid_price":"NaN","timestamp_ns":"1","market_id":"m"}',
        b"[1]",
        b"1",
        b'"x"',
        b"null",
        b"[]",
        b"[ ]",
        b"",
        b" ",
        b"[",
        b"[,]",
        b"\xef\xbb\xbf[]",
        GOOD + GOOD,
        GOOD + b"\0",
        GOOD[:-1],
        b"\n" + GOOD + b"\r\n\x0c\n",
    ],
)
def test_bodies_of_several_parts_and_odd_ones(body: bytes) -> None:
    for content_type in (JSON, NDJSON):
        assert_same(TICK, body, content_type)
    assert_same(TICK, body, PROTOBUF)


def test_large_bodies_are_encoded_in_parts() -> None:
    encoder = NativeEncoder(TICK, max_record_bytes=1 << 20, times=EVER)
    for body, content_type in (
        (b"[" + b",".join([GOOD] * 5000) + b"]", JSON),
        (b"\n".join([GOOD] * 5000), NDJSON),
        (join([TICK.message(market_id="m", timestamp_ns=1).SerializeToString()] * 5000), PROTOBUF),
    ):
        encoded = Encoded()
        sizes = [len(encoded.records) for _ in encoder.encode(body, content_type, encoded)]
        assert sizes == [1024, 2048, 3072, 4096]
        assert len(encoded.records) == 5000


def test_entries_of_a_map_have_one_order() -> None:
    event = EVENT_TYPES["agent_metrics"]
    names = ["", "a", "ab", "abc", "b", "\U0001f600", "\uffff", *map(str, range(50))]
    found = set()
    for seed in range(5):
        random.Random(seed).shuffle(names)
        item = {"agent_id": "a", "timestamp_ns": 1, "gauges": dict.fromkeys(names, 0.5)}
        (record,) = assert_same(event, orjson.dumps(item), JSON).records
        found.add(record["value"])
    assert len(found) == 1
