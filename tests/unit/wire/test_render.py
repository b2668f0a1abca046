import math

import orjson
import pytest
from google.protobuf import descriptor_pb2, json_format
from hypothesis import given
from hypothesis import strategies as st

from mev.wire.pb.events_pb2 import AgentMetrics, Opportunity, RouteStep
from mev.wire.registry import EVENT_TYPES
from mev.wire.render import _message, renderer

_u64, _i64 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_steps = st.builds(RouteStep, dex=st.text(), pool=st.text(), amount_in=_u64, amount_out=_u64)
_opportunities = st.builds(
    Opportunity,
    id=st.text(),
    slot=_u64,
    detected_at_ns=_i64,
    route=st.lists(_steps, max_size=3),
    expected_profit_lamports=_i64,
    probability=_finite,
    features=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=5),
    simulated=st.booleans(),
)


@given(_opportunities)
def test_an_event_has_every_field_by_its_proto_name(event: Opportunity) -> None:
    text = orjson.loads(renderer(EVENT_TYPES["opportunity"])(event.SerializeToString()))
    assert text.pop("type") == "opportunity"
    assert text.keys() == {field.name for field in Opportunity.DESCRIPTOR.fields}
    assert json_format.ParseDict(text, Opportunity()) == event


@given(
    st.dictionaries(st.text(), _finite, max_size=4), st.dictionaries(st.text(), _u64, max_size=4)
)
def test_maps_are_objects_with_numbers(gauges: dict[str, float], counters: dict[str, int]) -> None:
    event = AgentMetrics(agent_id="a", gauges=gauges, counters=counters)
    text = orjson.loads(renderer(EVENT_TYPES["agent_metrics"])(event.SerializeToString()))
    assert (text["gauges"], text["counters"]) == (gauges, counters)


def test_the_type_comes_first_and_integers_are_numbers() -> None:
    text = renderer(EVENT_TYPES["opportunity"])(
        Opportunity(slot=2**64 - 1, probability=math.nan).SerializeToString()
    )
    assert text.startswith(b'{"type":"opportunity","id":"",')
    assert b'"slot":18446744073709551615' in text
    assert b'"probability":null' in text


def test_bytes_that_are_no_event_are_shown() -> None:
    assert orjson.loads(renderer(EVENT_TYPES["tick"])(b"\xff\xff")) == {
        "type": "tick",
        "undecodable": "//8=",
    }


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_every_type_can_be_rendered(name: str) -> None:
    assert orjson.loads(renderer(EVENT_TYPES[name])(b""))["type"] == name


def test_nested_messages_enums_and_bytes_are_converted() -> None:
    field = descriptor_pb2.FieldDescriptorProto(
        name="f",
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        options=descriptor_pb2.FieldOptions(),
    )
    text = _message(field.DESCRIPTOR)(field)
    assert (text["name"], text["type"]) == ("f", "TYPE_STRING")
    options = descriptor_pb2.UninterpretedOption(string_value=b"\x00")
    assert _message(options.DESCRIPTOR)(options)["string_value"] == "AA=="
    location = descriptor_pb2.SourceCodeInfo(
        location=[descriptor_pb2.SourceCodeInfo.Location(path=[1, 2])]
    )
    (shown,) = orjson.loads(orjson.dumps(_message(location.DESCRIPTOR)(location)["location"]))
    assert shown["path"] == [1, 2]
