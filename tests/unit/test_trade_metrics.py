"""Tests of the figures of trades in /metrics."""

from typing import cast

import pytest
from prometheus_client import REGISTRY

from mev.stats.metrics import MAX_NAMES, OTHER_NAMES, SETTLE_NS, TradeMetrics
from mev.stats.query import GroupBy, Simulated, TradeQuery
from mev.stats.service import Stats, TradeSeries, TradeStats
from mev.store.clickhouse import ClickHouseAwayError

SECOND_NS = 1_000_000_000


class ScriptedStats:
    """Statistics that return the same series of each agent for every query, and record queries."""

    def __init__(self, *agents: str | None) -> None:
        self.agents = agents
        self.queries: list[TradeQuery] = []
        self.profit = 5
        self.is_down = False

    def trades(self, query: TradeQuery, limit: int) -> TradeStats:
        assert limit == MAX_NAMES
        if self.is_down:
            raise ClickHouseAwayError("no answer")
        self.queries.append(query)
        names = self.agents if query.by is GroupBy.AGENT else ()
        return TradeStats(
            from_ns=0,
            to_ns=1,
            step_s=1,
            times_ns=[0],
            series=[
                TradeSeries(
                    name=name,
                    simulated=True,
                    count=[4],
                    landed=[1],
                    profit_lamports=[self.profit],
                    profit_in_other_tokens=[0],
                    tip_lamports=[2],
                )
                for name in names
            ],
        )


class Counting:
    """Trade metrics with a clock that goes on a second before each count."""

    def __init__(self, stats: ScriptedStats) -> None:
        self.now_ns = 100 * SECOND_NS
        self._metrics = TradeMetrics(cast("Stats", stats), clock=lambda: self.now_ns)

    def count(self) -> None:
        self.now_ns += SECOND_NS
        self._metrics.count()


def figure(name: str, agent: str) -> float | None:
    return REGISTRY.get_sample_value(
        f"mev_agent_{name}_total", {"agent": agent, "simulated": "true"}
    )


def test_figures_of_new_agent_follow_a_zero() -> None:
    counting = Counting(ScriptedStats("new"))
    counting.count()
    assert figure("bundles", "new") == 0
    counting.count()
    assert figure("bundles", "new") == 8
    assert figure("bundles_landed", "new") == 2
    assert figure("tip_lamports", "new") == 4


def test_profit_less_loss_is_the_profit() -> None:
    stats = ScriptedStats("trader")
    counting = Counting(stats)
    for profit in (5, -7, 1):
        stats.profit = profit
        counting.count()
    assert figure("profit_lamports", "trader") == 6
    assert figure("loss_lamports", "trader") == 7


def test_windows_follow_each_other_also_after_a_failure() -> None:
    stats = ScriptedStats()
    counting = Counting(stats)
    counting.count()
    stats.is_down = True
    with pytest.raises(ClickHouseAwayError):
        counting.count()
    stats.is_down = False
    counting.count()
    windows = [query.window for query in stats.queries if query.by is GroupBy.VENUE]
    assert [(one.from_ns, one.to_ns, one.steps) for one in windows] == [
        (100 * SECOND_NS - SETTLE_NS, 101 * SECOND_NS - SETTLE_NS, 1),
        (101 * SECOND_NS - SETTLE_NS, 103 * SECOND_NS - SETTLE_NS, 1),
    ]
    assert {query.simulated for query in stats.queries} == {Simulated.INCLUDE}


def test_labels_are_bounded() -> None:
    counting = Counting(ScriptedStats(*(f"bot-{number}" for number in range(MAX_NAMES + 2)), None))
    counting.count()
    counting.count()
    assert figure("bundles", f"bot-{MAX_NAMES - 1}") == 8
    assert figure("bundles", f"bot-{MAX_NAMES}") is None
    assert figure("bundles", OTHER_NAMES) == 3 * 8
