"""Figures of trades as metrics: what agents' bundles earned, by agent and by venue.

The stored events are read every few seconds, so that the path of events stays free of this work.
Figures count from the start of the process. Every replica counts all trades: take the maximum over
them, not the sum.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Counter

from mev.core.clock import Clock, now_ns
from mev.core.errors import MevError
from mev.stats.query import GroupBy, Measure, Simulated, Source, TradeQuery
from mev.stats.service import Stats, TradeSeries
from mev.stats.window import TimeWindow

LOG = logging.getLogger(__name__)
MAX_NAMES = 50
OTHER_NAMES = "other"
SETTLE_NS = 10_000_000_000
"""A block counts at its time of storing, and appears a moment later."""
_MOST_NS = 3_600_000_000_000
_SHARE = 20
"""A query that takes long is repeated only after so many times its duration."""


class _Figures(NamedTuple):
    bundles: Counter
    landed: Counter
    profit: Counter
    loss: Counter
    tip: Counter


def _figures(group: str) -> _Figures:
    labels = [group, "simulated"]
    return _Figures(
        Counter(f"mev_{group}_bundles_total", f"Bundles that agents sent, by {group}.", labels),
        Counter(f"mev_{group}_bundles_landed_total", f"Bundles that landed, by {group}.", labels),
        Counter(
            f"mev_{group}_profit_lamports_total",
            f"Profit after fees and tips, by {group}; subtract the loss.",
            labels,
        ),
        Counter(f"mev_{group}_loss_lamports_total", f"Loss, by {group}.", labels),
        Counter(f"mev_{group}_tip_lamports_total", f"Tips paid, by {group}.", labels),
    )


_GROUPS = {GroupBy.AGENT: _figures("agent"), GroupBy.VENUE: _figures("venue")}


class TradeMetrics:
    """Counts the bundles of `stats` that were stored since the start."""

    def __init__(self, stats: Stats, *, clock: Clock = now_ns) -> None:
        self._stats = stats
        self._clock = clock
        self._from_ns = clock() - SETTLE_NS
        self._names: dict[GroupBy, set[str]] = {group: set() for group in _GROUPS}
        self._known: set[tuple[GroupBy, tuple[str, str]]] = set()
        self._first: list[tuple[GroupBy, tuple[str, str], tuple[int, ...]]] = []
        """Figures of new labels: Prometheus must see 0 before it sees them."""

    async def run(self, every_s: float) -> None:
        """Count every `every_s` seconds, or less often if it takes long, until cancelled."""
        while True:
            started = time.monotonic()
            try:
                await asyncio.to_thread(self.count)
            except MevError as error:  # the next query includes the same time
                LOG.warning(
                    "trades are not counted for /metrics: %s",
                    error,
                    extra={"action": "trade_metrics_failed"},
                )
            await asyncio.sleep(max(every_s, _SHARE * (time.monotonic() - started)))

    def count(self) -> None:
        """Count what was stored since the last call; block meanwhile.

        :raises MevError: if ClickHouse does not answer; nothing is counted then.
        """
        to_ns = self._clock() - SETTLE_NS
        from_ns = max(self._from_ns, to_ns - _MOST_NS)
        if to_ns <= from_ns:
            return
        found = [(group, list(self._series(group, from_ns, to_ns))) for group in _GROUPS]
        self._from_ns = to_ns
        first, self._first = self._first, []
        for added in first:
            _add(*added)
        for group, series in found:
            for one in series:
                self._take(group, one)

    def _series(self, group: GroupBy, from_ns: int, to_ns: int) -> Iterator[TradeSeries]:
        length_s = -(-(to_ns - from_ns) // 1_000_000_000)
        query = TradeQuery(
            source=Source.BUNDLES,
            by=group,
            order=Measure.COUNT,
            window=TimeWindow(from_ns=from_ns, to_ns=to_ns, step_s=length_s),
            simulated=Simulated.INCLUDE,
            exact=False,
        )
        yield from self._stats.trades(query, MAX_NAMES).series

    def _take(self, group: GroupBy, series: TradeSeries) -> None:
        labels = self._label(group, series.name), str(series.simulated).lower()
        profit = sum(series.profit_lamports)
        values = (
            sum(series.count),
            sum(series.landed),
            max(0, profit),
            max(0, -profit),
            sum(series.tip_lamports),
        )
        if (group, labels) in self._known:
            _add(group, labels, values)
        else:
            self._known.add((group, labels))
            _add(group, labels, (0,) * len(values))
            self._first.append((group, labels, values))

    def _label(self, group: GroupBy, name: str | None) -> str:
        """Return the label of a group; the first names have one of their own."""
        known = self._names[group]
        if name is None or (name not in known and len(known) >= MAX_NAMES):
            return OTHER_NAMES
        known.add(name)
        return name or "unknown"


def _add(group: GroupBy, labels: tuple[str, str], values: tuple[int, ...]) -> None:
    for counter, value in zip(_GROUPS[group], values, strict=True):
        counter.labels(*labels).inc(value)
