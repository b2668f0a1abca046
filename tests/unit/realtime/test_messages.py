import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.bus.replay import OffsetRange
from mev.core.errors import MevError
from mev.realtime import messages
from mev.realtime.errors import UnknownTopicError
from mev.realtime.options import AtCursor, AtSlot, AtTime, DeliveryMode, Earliest, Live, OnSlow
from mev.realtime.positions import Beginning, StartOutcome
from mev.wire.registry import BY_TOPIC, EVENT_TYPES
from mev.wire.resume import encode, fingerprint
from tests.unit.realtime.events import options

TICK = ("mev.tick.v1", 0)


def read(text: str | bytes) -> messages.Request:
    return messages.read(
        messages.decode(text.encode() if isinstance(text, str) else text), EVENT_TYPES
    )


def subscribe(**more: object) -> messages.Request:
    return read(orjson.dumps({"op": "subscribe", "id": "a", "topics": ["tick"], **more}))


def shown(message: bytes) -> object:
    return orjson.loads(message)


def test_requests_are_read() -> None:
    assert read('{"op": "auth", "api_key": "k"}') == messages.Auth("k")
    assert read('{"op": "auth", "ticket": "t"}') == messages.Auth("t")
    assert read('{"op": "unsubscribe", "id": "a"}') == messages.Unsubscribe("a")
    assert read('{"op": "ping", "id": 7}') == messages.Ping()


@pytest.mark.parametrize(
    "more",
    [
        "",
        ', "filter": []',
        ', "from": "live", "on_slow": "drop_oldest"',
        ', "max_rate": null, "filter": null',
    ],
)
def test_a_subscription_may_name_what_is_the_default_anyway(more: str) -> None:
    request = read(f'{{"op": "subscribe", "id": "a", "topics": ["tick", "bundle", "tick"]{more}}}')
    assert request == messages.Subscribe("a", options("tick", "bundle"), Live())


def test_a_subscription_says_what_it_wants() -> None:
    request = subscribe(
        filter=["bid_price > 1"], on_slow="conflate", max_rate=50, delivery="datagram"
    )
    wanted = options(
        "tick",
        conditions=["bid_price > 1"],
        on_slow=OnSlow.CONFLATE,
        max_rate=50,
        delivery=DeliveryMode.DATAGRAM,
    )
    assert request == messages.Subscribe("a", wanted, Live())
    request = subscribe(topics=["*", "agent_?etrics"])
    assert isinstance(request, messages.Subscribe)
    assert request.options.topics == set(EVENT_TYPES)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", Earliest()),
        ({"time": "1970-01-01T00:00:01.5Z"}, AtTime(1500)),
        ({"time": "1970-01-01T01:00:00+01:00"}, AtTime(0)),
        ({"slot": 7}, AtSlot(7)),
        (
            {"cursor": {"bundle": {"0": 5, "3": 0}}},
            AtCursor({("mev.bundle.v1", 0): 5, ("mev.bundle.v1", 3): 0}, None),
        ),
        (
            {"resume": encode("x", {("mev.bundle.v1", 1): 5, TICK: 7}, BY_TOPIC)},
            AtCursor({("mev.bundle.v1", 1): 5}, fingerprint("x")),
        ),
        ({"cursor": {}, "log": "x"}, AtCursor({}, fingerprint("x"))),
    ],
)
def test_a_subscription_says_where_it_begins(start: object, expected: object) -> None:
    request = subscribe(topics=["bundle"], **{"from": start})
    assert isinstance(request, messages.Subscribe)
    assert request.start == expected


def test_an_update_changes_what_it_names() -> None:
    before = options("tick", conditions=["bid_price > 1"], max_rate=5)
    request = read('{"op": "update", "id": "a", "max_rate": null, "on_slow": "lossless"}')
    assert isinstance(request, messages.Update)
    assert request.options(before, EVENT_TYPES) == options(
        "tick", conditions=["bid_price > 1"], on_slow=OnSlow.LOSSLESS
    )
    request = read('{"op": "update", "id": "a", "topics": ["bundle"]}')
    assert isinstance(request, messages.Update)
    with pytest.raises(MevError) as caught:
        request.options(before, EVENT_TYPES)
    assert caught.value.code == "bad_filter"


