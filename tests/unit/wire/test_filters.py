import math
import operator
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from mev.core import native
from mev.wire.filters import (
    MAX_CONDITIONS,
    MAX_KEYS,
    BadFilterError,
    Columns,
    Condition,
    Filter,
    Op,
    parse,
    resolve,
)
from mev.wire.pb.events_pb2 import AgentMetrics, Opportunity, RouteStep, Tick
from mev.wire.registry import EVENT_TYPES, EventType
from tests.unit.wire.messages import messages

pytestmark = pytest.mark.usefixtures("native_or_python")
OPPORTUNITY, TICK, METRICS = (
    EVENT_TYPES[name] for name in ("opportunity", "tick", "agent_metrics")
)
UNDECODABLE = b"\xff\xff"

_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FLOAT_MAX = Opportunity(features=[3.4028234663852886e38]).features[0]
_LITERALS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**53), 2**53),
    FieldDescriptor.TYPE_FLOAT: st.floats(-_FLOAT_MAX, _FLOAT_MAX) | st.integers(-1000, 1000),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
}


class Wanted:
    """A condition for the naive evaluator: field path, descriptor, map key, operator, literal."""

    def __init__(
        self, names: list[str], field: FieldDescriptor, key: str | None, op: str, literal: Any
    ) -> None:
        self.names, self.field, self.key, self.op, self.literal = names, field, key, op, literal

    @property
    def text(self) -> str:
        name = ".".join(self.names) + (
            "" if self.key is None else "." + orjson.dumps(self.key).decode()
        )
        return f"{name} {self.op} {orjson.dumps(self.literal).decode()}"

    def matches(self, message: Message) -> bool:
        return any(self._holds(value) for value in self._values(message, self.names))

    def _values(self, message: Any, names: list[str]) -> Iterator[Any]:
        value = getattr(message, names[0])
        if self.key is not None and len(names) == 1:
            yield from [value[self.key]] if self.key in value else []
            return
        repeated = message.DESCRIPTOR.fields_by_name[names[0]].is_repeated
        for item in value if repeated else [value]:
            yield from self._values(item, names[1:]) if names[1:] else [item]

    def _holds(self, value: Any) -> bool:
        if self.op in _ORDER:
            return _ORDER[self.op](value, self._stored(self.literal))
        return any(value == self._stored(literal) for literal in self.literal) == (self.op == "in")

    def _stored(self, literal: Any) -> Any:
        return (
            Opportunity(features=[literal]).features[0]
            if self.field.type == FieldDescriptor.TYPE_FLOAT
            else literal
        )


def leaves(
    descriptor: Descriptor, names: tuple[str, ...] = ()
) -> Iterator[tuple[list[str], FieldDescriptor, bool]]:
    """Yield every path to a value with its descriptor, and whether it is in a map."""
    for field in descriptor.fields:
        path = (*names, field.name)
        if field.message_type is None:
            yield list(path), field, False
        elif field.message_type.GetOptions().map_entry:
            yield list(path), field.message_type.fields_by_name["value"], True
        else:
            yield from leaves(field.message_type, path)


@st.composite
def wanted(draw: st.DrawFn, event: EventType, events: Iterable[Message] = ()) -> Wanted:
    """Return a condition on any field of `event`, often with literals that occur in `events`."""
    names, field, is_map = draw(st.sampled_from(list(leaves(event.descriptor))))
    key = None
    if is_map:
        present = sorted({key for message in events for key in getattr(message, names[0])})
        key = draw(st.text(max_size=8) | st.sampled_from(["cpu", "a b", 'say "x"', "", *present]))
    ops = (
        ["==", "!=", "in", "not in"]
        if field.type == FieldDescriptor.TYPE_BOOL
        else [str(op) for op in Op]
    )
    op = draw(st.sampled_from(ops))
    probe = Wanted(names, field, key, op, None)
    seen = [
        value
        for message in events
        for value in probe._values(message, names)
        if not isinstance(value, float) or math.isfinite(value)
    ]
    literals = _LITERALS[field.type] | st.sampled_from(seen) if seen else _LITERALS[field.type]
    literal = (
        draw(st.lists(literals, min_size=1, max_size=4))
        if op in {"in", "not in"}
        else draw(literals)
    )
    return Wanted(names, field, key, op, literal)


def encoded(events: Iterable[Message]) -> list[bytes]:
    return [event.SerializeToString() for event in events]


