"""SQL of the statistics: every value is bound, only own names are part of the text.

An event counts at its time field; if it has none, or 0 (unknown), at the time when it was stored.
Repeated events count once. Simulated events are never in one sum with others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mev.stats.window import InvalidStatsQueryError, TimeWindow
from mev.wire.registry import EVENT_TYPES, EventType

SOL_MINT = "So11111111111111111111111111111111111111112"
_CHAIN = ("arbitrage", "sandwich", "liquidation")
_LATEST_SLOTS = 150
"""A blockhash is valid for so many slots: no bundle lands later after its opportunity."""
_STORED_NS = "toUnixTimestamp64Milli(_stored_at) * 1000000"
_IN_WINDOW = (
    "time_ns >= {from_ns:Int64} AND time_ns < {to_ns:Int64} AND has({simulated:Array(Bool)}, "
    "simulated)"
)
_STEP = "intDiv(time_ns - {from_ns:Int64}, {step_ns:Int64})"


class Simulated(StrEnum):
    """Which events count: real ones, all (in separate series and rows), or simulated ones."""

    EXCLUDE = "exclude"
    INCLUDE = "include"
    ONLY = "only"


class Source(StrEnum):
    """Which trades count: bundles of agents, or transactions of all signers on the chain."""

    BUNDLES = "bundles"
    CHAIN = "chain"


class GroupBy(StrEnum):
    """A column by which trades are grouped."""

    AGENT = "agent"
    SIGNER = "signer"
    VENUE = "venue"
    SERVICE = "service"
    TYPE = "type"


class Measure(StrEnum):
    """A figure of a group of trades."""

    COUNT = "count"
    LANDED = "landed"
    PROFIT = "profit_lamports"
    OTHER_PROFIT = "profit_in_other_tokens"
    TIP = "tip_lamports"


GROUPS = {
    Source.BUNDLES: (GroupBy.AGENT, GroupBy.VENUE),
    Source.CHAIN: (GroupBy.TYPE, GroupBy.SIGNER, GroupBy.VENUE, GroupBy.SERVICE),
}
_SUMS = {
    Measure.COUNT: "toInt128(count())",
    Measure.LANDED: "toInt128(countIf(landed))",
    Measure.PROFIT: "sum(toInt128(profit))",
    Measure.OTHER_PROFIT: "toInt128(countIf(other_profit))",
    Measure.TIP: "sum(toInt128(tip))",
}
MEASURES = tuple(Measure)
_Values = dict[str, object]


@dataclass(frozen=True, slots=True)
class StatsQuery:
    """SQL and the values bound in it."""

    sql: str
    values: _Values


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeQuery:
    """Which trades count, how they are grouped, and which figure ranks the groups.

    Without `by` all trades are in one group. With `names`, only these groups count. Unless it is
    `exact`, a bundle that was stored twice may count twice; the query is then faster.

    :raises InvalidStatsQueryError: if trades of `source` have no such group.
    """

    source: Source
    by: GroupBy | None
    order: Measure
    window: TimeWindow
    simulated: Simulated
    names: tuple[str, ...] = ()
    exact: bool = True

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in GROUPS[self.source]:
            raise InvalidStatsQueryError(
                f"by: {self.source} cannot be grouped by {self.by}; "
                f"choose {', '.join(GROUPS[self.source])}",
                parameter="by",
            )
        if self.names and self.by is None:
            raise InvalidStatsQueryError("name: requires by", parameter="name")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEnd:
    """Last row of a page of the top list."""

    value: int
    name: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class StatsQueries:
    """Builds queries over the tables of `database`, each with `limits` as its ``SETTINGS``."""

    database: str
    limits: str

    def events(
        self, events: Sequence[EventType], window: TimeWindow, simulated: Simulated
    ) -> StatsQuery:
        """Return rows of type, simulated, step and count."""
        sources = " UNION ALL ".join(
            f"SELECT '{event.name}' AS name, {_simulated(event)} AS simulated, "
            f"{_time(event)} AS time_ns FROM {self._table(event)} FINAL"
            for event in events
        )
        sql = (
            f"SELECT name, simulated, {_STEP} AS step, count() "
            f"FROM ({sources}) WHERE {_IN_WINDOW} GROUP BY name, simulated, step"
        )
        return self._limited(sql, {**_bound(window, simulated), "step_ns": window.step_ns})

    def trades(self, query: TradeQuery, shown: Sequence[str]) -> StatsQuery:
        """Return rows of name (null for all groups not in `shown`), simulated, step, measures."""
        sql = (
            "SELECT if(has({shown:Array(String)}, name), name, NULL) AS shown, "
            f"simulated, {_STEP} AS step, {', '.join(_SUMS.values())} "
            f"{self._rows(query)} GROUP BY shown, simulated, step"
        )
        values = {
            **_values(query),
            "step_ns": query.window.step_ns,
            "shown": list(shown),
        }
        return self._limited(sql, values)

    def top_names(self, query: TradeQuery, limit: int) -> StatsQuery:
        """Return the names of the first `limit` groups."""
        sql = (
            f"SELECT name {self._rows(query)} "
            f"GROUP BY name ORDER BY -{_SUMS[query.order]}, name LIMIT {limit:d}"
        )
        return self._limited(sql, _values(query))

    def top(self, query: TradeQuery, after: PageEnd | None, limit: int) -> StatsQuery:
        """Return up to `limit` rows of name, simulated and measures, in order."""
        values = _values(query)
        value, having = f"-{_SUMS[query.order]}", ""
        if after is not None:
            values |= {
                "after_value": str(-after.value),
                "after_name": after.name,
                "after_simulated": after.simulated,
            }
            having = (
                f"HAVING ({value}, name, simulated) > "
                "({after_value:Int128}, {after_name:String}, {after_simulated:Bool}) "
            )
        sql = (
            f"SELECT name, simulated, {', '.join(_SUMS.values())} "
            f"{self._rows(query)} GROUP BY name, simulated "
            f"{having}ORDER BY {value}, name, simulated LIMIT {limit:d}"
        )
        return self._limited(sql, values)

    def _limited(self, sql: str, values: _Values) -> StatsQuery:
        return StatsQuery(f"{sql} SETTINGS {self.limits}", values)

    def _table(self, event: EventType) -> str:
        return f"`{self.database}`.`{event.table}`"

    def _rows(self, query: TradeQuery) -> str:
        if query.source is Source.CHAIN:
            rows = " UNION ALL ".join(self._chain(EVENT_TYPES[name], query.by) for name in _CHAIN)
        else:
            rows = self._bundles(query.by, exact=query.exact)
        chosen = " AND has({names:Array(String)}, name)" if query.names else ""
        return f"FROM ({rows}) WHERE {_IN_WINDOW}{chosen}"

    def _chain(self, event: EventType, by: GroupBy | None) -> str:
        tip, arrays = "tip_lamports", ""
        match by:
            case GroupBy.VENUE:
                name, arrays = "each", "LEFT ARRAY JOIN arrayDistinct(venues) AS each"
            case GroupBy.SERVICE:
                name, arrays = (
                    "each",
                    ("LEFT ARRAY JOIN arrayDistinct(arrayMap(paid -> paid.service, tips)) AS each"),
                )
                tip = (
                    "if(empty(tips), tip_lamports, arraySum(arrayMap("
                    "paid -> if(paid.service = each, paid.lamports, 0), tips)))"
                )
            case GroupBy.SIGNER:
                name = "signer"
            case _:
                name = f"'{event.name}'"
        return (
            f"SELECT {name} AS name, false AS simulated, {_time(event)} AS time_ns, "
            f"true AS landed, if(profit_mint = '{SOL_MINT}', profit_amount, 0) AS profit, "
            f"profit_mint != '{SOL_MINT}' AND profit_amount != 0 AS other_profit, {tip} AS tip "
            f"FROM {self._table(event)} FINAL {arrays}"
        )

    def _bundles(self, by: GroupBy | None, *, exact: bool) -> str:
        event = EVENT_TYPES["bundle"]
        name, joined = ("each", self._venues(event)) if by is GroupBy.VENUE else ("agent_id", "")
        return (
            f"SELECT {name} AS name, simulated, {_time(event)} AS time_ns, landed, "
            "profit_lamports AS profit, false AS other_profit, tip_lamports AS tip "
            f"FROM {self._table(event)} {'FINAL' if exact else ''} {joined}"
        )

    def _venues(self, bundle: EventType) -> str:
        """Return the join of bundles with the venues of their opportunities.

        Its hash table holds only the opportunities of the bundles in the window; by their slots,
        most of the table is skipped.
        """
        in_window = (
            f"FROM {self._table(bundle)} "
            f"WHERE {_time(bundle)} >= {{from_ns:Int64}} AND {_time(bundle)} < {{to_ns:Int64}}"
        )
        first = f"SELECT min(slot) - least(min(slot), {_LATEST_SLOTS}) {in_window}"
        return (
            "LEFT ANY JOIN (SELECT id, arrayDistinct(arrayMap(leg -> leg.dex, route)) AS venues "
            f"FROM {self._table(EVENT_TYPES['opportunity'])} "
            f"WHERE slot >= ({first}) AND id IN (SELECT opportunity_id {in_window})) AS seen "
            "ON opportunity_id = seen.id LEFT ARRAY JOIN venues AS each"
        )


def _values(query: TradeQuery) -> _Values:
    return {**_bound(query.window, query.simulated), "names": list(query.names)}


def _bound(window: TimeWindow, simulated: Simulated) -> _Values:
    flags = {
        Simulated.EXCLUDE: [False],
        Simulated.INCLUDE: [False, True],
        Simulated.ONLY: [True],
    }
    return {"from_ns": window.from_ns, "to_ns": window.to_ns, "simulated": flags[simulated]}


def _simulated(event: EventType) -> str:
    return "simulated" if "simulated" in event.clickhouse_types else "false"


def _time(event: EventType) -> str:
    name = next((field.name for field in event.fields if field.time), None)
    return f"if(`{name}` > 0, `{name}`, {_STORED_NS})" if name else _STORED_NS