@pytest.mark.parametrize(
    ("text", "code", "field"),
    [
        ("nonsense", "bad_json", None),
        ("[1]", "bad_json", None),
        (b'{"op": "ping\xff"}', "bad_json", None),
        ("{}", "unknown_op", "op"),
        ('{"op": 3}', "unknown_op", "op"),
        ('{"op": ["ping"]}', "unknown_op", "op"),
        ('{"op": "shout"}', "unknown_op", "op"),
        ('{"op": "ping", "loud": true}', "unknown_field", "loud"),
        ('{"op": "auth"}', "invalid_field", "api_key"),
        ('{"op": "auth", "api_key": 5}', "invalid_field", "api_key"),
        ('{"op": "subscribe", "topics": ["tick"]}', "invalid_field", "id"),
        ('{"op": "subscribe", "id": "", "topics": ["tick"]}', "invalid_field", "id"),
        ('{"op": "subscribe", "id": "%s", "topics": ["tick"]}' % ("x" * 65), "invalid_field", "id"),
        ('{"op": "subscribe", "id": "a"}', "invalid_field", "topics"),
        ('{"op": "subscribe", "id": "a", "topics": "tick"}', "invalid_field", "topics"),
        ('{"op": "subscribe", "id": "a", "topics": []}', "invalid_field", "topics"),
        ('{"op": "subscribe", "id": "a", "topics": [1]}', "invalid_field", "topics"),
        ('{"op": "subscribe", "id": "a", "topics": ["tick", "tock"]}', "unknown_topic", "topics"),
        ('{"op": "unsubscribe", "id": 1}', "invalid_field", "id"),
    ],
)
def test_a_wrong_message_is_refused_by_field(
    text: str | bytes, code: str, field: str | None
) -> None:
    with pytest.raises(MevError) as caught:
        read(text)
    assert (caught.value.code, caught.value.fields.get("field")) == (code, field)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"filter": ["slot > 1"]}, "bad_filter", "filter[0]"),
        ({"filter": "slot > 1"}, "bad_filter", "filter"),
        ({"from": "yesterday"}, "invalid_field", "from"),
        ({"from": {"tick": {"0": 5}}}, "invalid_field", "from"),
        ({"from": {"time": "noon"}}, "invalid_field", "from"),
        ({"from": {"time": "2026-01-01T00:00:00"}}, "invalid_field", "from"),
        ({"from": {"time": "2026-01-01T00:00:00Z", "slot": 1}}, "invalid_field", "from"),
        ({"from": {"slot": -1}}, "invalid_field", "from"),
        ({"from": {"slot": True}}, "invalid_field", "from"),
        ({"from": {"slot": 1}}, "no_slot", "from"),
        ({"from": {"cursor": {"bundle": {"0": 1}}}}, "invalid_field", "from"),
        ({"from": {"cursor": {"tick": 1}}}, "invalid_field", "from"),
        ({"from": {"cursor": {"tick": {"zero": 1}}}}, "invalid_field", "from"),
        ({"from": {"cursor": {"tick": {"0": -1}}}}, "invalid_field", "from"),
        ({"from": {"cursor": {"tick": {"0": 2**63}}}}, "invalid_field", "from"),
        ({"from": {"cursor": {}, "log": 5}}, "invalid_field", "from"),
        ({"from": {"resume": 5}}, "invalid_field", "from"),
        ({"from": {"resume": ""}}, "bad_resume", "from"),
        ({"from": {"resume": encode("x", {}, BY_TOPIC), "log": "x"}}, "invalid_field", "from"),
        ({"from": {"resume": "x" * 1_000_000}}, "bad_resume", "from"),
        ({"on_slow": "panic"}, "invalid_field", "on_slow"),
        ({"on_slow": None}, "invalid_field", "on_slow"),
        ({"max_rate": 0}, "invalid_field", "max_rate"),
        ({"max_rate": True}, "invalid_field", "max_rate"),
        ({"delivery": "pigeon"}, "invalid_field", "delivery"),
        ({"topics": ["tick"] * 65}, "invalid_field", "topics"),
        ({"topics": ["[" * 60_000]}, "invalid_field", "topics"),  # matching it would take minutes
        ({"topics": ["tick", "t?ck?"]}, "unknown_topic", "topics"),
    ],
)
def test_a_wrong_subscription_is_refused_by_field(
    fields: dict[str, object], code: str, field: str
) -> None:
    with pytest.raises(MevError) as caught:
        subscribe(**fields)
    assert (caught.value.code, caught.value.fields.get("field")) == (code, field)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json)