def select(conditions: list[str], events: Iterable[Message], event: EventType) -> list[int] | None:
    return parse(conditions, [event]).select(Columns(event, encoded(events)))


@pytest.mark.parametrize("event", EVENT_TYPES.values(), ids=EVENT_TYPES)
@given(st.data())
def test_a_filter_selects_what_a_naive_evaluation_of_each_event_selects(
    event: EventType, data: st.DataObject
) -> None:
    events = data.draw(st.lists(messages(event), max_size=6))
    conditions = data.draw(st.lists(wanted(event, events), max_size=3))
    values: list[bytes] = encoded(events)
    broken = data.draw(st.sets(st.integers(0, 5), max_size=2))
    values = [UNDECODABLE if index in broken else value for index, value in enumerate(values)]
    expected = [
        index
        for index, message in enumerate(events)
        if not conditions
        or (index not in broken and all(condition.matches(message) for condition in conditions))
    ]
    selected = parse([condition.text for condition in conditions], [event]).select(
        Columns(event, values)
    )
    assert (list(range(len(events))) if selected is None else selected) == expected


UNPACKED = b"\x5d" + struct.pack("<f", 0.5)  # an element of a list of floats on its own
UNKNOWN = b"\xa2\x06\x01x"
OVERLONG = b"\x10\x83\x80\x00"  # 3 in more bytes than it needs


