"""Tests that conditions mean the same in a query as in the stream's filter."""

import math
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message

from mev.datasets.query import Statements, checked
from mev.store.clickhouse import ClickHouse
from mev.wire.filters import Columns, parse
from mev.wire.pb.events_pb2 import AgentMetrics, Opportunity, RouteStep, Sandwich, Tick
from mev.wire.registry import EVENT_TYPES
from tests.unit.datasets.stored import empty, put

ODD = "a'b\\c\"d\n\t{p:String} é\u2028\U0001f40d--"
EVENTS: dict[str, list[Message]] = {
    "opportunity": [
        Opportunity(id="none", slot=1),
        Opportunity(
            id="orca",
            slot=2,
            route=[RouteStep(dex="orca", amount_in=5)],
            probability=0.1,
            features=[0.1, math.nan],
            simulated=True,
        ),
        Opportunity(
            id="two",
            slot=2**64 - 1,
            route=[RouteStep(dex="orca"), RouteStep(dex=ODD, amount_in=2**64 - 1)],
            probability=0.3,
        ),
        Opportunity(
            id=ODD,
            slot=3,
            kind=ODD,
            expected_profit_lamports=-(2**63),
            probability=math.nan,
            features=[-0.0, 1e30],
        ),
        Opportunity(
            id="\U0001f40d",
            slot=4,
            kind="\uffee",
            expected_profit_lamports=2**63 - 1,
            probability=0.1 + 0.2,
        ),
    ],
    "sandwich": [
        Sandwich(signature="a", slot=1, victims=["x", "y"]),
        Sandwich(signature="b", slot=1),
        Sandwich(signature="c", victims=["z"]),
    ],
    "agent_metrics": [
        AgentMetrics(
            agent_id="a", timestamp_ns=1, gauges={"cpu": 0.5, ODD: 0.0}, counters={"n": 2**64 - 1}
        ),
        AgentMetrics(agent_id="b", timestamp_ns=1, gauges={"cpu": math.nan}),
        AgentMetrics(agent_id="c", timestamp_ns=1),
    ],
    "tick": [
        Tick(market_id="m", timestamp_ns=-5, bid_price=-0.0),
        Tick(market_id="n", timestamp_ns=5, bid_price=5e-324),
    ],
}
CONDITIONS = {
    "opportunity": [
        "slot == 18446744073709551615",
        "slot != 2",
        "slot in [1, 3, 18446744073709551615]",
        "slot not in [1, 3]",
        "expected_profit_lamports < 0",
        "expected_profit_lamports >= 9223372036854775807",
        "probability == 0.1",
        "probability == 0.30000000000000004",
        "probability != 0.1",
        "probability < 0.3",
        "probability >= 0.3",
        "probability in [0.1, 0.3, 7]",
        "probability not in [0.1, 0.3]",
        "features == 0.1",
        "features != 0.1",
        "features > 1e29",
        "features in [0, 0.1]",
        "features not in [0.1]",
        'route.dex == "orca"',
        'route.dex != "orca"',
        'route.dex not in ["orca"]',
        "route.amount_in > 4",
        "route.amount_in in [18446744073709551615]",
        "simulated == true",
        "simulated != true",
        "simulated in [false]",
        'kind == "a\'b\\\\c\\"d\\n\\t{p:String} é\u2028\U0001f40d--"',
        'kind > "\uffed"',
        'id <= "orca"',
        'id in ["two", "\U0001f40d", "a\'b"]',
    ],
    "sandwich": [
        'victims == "x"',
        'victims != "x"',
        'victims not in ["x", "y"]',
        'victims in ["y", "z"]',
    ],
    "agent_metrics": [
        "gauges.cpu > 0.4",
        "gauges.cpu != 0.5",
        "gauges.cpu not in [0.5]",
        'gauges."a\'b\\\\c\\"d\\n\\t{p:String} é\u2028\U0001f40d--" == 0',
        "counters.n in [18446744073709551615]",
        "counters.none != 3",
    ],
    "tick": ["bid_price == 0", "bid_price in [0]", "bid_price > 0", "timestamp_ns < 0"],
}


@pytest.fixture(scope="module")
def filled(store: ClickHouse) -> ClickHouse:
    """Give the engine with the events."""
    empty(store)
    for name, messages in EVENTS.items():
        put(store, name, messages)
    return store


def by_query(store: ClickHouse, name: str, conditions: Sequence[str]) -> list[str]:
    key = EVENT_TYPES[name].key
    statement = Statements(checked(name, columns=[key], filter=conditions), store.database).part(
        None, _end(name), 100
    )
    return sorted(row[0] for row in store.rows(statement.sql, statement.values))


def by_filter(name: str, conditions: Sequence[str]) -> list[str]:
    event, messages = EVENT_TYPES[name], EVENTS[name]
    rows = parse(list(conditions), [event]).select(
        Columns(event, [message.SerializeToString() for message in messages])
    )
    keys = [getattr(message, event.key) for message in messages]
    return sorted(keys if rows is None else [keys[row] for row in rows])


def _end(name: str) -> list[object]:
    first = EVENT_TYPES[name].order_by[0]
    return [2**64 - 1 if first == "slot" else 2**63 - 1, "\U0010ffff"]


@pytest.mark.parametrize(
    ("name", "condition"),
    [(name, condition) for name, all_ in CONDITIONS.items() for condition in all_],
)
def test_a_condition_selects_what_it_selects_in_the_stream(
    filled: ClickHouse, name: str, condition: str
) -> None:
    assert by_query(filled, name, [condition]) == by_filter(name, [condition])


def test_the_conditions_tell_events_apart() -> None:
    for name, conditions in CONDITIONS.items():
        assert {len(by_filter(name, [condition])) for condition in conditions} - {
            0,
            len(EVENTS[name]),
        }


def test_conditions_hold_together(filled: ClickHouse) -> None:
    conditions = ["slot >= 2", 'route.dex == "orca"', "simulated == false"]
    assert (
        by_query(filled, "opportunity", conditions)
        == ["two"]
        == by_filter("opportunity", conditions)
    )


def test_long_lists_are_bound_whole(filled: ClickHouse) -> None:
    keys = ", ".join(f'"key-{number}"' for number in range(20_000))
    assert by_query(filled, "opportunity", [f'id in [{keys}, "two"]']) == ["two"]