def test_any_json_is_refused_in_few_words(value: object) -> None:
    wrong = [
        {"op": "subscribe", "id": "a", "topics": ["tick"], name: value}
        for name in ("from", "on_slow", "delivery")
    ]
    for message in (value, {"op": value}, {"op": "subscribe", "id": "a", "topics": value}, *wrong):
        with pytest.raises(MevError) as caught:
            read(orjson.dumps(message))
        assert len(messages.error(caught.value)) < 2000


@given(st.binary())
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    with pytest.raises(MevError):
        read(noise + b"\x00")


def test_an_error_repeats_the_id_and_names_what_there_is() -> None:
    error = UnknownTopicError("no such", field="topics", known=["tick"])
    expected = {
        "op": "error",
        "id": "a",
        "code": "unknown_topic",
        "detail": "no such",
        "field": "topics",
        "known": ["tick"],
    }
    assert shown(messages.error(error, {"id": "a"})) == expected
    assert shown(messages.error(error, {"id": ["a"]})) == {**expected, "id": None}
    assert shown(messages.error(error)) == {**expected, "id": None}


def test_answers() -> None:
    assert shown(messages.authenticated()) == {"op": "authenticated"}
    assert shown(messages.pong({"op": "ping", "id": "a"})) == {"op": "pong", "id": "a"}
    assert shown(messages.pong({"op": "ping"})) == {"op": "pong"}
    assert shown(messages.unsubscribed("a", 7, 3, 5)) == {
        "op": "unsubscribed",
        "id": "a",
        "sequence": 7,
        "dropped": 3,
        "dropped_total": 5,
    }
    assert shown(messages.progress("a", 7, 2, 5)) == {
        "op": "progress",
        "id": "a",
        "sequence": 7,
        "dropped": 2,
        "dropped_total": 5,
    }


def test_a_subscription_is_confirmed_with_what_was_understood() -> None:
    understood = options("tick", conditions=["bid_price>1"], max_rate=9)
    live = Beginning(outcome=StartOutcome.LIVE, positions={TICK: 5, ("mev.bundle.v1", 0): 9})
    assert shown(
        messages.subscribed("subscribed", "a", understood, live, "log-1", EVENT_TYPES)
    ) == {
        "op": "subscribed",
        "id": "a",
        "topics": ["tick"],
        "filter": understood.filter.text(),
        "on_slow": "drop_oldest",
        "max_rate": 9,
        "delivery": "stream",
        "start": "live",
        "log": "log-1",
        "cursor": {"tick": {"0": 5}},
        "resume": encode("log-1", {TICK: 5}, [TICK[0]]),
    }
    gap = Beginning(
        outcome=StartOutcome.GAP,
        positions={TICK: 5},
        gaps={TICK: (2, 5)},
        bounds={TICK: OffsetRange(5, 9)},
    )
    message = shown(messages.subscribed("subscribed", "a", understood, gap, "log-1", EVENT_TYPES))
    assert isinstance(message, dict)
    assert message["gaps"] == {"tick": {"0": {"from": 2, "to": 5}}}
    assert message["positions"] == {"tick": {"0": {"earliest": 5, "latest": 9}}}