@pytest.mark.parametrize("event", EVENT_TYPES.values(), ids=EVENT_TYPES)
@given(st.data())
def test_native_module_selects_what_python_selects_in_any_encoding(
    event: EventType, data: st.DataObject
) -> None:
    """Fields given twice, unknown fields, other encodings of a value, and changed bytes."""
    if not native.is_used():
        return
    events = data.draw(st.lists(messages(event), min_size=1, max_size=6))
    parts = [*encoded(events), UNKNOWN, UNPACKED, OVERLONG]
    values = [b"".join(data.draw(st.lists(st.sampled_from(parts), max_size=3))) for _ in range(6)]
    if data.draw(st.booleans()):
        raw = bytearray(values[0])
        for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=2)):
            raw[place : place + 1] = data.draw(st.binary(max_size=2))
        values[0] = bytes(raw)
    conditions = [
        condition.text
        for condition in data.draw(st.lists(wanted(event, events), min_size=1, max_size=3))
    ]
    selected = parse(conditions, [event]).select(Columns(event, values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEV_NATIVE", "0")
        assert selected == parse(conditions, [event]).select(Columns(event, values))


def test_valid_events_and_usual_conditions_need_no_python_code() -> None:
    if not native.is_used():
        return
    values = encoded([Opportunity(slot=1, features=[0.5], route=[RouteStep(dex="a")])] * 3)
    columns = Columns(OPPORTUNITY, values)
    made = parse(
        ["slot >= 1", 'route.dex in ["a"]', "features < 1", "simulated == false"], [OPPORTUNITY]
    )
    assert made.select(columns) is None
    assert columns.native is not None
    assert "_decoded" not in vars(columns)


@pytest.mark.parametrize("event", EVENT_TYPES.values(), ids=EVENT_TYPES)
@given(st.data())
def test_the_canonical_text_parses_to_an_equal_filter_in_any_order(
    event: EventType, data: st.DataObject
) -> None:
    conditions = data.draw(st.lists(wanted(event), max_size=4))
    made = parse([condition.text for condition in conditions], [event])
    shuffled = data.draw(st.permutations(made.text()))
    for condition in conditions:
        if isinstance(condition.literal, list):
            condition.literal = [
                *data.draw(st.permutations(condition.literal)),
                condition.literal[0],
            ]
    for same in (
        parse(shuffled, [event]),
        parse([condition.text for condition in conditions[::-1]], [event]),
    ):
        assert same == made
        assert hash(same) == hash(made)
        assert same.text() == made.text()
        assert same.conditions == made.conditions


_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
_PIECES = st.sampled_from(
    [
        *(str(op) for op in Op),
        "slot",
        "route.dex",
        "gauges",
        ".",
        " ",
        '"',
        "\\",
        "[",
        "]",
        ",",
        "-",
        "1",
        "1e999",
        "NaN",
        "null",
        "true",
        "{}",
        "not",
        "ü",
    ]
)
_NEARLY = st.lists(_PIECES | _ANY_TEXT, max_size=8).map("".join)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _ANY_TEXT, lambda inner: st.lists(inner, max_size=3)
)


@pytest.mark.parametrize("event", [OPPORTUNITY, METRICS], ids=["opportunity", "agent_metrics"])
@given(conditions=st.lists(_ANY_TEXT | _NEARLY, max_size=3) | _JSON)
def test_text_is_a_filter_or_refused(event: EventType, conditions: object) -> None:
    made: Filter | dict[str, object]
    try:
        made = parse(conditions, [event])
    except BadFilterError as error:
        made = error.problem()
    if isinstance(made, Filter):
        assert parse(made.text(), [event]) == made
    else:
        assert orjson.loads(orjson.dumps(made))["code"] == "bad_filter"


def test_conditions_are_plain_values() -> None:
    made = parse(
        [' kind  not   in["b", "a","b"]', "slot>=5", "probability < 1", 'route.dex == "orca"'],
        [OPPORTUNITY],
    )
    assert made.conditions == (
        Condition("kind", Op.NOT_IN, ("a", "b")),
        Condition("probability", Op.LT, 1.0),
        Condition("route.dex", Op.EQ, "orca"),
        Condition("slot", Op.GE, 5),
    )
    assert made.text() == [
        'kind not in ["a","b"]',
        "probability < 1.0",
        'route.dex == "orca"',
        "slot >= 5",
    ]
    assert hash(made.conditions)


def test_equal_filters_are_those_with_the_same_conditions() -> None:
    assert parse(["probability == 0"], [OPPORTUNITY]) == parse(
        ["probability == -0.0"], [OPPORTUNITY]
    )
    assert parse(["slot == 5", "slot == 5"], [OPPORTUNITY]) == parse(["slot == 5"], [OPPORTUNITY])
    assert parse(['gauges."cpu" == 5'], [METRICS]) == parse(["gauges.cpu == 5.0"], [METRICS])
    distinct = [
        "slot == 5",
        "slot == 6",
        "slot >= 5",
        "slot in [5]",
        "tip_lamports == 5",
        'id == "slot == 5"',
    ]
    assert len({parse([text], [OPPORTUNITY]) for text in distinct}) == len(distinct)
    assert parse(["slot == 5"], [OPPORTUNITY]) != "slot == 5"


def test_an_empty_filter_is_falsy_and_selects_everything() -> None:
    made = parse([], [TICK])
    assert not made
    assert made == Filter()
    assert made.select(Columns(TICK, [UNDECODABLE, b""])) is None
    assert parse(["simulated == true"], [TICK])


def test_all_that_match_is_none() -> None:
    events = [Tick(market_id=market) for market in "abc"]
    assert select(['market_id >= "a"'], events, TICK) is None
    assert select(['market_id >= "b"', "simulated == false"], events, TICK) == [1, 2]
    assert select(['market_id > "c"', "simulated == false"], events, TICK) == []
    assert select(['market_id > "c"'], [], TICK) is None


def test_a_repeated_field_matches_when_any_element_does() -> None:
    routes = [["orca"], ["orca", "raydium"], [], ["phoenix"]]
    events = [Opportunity(route=[RouteStep(dex=dex) for dex in dexes]) for dexes in routes]
    assert select(['route.dex == "orca"'], events, OPPORTUNITY) == [0, 1]
    assert select(['route.dex in ["raydium", "phoenix"]'], events, OPPORTUNITY) == [1, 3]
    assert select(['route.dex != "orca"'], events, OPPORTUNITY) == [1, 3]


def test_a_condition_on_a_key_that_a_map_does_not_have_is_false() -> None:
    events = [
        AgentMetrics(gauges={"cpu": 0.5}),
        AgentMetrics(gauges={"mem": 0.5}),
        AgentMetrics(gauges={"cpu": 0.0, "a b": 1}),
    ]
    assert select(["gauges.cpu >= 0.5"], events, METRICS) == [0]
    assert select(["gauges.cpu != 7"], events, METRICS) == [0, 2]
    assert select(["gauges.cpu not in [7]"], events, METRICS) == [0, 2]
    assert select(['gauges."a b" == 1'], events, METRICS) == [2]


def test_a_float_is_compared_as_it_is_stored() -> None:
    events = [Opportunity(features=[0.1])]
    assert select(["features == 0.1"], events, OPPORTUNITY) is None
    assert select(["features in [0.1]"], events, OPPORTUNITY) is None
    assert select(["features > 0.1"], events, OPPORTUNITY) == []


class Counted(list[bytes]):
    """Encoded events that count how often they are gone through."""

    rounds = 0

    def __iter__(self) -> Iterator[bytes]:
        self.rounds += 1
        return super().__iter__()


def test_filters_share_a_block_that_is_decoded_once_when_the_first_asks() -> None:
    values = Counted(encoded([Opportunity(slot=slot, tip_lamports=7) for slot in range(4)]))
    columns = Columns(OPPORTUNITY, values)
    assert Filter().select(columns) is None
    assert values.rounds == 0
    for least in range(3):
        selected = parse([f"slot > {least}", "tip_lamports == 7"], [OPPORTUNITY]).select(columns)
        assert selected == list(range(least + 1, 4))
    assert values.rounds == 1
    slot = resolve(OPPORTUNITY, "slot")
    assert columns.column(slot) is columns.column(slot)


def test_one_filter_serves_all_the_types_it_was_made_for() -> None:
    made = parse(["simulated == true"], [OPPORTUNITY, TICK])
    assert made.select(
        Columns(OPPORTUNITY, encoded([Opportunity(), Opportunity(simulated=True)]))
    ) == [1]
    assert made.select(Columns(TICK, encoded([Tick(simulated=True), Tick()]))) == [0]
    with pytest.raises(BadFilterError, match="agent_metrics has no field 'simulated'"):
        made.select(Columns(METRICS, encoded([AgentMetrics()])))


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("slto >= 5", "opportunity has no field 'slto'; did you mean slot? it has id, slot,"),
        ("profit >= 5", "did you mean expected_profit_lamports?"),
        ("route.dexx == 1", "did you mean route.dex"),
        ("route == 1", "route is a message; name one of its fields: route.dex, route.pool"),
        ("\ud800 == 1", "opportunity has no field '?'"),
        ("route.\ud800 == 1", "opportunity has no field 'route.?'"),
        ("slot.x == 1", "slot is of type uint64 and has no fields"),
        (
            "slot == -1",
            (
                "slot is of type uint64; the value is -1, not an integer from 0 to"
                " 18446744073709551615"
            ),
        ),
        ("slot == 18446744073709551616", "not an integer from 0 to 18446744073709551615"),
        (
            "expected_profit_lamports == 9223372036854775808",
            "not an integer from -9223372036854775808",
        ),
        ("slot == 5.0", "the value is 5.0, not an integer"),
        ("slot == true", "the value is true, not an integer"),
        ("slot == null", "the value is null, not an integer"),
        ("simulated == 1", "simulated is of type bool; the value is 1, not true or false"),
        ("simulated >= true", "simulated is of type bool, which has no order"),
        ("kind == 5", "kind is of type string; the value is 5, not a string in double quotes"),
        ('probability == "1"', 'the value is "1", not a number'),
        ("probability >= NaN", "'NaN' is no literal, a string in double quotes, a finite number"),
        ("probability >= 1e999", "'1e999' is no literal"),
        ("features >= 1e39", "not a number of up to 3.4e38"),
        ("kind == arbitrage", "'arbitrage' is no literal, a string in double quotes"),
        ('kind == "\\ud800"', "is no literal"),
        ("slot = 5", "no operator '='; there are ==, !=, <, <=, >, >=, in, not in"),
        ("slot IN [5]", "no operator 'IN'"),
        ("slot", "no operator after the field"),
        ("slot >=", "is no literal"),
        (
            "slot >= 5 and simulated == true",
            (
                "'and' does not join two; give each as a condition of its own, all of them must"
                " hold: --filter again"
            ),
        ),
        ('kind == "a and b" AND slot > 5', "'AND' does not join two"),
        ('kind in ["a", "b"]&&slot > 5', "'&&' does not join two"),
        ("simulated == true, slot > 5", "',' does not join two"),
        (
            'kind == "a" or kind == "b"',
            "there is no 'or'; for several values of one field use `in`",
        ),
        ('kind == "a" order', "is no literal"),
        ("slot == andes", "is no literal"),
        ("", 'a condition is "<field> <op> <literal>"'),
        ("slot in 5", "in takes a list"),
        ("slot in []", "in takes a list of at least one value"),
        ("slot == [5]", "== takes one value; for a list there are in and not in"),
        ('kind in ["a", 5]', "value 2 of the list is 5, not a string"),
        ('slot in [5, {"a": 1}]', "value 2 of the list is an object, not an integer"),
        ("slot in [1, 2, -3]", "value 3 of the list is -3, not an integer"),
    ],
)
def test_a_wrong_condition_is_refused_with_its_place_and_what_would_do(
    condition: str, says: str
) -> None:
    with pytest.raises(BadFilterError) as refused:
        parse(["slot >= 5", condition], [OPPORTUNITY])
    assert refused.value.detail.startswith("condition 2 (")
    assert says in refused.value.detail
    assert (refused.value.fields["field"], refused.value.fields["position"]) == ("filter[1]", 1)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("gauges >= 5", "gauges is a map; name a key of it"),
        ("gauges. >= 5", "gauges is a map; name a key of it"),
        ("gauges.ü >= 5", "'ü' is no key of gauges; write gauges.\"any name\""),
        ('gauges."a"b >= 5', "is no key of gauges"),
        ("gauges.cpu >= true", "gauges.cpu is of type double"),
        ("counters.sent >= 0.5", "counters.sent is of type uint64"),
    ],
)
def test_a_wrong_condition_on_a_map_is_refused(condition: str, says: str) -> None:
    with pytest.raises(BadFilterError) as refused:
        parse([condition], [METRICS])
    assert says in refused.value.detail


