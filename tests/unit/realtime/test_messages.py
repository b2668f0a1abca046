import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.core.errors import MevError
from mev.realtime import messages
from mev.realtime.errors import UnknownTopicError
from tests.unit.realtime.links import parse_server_frames

TOPICS = frozenset({"tick", "bundle"})


def read(text: str | bytes) -> messages.Request:
    return messages.read(messages.decode(text.encode() if isinstance(text, str) else text), TOPICS)


def shown(message: bytes) -> object:
    (frame,) = parse_server_frames(message)
    return frame.json


def test_requests_are_read() -> None:
    assert read('{"op": "auth", "api_key": "k"}') == messages.Auth("k")
    assert read('{"op": "unsubscribe", "id": "a"}') == messages.Unsubscribe("a")
    assert read('{"op": "ping", "id": 7}') == messages.Ping()


@pytest.mark.parametrize("more", ["", ', "filter": []', ', "from": "live", "on_slow": "drop_oldest"', ', "max_rate": null, "filter": null'])
def test_a_subscription_may_name_what_is_the_default_anyway(more: str) -> None:
    request = read(f'{{"op": "subscribe", "id": "a", "topics": ["tick", "bundle", "tick"]{more}}}')
    assert request == messages.Subscribe("a", TOPICS)


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
        ('{"op": "subscribe", "id": "a", "topics": ["tick"], "filter": ["slot > 1"]}', "unsupported", "filter"),
        ('{"op": "subscribe", "id": "a", "topics": ["tick"], "from": "earliest"}', "unsupported", "from"),
        ('{"op": "subscribe", "id": "a", "topics": ["tick"], "from": {"tick": {"0": 5}}}', "unsupported", "from"),
        ('{"op": "subscribe", "id": "a", "topics": ["tick"], "on_slow": "conflate"}', "unsupported", "on_slow"),
        ('{"op": "subscribe", "id": "a", "topics": ["tick"], "max_rate": 5}', "unsupported", "max_rate"),
        ('{"op": "unsubscribe", "id": 1}', "invalid_field", "id"),
    ],
)
def test_a_wrong_message_is_refused_by_field(text: str | bytes, code: str, field: str | None) -> None:
    with pytest.raises(MevError) as caught:
        read(text)
    assert (caught.value.code, caught.value.fields.get("field")) == (code, field)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(_json)
def test_any_json_is_refused_in_few_words(value: object) -> None:
    for message in (value, {"op": value}, {"op": "subscribe", "id": "a", "topics": value}):
        with pytest.raises(MevError) as caught:
            read(orjson.dumps(message))
        assert len(messages.error(caught.value)) < 2000


@given(st.binary())
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    with pytest.raises(MevError):
        read(noise + b"\x00")


def test_an_error_repeats_the_id_and_names_what_there_is() -> None:
    error = UnknownTopicError("no such", field="topics", known=["tick"])
    expected = {"op": "error", "id": "a", "code": "unknown_topic", "detail": "no such", "field": "topics", "known": ["tick"]}
    assert shown(messages.error(error, {"id": "a"})) == expected
    assert shown(messages.error(error, {"id": ["a"]})) == {**expected, "id": None}
    assert shown(messages.error(error)) == {**expected, "id": None}


def test_answers() -> None:
    assert shown(messages.authenticated()) == {"op": "authenticated"}
    assert shown(messages.pong({"op": "ping", "id": "a"})) == {"op": "pong", "id": "a"}
    assert shown(messages.pong({"op": "ping"})) == {"op": "pong"}
    assert shown(messages.unsubscribed("a", 3)) == {"op": "unsubscribed", "id": "a", "dropped": 3}
    assert shown(messages.subscribed("a", TOPICS)) == {
        "op": "subscribed",
        "id": "a",
        "topics": ["bundle", "tick"],
        "from": "live",
        "on_slow": "drop_oldest",
    }
