import json
import math
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from mev.sink.block import join
from mev.wire.codec import (
    JSON,
    NDJSON,
    PROTOBUF,
    Encoded,
    MalformedBodyError,
    Rejection,
    split,
    split_delimited,
)
from mev.wire.encoding import encoder
from mev.wire.pb.events_pb2 import Opportunity, Score, Tick
from mev.wire.registry import EVENT_TYPES, EventType
from mev.wire.times import TimeBounds
from tests.unit.wire.messages import TEXT, messages

pytestmark = pytest.mark.usefixtures("native_or_python")
EVENTS = list(EVENT_TYPES.values())
LIMIT = 1000
EVER = TimeBounds(earliest_ns=-(2**63), ahead_s=1e10)
OF_ANY_TYPE = st.sampled_from(EVENTS).flatmap(
    lambda event: st.tuples(st.just(event), messages(event))
)
OPPORTUNITY, TICK = EVENT_TYPES["opportunity"], EVENT_TYPES["tick"]


def encode_body(
    event: EventType, body: bytes, content_type: str, *, limit: int = 1 << 20
) -> Encoded:
    encoded = Encoded()
    for _ in encoder(event, max_record_bytes=limit, times=EVER).encode(body, content_type, encoded):
        pass
    return encoded


def encode(event: EventType, items: Sequence[object], *, limit: int = 1 << 20) -> Encoded:
    """Encode a JSON array of `items`."""
    return encode_body(event, json.dumps(items).encode(), JSON, limit=limit)


def reason(event: EventType, item: object) -> str:
    """Return why a record is refused."""
    encoded = encode(event, [item])
    assert not encoded.records
    (rejection,) = encoded.rejected
    assert rejection.index == 0
    return rejection.reason