def test_a_refusal_tells_programs_the_field_its_type_and_what_exists() -> None:
    with pytest.raises(BadFilterError) as wrong_value:
        parse(["slot == -1"], [OPPORTUNITY])
    assert wrong_value.value.fields == {
        "field": "filter[0]",
        "position": 0,
        "path": "slot",
        "field_type": "uint64",
    }
    with pytest.raises(BadFilterError) as unknown:
        parse(["bid_prise > 1"], [TICK])
    assert unknown.value.fields["near"] == ["bid_price", "bid_size"]
    assert unknown.value.fields["known"] == [field.name for field in TICK.fields]
    assert len(parse_error(["x" * 10_000_000 + " == 5"]).detail) < 1000
    assert len(parse_error(["slot == " + "x" * 10_000_000]).detail) < 1000


def parse_error(conditions: object) -> BadFilterError:
    with pytest.raises(BadFilterError) as refused:
        parse(conditions, [OPPORTUNITY])
    return refused.value


def test_a_field_must_exist_in_every_type() -> None:
    with pytest.raises(BadFilterError, match="tick has no field 'slot'"):
        parse(["slot >= 5"], [OPPORTUNITY, TICK])
    with pytest.raises(BadFilterError, match="needs event types"):
        parse(["slot >= 5"], [])


