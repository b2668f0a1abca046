"""Statistics over ClickHouse; all calls block."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mev.core.paging import InvalidCursorError, decode_cursor, encode_cursor, page_of
from mev.stats.query import (
    MEASURES,
    Measure,
    PageEnd,
    Simulated,
    StatsQueries,
    StatsQuery,
    TradeQuery,
)
from mev.stats.window import InvalidStatsQueryError, TimeWindow, window
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import EventType

_MEMORY_BYTES = 1 << 30
"""Of one query: the embedded engine shares the memory of the control plane."""
_Key = tuple[str | None, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSeries:
    """Number of events of one type in each step."""

    type: str
    simulated: bool
    count: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStats:
    """Event counts over time; `times_ns` are the starts of the steps."""

    from_ns: int
    to_ns: int
    step_s: int
    times_ns: list[int]
    series: list[EventSeries]


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeSeries:
    """Figures of one group of trades in each step; the name is null for all other groups."""

    name: str | None
    simulated: bool
    count: list[int]
    landed: list[int]
    profit_lamports: list[int]
    profit_in_other_tokens: list[int]
    tip_lamports: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeStats:
    """Figures of trades over time; `times_ns` are the starts of the steps."""

    from_ns: int
    to_ns: int
    step_s: int
    times_ns: list[int]
    series: list[TradeSeries]


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeTotals:
    """Figures of one group of trades in the window."""

    name: str
    simulated: bool
    count: int
    landed: int
    profit_lamports: int
    profit_in_other_tokens: int
    tip_lamports: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTrades:
    """A page of groups of trades, and the cursor of the next page."""

    from_ns: int
    to_ns: int
    items: Sequence[TradeTotals]
    next_cursor: str | None


class Stats:
    """Statistics of the events in `clickhouse`; a query takes at most `timeout_s`."""

    def __init__(self, clickhouse: ClickHouse, timeout_s: float) -> None:
        self._clickhouse = clickhouse
        self._statements = StatsQueries(
            clickhouse.database,
            f"max_execution_time = {timeout_s:g}, max_memory_usage = {_MEMORY_BYTES}",
        )

    def events(
        self, events: Sequence[EventType], window: TimeWindow, simulated: Simulated
    ) -> EventStats:
        """Return the number of events of each type over time."""
        series: dict[tuple[str, bool], list[int]] = {}
        for name, flag, step, count in self._rows(
            self._statements.events(events, window, simulated)
        ):
            series.setdefault((name, flag), [0] * window.steps)[step] = count
        return EventStats(
            from_ns=window.from_ns,
            to_ns=window.to_ns,
            step_s=window.step_s,
            times_ns=window.times_ns,
            series=[
                EventSeries(type=name, simulated=flag, count=counts)
                for (name, flag), counts in sorted(series.items())
            ],
        )

    def trades(self, query: TradeQuery, limit: int) -> TradeStats:
        """Return the figures over time of the first `limit` groups.

        All other groups are summed in one series.
        """
        names: list[str] = []
        if query.by is not None:
            names = [name for (name,) in self._rows(self._statements.top_names(query, limit))]
        span, series = query.window, dict[_Key, dict[Measure, list[int]]]()
        for name, flag, step, *values in self._rows(self._statements.trades(query, names)):
            figures = series.setdefault(
                (name, flag), {measure: [0] * span.steps for measure in MEASURES}
            )
            for measure, value in zip(MEASURES, values, strict=True):
                figures[measure][step] = value
        ranked = [(name, flag) for name in (*names, None) for flag in (False, True)]
        return TradeStats(
            from_ns=span.from_ns,
            to_ns=span.to_ns,
            step_s=span.step_s,
            times_ns=span.times_ns,
            series=[
                TradeSeries(name=key[0], simulated=key[1], **series[key])
                for key in ranked
                if key in series
            ],
        )

    def top(self, query: TradeQuery, *, limit: int, cursor: str | None) -> TopTrades:
        """Return up to `limit` groups after `cursor`, in the window of the first page.

        :raises InvalidCursorError: if the cursor is not one of this list.
        """
        after = None
        if cursor:
            span, after = _position(cursor, query)
            query = replace(query, window=span)
        rows = [
            TradeTotals(name=name, simulated=flag, **dict(zip(MEASURES, values, strict=True)))
            for name, flag, *values in self._rows(self._statements.top(query, after, limit + 1))
        ]
        items, following = page_of(rows, limit, lambda last: _cursor(query, last))
        return TopTrades(
            from_ns=query.window.from_ns,
            to_ns=query.window.to_ns,
            items=items,
            next_cursor=following,
        )

    def _rows(self, statement: StatsQuery) -> Sequence[Sequence[Any]]:
        return self._clickhouse.rows(statement.sql, statement.values)


def _cursor(query: TradeQuery, last: TradeTotals) -> str:
    # A sum may have more than 64 bits.
    position = [str(getattr(last, query.order)), last.name, last.simulated]
    return encode_cursor([_list_of(query), query.window.from_ns, query.window.to_ns, *position])


def _position(cursor: str, query: TradeQuery) -> tuple[TimeWindow, PageEnd]:
    match decode_cursor(cursor):
        case [str(name), int(from_ns), int(to_ns), str(value), str(group), bool(simulated)]:
            if name == _list_of(query):
                try:
                    return (
                        window(str(from_ns), str(to_ns), None, now_ns=0),
                        PageEnd(value=int(value), name=group, simulated=simulated),
                    )
                except (ValueError, InvalidStatsQueryError):
                    raise InvalidCursorError from None
    raise InvalidCursorError


def _list_of(query: TradeQuery) -> str:
    digest = hashlib.sha256("\0".join(query.names).encode()).hexdigest()[:16]
    return f"{query.source} {query.by} {query.order} {query.simulated} {digest}"