def same(one: Message, other: Message) -> bool:
    """Return whether two messages are equal, with NaN equal to NaN and maps in any order."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def plain(message: Message) -> dict[str, Any]:
    """Return `message` in relaxed JSON: 64-bit integers as numbers, non-finite values as text."""

    return {field.name: _plain_value(value) for field, value in message.ListFields()}


def _plain_value(value: Any) -> object:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}[str(value)]
    if isinstance(value, str | int | float):
        return value
    return (
        {k: _plain_value(v) for k, v in value.items()}
        if hasattr(value, "items")
        else [_plain_value(one) for one in value]
    )


@given(OF_ANY_TYPE)
def test_a_message_comes_back_from_its_json(pair: tuple[EventType, Message]) -> None:
    event, message = pair
    canonical = json_format.MessageToDict(message, preserving_proto_field_name=True)
    camel_case = json_format.MessageToDict(message)
    for document in (canonical, camel_case, plain(message)):
        for body, content_type in (
            (orjson.dumps([document]), JSON),
            (orjson.dumps(document) + b"\n", NDJSON),
        ):
            encoded = encode_body(event, body, content_type)
            assert not encoded.rejected
            (record,) = encoded.records
            assert same(event.message.FromString(record["value"]), message)
            assert record["key"] == getattr(message, event.key).encode()


@given(st.lists(messages(OPPORTUNITY), max_size=5))
def test_protobuf_passes_through_as_it_was_sent(sent: list[Message]) -> None:
    # What another encoder may send: fields out of order, and one that this version does not know.
    values = [
        Opportunity(slot=1).SerializeToString() + m.SerializeToString() + b"\xa2\x06\x01x"
        for m in sent
    ]
    encoded = encode_body(OPPORTUNITY, join(values), PROTOBUF)
    assert [record["value"] for record in encoded.records] == values
    assert not encoded.rejected


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_splitting_undoes_joining(values: list[bytes]) -> None:
    assert list(split_delimited(join(values))) == values


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_splitting_undoes_joining_of_long_messages(size: int) -> None:
    assert list(split_delimited(join([b"a" * size, b"b"]))) == [b"a" * size, b"b"]


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_split_or_refused(body: bytes) -> None:
    try:
        values = list(split_delimited(body))
    except MalformedBodyError as error:
        # All before the wrong length is fine, from it on nothing is.
        place = int(str(error.fields["byte"]))
        list(split_delimited(body[:place]))
        with pytest.raises(MalformedBodyError, match="at byte 0 "):
            list(split_delimited(body[place:]))
        return
    assert sum(map(len, values)) + len(values) <= len(body)


@given(st.binary(max_size=64), st.sampled_from([JSON, NDJSON, PROTOBUF]), st.sampled_from(EVENTS))
def test_arbitrary_bodies_are_taken_or_refused(
    body: bytes, content_type: str, event: EventType
) -> None:
    try:
        raw = split(body, content_type)
    except MalformedBodyError:
        return
    encoded = encode_body(event, body, content_type)
    assert len(encoded.records) + len(encoded.rejected) == len(raw)


@pytest.mark.parametrize(
    ("body", "byte"),
    [
        (b"\x80", 0),  # cut short
        (b"\x01a\xff\xff", 2),
        (b"\x05abc", 0),  # longer than what is left
        (b"\x80" * 10 + b"\x00", 0),  # longer than any varint
        (b"\xff" * 9 + b"\x01", 0),  # 2**64 - 1
    ],
)
def test_a_wrong_length_is_named_by_its_place(body: bytes, byte: int) -> None:
    with pytest.raises(MalformedBodyError, match=f"the length at byte {byte} ") as caught:
        list(split_delimited(body))
    assert caught.value.fields == {"byte": byte}


def test_an_overlong_length_of_ten_bytes_is_still_a_length() -> None:
    assert list(split_delimited(b"\x81" + b"\x80" * 8 + b"\x00" + b"a")) == [b"a"]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(width=32, allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def names(descriptor: Descriptor) -> list[str]:
    """Return the names of all fields, of nested messages too."""
    nested = [
        name
        for field in descriptor.fields
        if field.message_type
        for name in names(field.message_type)
    ]
    return [
        *(field.name for field in descriptor.fields),
        *(field.camelcase_name for field in descriptor.fields),
        *nested,
    ]


def near_events(event: EventType) -> st.SearchStrategy[object]:
    """Make objects that are almost events, and anything else."""
    name = st.sampled_from(names(event.descriptor))
    inner = JSON_VALUES | st.lists(st.dictionaries(name, JSON_VALUES, max_size=3), max_size=2)
    good = messages(event).map(plain)
    return (
        good
        | JSON_VALUES
        | st.tuples(good, st.dictionaries(name, inner, max_size=3)).map(
            lambda pair: {**pair[0], **pair[1]}
        )
    )


@given(st.data(), st.sampled_from(EVENTS))
def test_arbitrary_json_is_accepted_or_refused_once_and_in_order(
    data: st.DataObject, event: EventType
) -> None:
    items = data.draw(st.lists(near_events(event), max_size=4))
    encoded = encode(event, items, limit=LIMIT)
    refused = [rejection.index for rejection in encoded.rejected]
    assert refused == sorted(set(refused))
    assert set(refused) <= set(range(len(items)))
    assert all(rejection.reason for rejection in encoded.rejected)
    accepted = [item for index, item in enumerate(items) if index not in refused]
    assert len(encoded.records) == len(accepted)
    for item, record in zip(accepted, encoded.records, strict=True):
        # Nothing is accepted that Protobuf's own JSON mapping refuses or reads otherwise.
        assert isinstance(item, dict)
        assert same(
            event.message.FromString(record["value"]), json_format.ParseDict(item, event.message())
        )


@given(st.data(), st.sampled_from(EVENTS))
def test_what_is_refused_is_no_event(data: st.DataObject, event: EventType) -> None:
    item = data.draw(near_events(event))
    encoded = encode(event, [item])
    if encoded.records or not isinstance(item, dict):
        return
    if any(ours in encoded.rejected[0].reason for ours in (LOST, BOOLEAN)):
        return  # Protobuf's own mapping takes these
    try:
        message = json_format.ParseDict(item, event.message())
    except (json_format.ParseError, ValueError, TypeError):
        return
    assert not all(getattr(message, name) for name in event.required)


BOOLEAN = "expected a number, got a boolean"
LOST = "has a point or an exponent and may have lost digits; write it as an integer or a string"
TOO_LARGE = "is out of range of a 32-bit float, which ends at 3.4028235e+38"
GOOD = {"id": "o", "route": [{"dex": "Orca"}, {"dex": "Phoenix"}]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"route": [{"dex": "Orca"}, {"dex": 5}]},
            "route[1].dex: expected a string, got an integer",
        ),
        ({"route": [{"dex": "Orca"}, None]}, "route[1]: expected an object, got null"),
        ({"route": [{"pol": "x"}]}, "route[0].pol: unknown field of RouteStep"),
        (
            {"route": [{"amount_in": -1}]},
            "route[0].amount_in: -1 is out of range or not an integer",
        ),
        ({"route": {}}, "route: expected an array, got an object"),
        ({"route": "abc"}, "route: expected an array, got a string"),
        ({"slot": -1}, "slot: -1 is out of range or not an integer"),
        ({"slot": 1.5}, "slot: 1.5 is out of range or not an integer"),
        ({"slot": 2.0**53}, f"slot: 9007199254740992.0 {LOST}"),
        ({"expected_profit_lamports": -1e18}, f"expected_profit_lamports: -1e+18 {LOST}"),
        (
            {"expected_profit_lamports": -(2.0**63)},
            "expected_profit_lamports: -9.223372036854776e+18 is out of range or not an integer",
        ),
        ({"route": [{}, {"amount_out": 1e19}]}, f"route[1].amount_out: 1e+19 {LOST}"),
        ({"features": [1, True]}, "features[1]: expected a number, got a boolean"),
        ({"features": [1, 3.4028236e38]}, f"features[1]: 3.4028236e+38 {TOO_LARGE}"),
        ({"features": [-(10**18), "-1e39"]}, f"features[1]: -1e39 {TOO_LARGE}"),
        ({"slot": 2**64}, "slot: 1.8446744073709552e+19 is out of range or not an integer"),
        ({"slot": True}, "slot: expected an integer, got a boolean"),
        ({"slot": "many"}, "slot: expected an integer, got a string"),
        ({"slot": []}, "slot: expected an integer, got an array"),
        (
            {"detected_at_ns": 2**63},
            "detected_at_ns: 9223372036854775808 is out of range or not an integer",
        ),
        ({"probability": {}}, "probability: expected a number, got an object"),
        ({"features": [1, None]}, "features[1]: expected a number, got null"),
        ({"features": ""}, "features: expected an array, got a string"),
        ({"simulated": 1}, "simulated: expected true or false, got an integer"),
        ({"simulated": "true"}, "simulated: expected true or false, got a string"),
        ({"kind": 1.5}, "kind: expected a string, got a number"),
        ({"sl0t": 1}, "sl0t: unknown field of Opportunity"),
        ({"expectedProfitLamports": 1, "slot": "x"}, "slot: expected an integer, got a string"),
        ({"id": ""}, "id: missing or empty"),
        ({"id": None}, "id: missing or empty"),
        ({"id": 7}, "id: expected a string, got an integer"),
    ],
)
def test_a_refusal_names_the_path(change: dict[str, object], expected: str) -> None:
    assert reason(OPPORTUNITY, {**GOOD, **change}) == expected


@pytest.mark.parametrize(
    ("event", "item", "expected"),
    [
        (
            "agent_metrics",
            {"gauges": {"a": 1, "b": True}},
            "gauges.b: expected a number, got a boolean",
        ),
        ("agent_metrics", {"counters": {"a": 1, "b": 1e17}}, f"counters.b: 1e+17 {LOST}"),
        ("score", {"id": "s", "shadow_score": -1e39}, f"shadow_score: -1e+39 {TOO_LARGE}"),
        (
            "arbitrage",
            {"signature": "s", "tips": [{"lamports": 1e16}]},
            f"tips[0].lamports: 1e+16 {LOST}",
        ),
    ],
)
def test_number_that_would_change_is_refused_by_name(
    event: str, item: dict[str, object], expected: str
) -> None:
    assert (
        reason(
            EVENT_TYPES[event],
            {"agent_id": "a", "timestamp_ns": 1, **item} if event == "agent_metrics" else item,
        )
        == expected
    )


@pytest.mark.parametrize(
    "id_name", ["id", "opportunityId"]
)  # as plain values, and by Protobuf's own mapping
def test_largest_numbers_of_their_types_are_taken(id_name: str) -> None:
    largest = json_format.MessageToDict(Score(score=float.fromhex("0x1.fffffep127")))["score"]
    for score in (largest, -largest, str(largest)):
        (record,) = encode(
            EVENT_TYPES["score"], [{"id": "s", id_name: "s", "score": score, "slot": 2.0**53 - 1}]
        ).records
        message = Score.FromString(record["value"])
        assert (abs(message.score), message.slot) == (float.fromhex("0x1.fffffep127"), 2**53 - 1)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (None, "expected an object, got null"),
        ([], "expected an object, got an array"),
        ("text", "expected an object, got a string"),
        (1, "expected an object, got an integer"),
        (1.5, "expected an object, got a number"),
        (True, "expected an object, got a boolean"),
        ({}, "id: missing or empty"),
    ],
)
def test_what_is_no_object_is_named(item: object, expected: str) -> None:
    assert reason(OPPORTUNITY, item) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gauges": []}, "gauges: expected an object, got an array"),
        ({"gauges": {"load": "high"}}, "gauges.load: expected a number, got a string"),
        ({"counters": {"errors": -1}}, "counters.errors: -1 is out of range or not an integer"),
        ({"counters": {"errors": None}}, "counters.errors: expected an integer, got null"),
        ({"timestamp_ns": 0}, "timestamp_ns: missing or empty"),
    ],
)
def test_a_refusal_names_the_entry_of_a_map(change: dict[str, object], expected: str) -> None:
    assert (
        reason(EVENT_TYPES["agent_metrics"], {"agent_id": "a", "timestamp_ns": 1, **change})
        == expected
    )


def test_a_null_field_counts_as_not_given() -> None:
    encoded = encode(OPPORTUNITY, [{"id": "o", "slot": None, "route": None, "simulated": None}])
    assert encoded.records == [{"key": b"o", "value": Opportunity(id="o").SerializeToString()}]


def test_lines_are_refused_alone() -> None:
    body = b'{"id": "a"}\r\n\n  \n{"id": "b"\n{"id": "\xff"}\n"c"\n{"id": "d"}'
    encoded = encode_body(OPPORTUNITY, body, NDJSON)
    assert [record["key"] for record in encoded.records] == [b"a", b"d"]
    assert [rejection.index for rejection in encoded.rejected] == [1, 2, 3]
    assert encoded.rejected[0].reason.startswith("not JSON at column 11: ")
    assert encoded.rejected[1].reason.startswith("not JSON at column ")
    assert encoded.rejected[2].reason == "expected an object, got a string"


def test_messages_are_refused_alone() -> None:
    good = Tick(market_id="m", timestamp_ns=1).SerializeToString()
    wrong_text = b"\x0a\x01\xff\x10\x02"
    bodies = [good, b"\xff", wrong_text, b"", Tick(market_id="m").SerializeToString(), good]
    encoded = encode_body(TICK, join(bodies), PROTOBUF)
    assert [record["value"] for record in encoded.records] == [good, good]
    reasons = {rejection.index: rejection.reason for rejection in encoded.rejected}
    assert list(reasons) == [1, 2, 3, 4]
    assert reasons[1].startswith("not a Tick: ")
    assert reasons[2].startswith("not a Tick: ")
    assert reasons[3] == "market_id: missing or empty"
    assert reasons[4] == "timestamp_ns: missing or empty"


def test_a_record_may_be_as_large_as_the_limit_and_no_larger() -> None:
    message = Opportunity(id="o", kind="k" * 100)
    size = len(message.SerializeToString()) + 1
    item = {"id": "o", "kind": "k" * 100}
    assert encode(OPPORTUNITY, [item], limit=size).records
    assert encode(OPPORTUNITY, [item], limit=size - 1).rejected == [
        Rejection(0, f"the record has {size} bytes, {size - 1} are allowed")
    ]


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"[1,", b'{"a":1}{"b":2}', b"NaN", b'"\xff"', b'"\\ud800"', b"[" * 2000],
)
def test_a_body_that_is_not_json_is_refused_whole(body: bytes) -> None:
    with pytest.raises(
        MalformedBodyError,
        match=r"(not JSON at line \d+ column \d+: |nested too deeply at line \d)",
    ):
        split(body, JSON)


def test_empty_bodies_hold_nothing() -> None:
    assert split(b"", PROTOBUF) == []
    assert split(b"", NDJSON) == []
    assert split(b"\n \r\n", NDJSON) == []
    assert split(b"[]", JSON) == []


def test_one_object_is_a_body_of_one() -> None:
    assert split(b'{"id": "a"}', JSON) == [{"id": "a"}]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_nested_messages_hold_only_what_their_constructor_checks(event: EventType) -> None:
    # The encoder checks lists, maps and bools itself; nested ones could come from "ab" or 24.
    for field in event.descriptor.fields:
        if field.message_type and not field.message_type.GetOptions().map_entry:
            assert not [
                inner.name
                for inner in field.message_type.fields
                if inner.is_repeated or inner.type == inner.TYPE_BOOL
            ]