@pytest.mark.parametrize("conditions", ["slot >= 5", None, {"slot": 5}, 5])
def test_a_filter_is_a_list(conditions: object) -> None:
    assert parse_error(conditions).fields["field"] == "filter"


def test_a_condition_is_text() -> None:
    assert "a condition is a string" in parse_error(["slot >= 5", 5]).detail


def test_there_is_a_limit_to_conditions() -> None:
    conditions = [f"slot != {slot}" for slot in range(MAX_CONDITIONS)]
    assert len(parse(conditions, [OPPORTUNITY]).conditions) == MAX_CONDITIONS
    assert "at most 32 conditions, not 33" in parse_error([*conditions, "slot == 1"]).detail


def test_there_is_a_limit_to_the_values_of_all_lists_together() -> None:
    half = orjson.dumps([f"{number}" for number in range(MAX_KEYS // 2)]).decode()
    conditions = [f"id in {half}", f"kind not in {half}"]
    made = parse(conditions, [OPPORTUNITY])
    assert made.select(
        Columns(
            OPPORTUNITY, encoded([Opportunity(id="7", kind="x"), Opportunity(id="x", kind="x")])
        )
    ) == [0]
    assert made == parse(random.Random(1).sample(conditions, 2), [OPPORTUNITY])
    refused = parse_error([*conditions, "slot in [1]"])
    assert "at most 100000 values together" in refused.detail
    assert refused.fields["position"] == 2


def test_a_filter_of_many_values_is_shown_short() -> None:
    made = parse([f"slot in {list(range(1000))}"], [OPPORTUNITY])
    assert len(repr(made)) < 100
