"""Routes of the statistics."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter

from mev.auth.dependencies import EventsRead
from mev.auth.model import Principal
from mev.core.clock import now_ns
from mev.core.query import QueryInt
from mev.core.tasks import Turns
from mev.stats.query import GroupBy, Measure, Simulated, Source, TradeQuery
from mev.stats.service import EventStats, Stats, TopTrades, TradeStats
from mev.stats.window import MAX_STEPS, window
from mev.wire.registry import EVENT_TYPES, event_type

MAX_PAGE = 1000
MAX_SERIES = 20
_CONCURRENT = 2
"""Queries at once, one of each user; others wait and leave threads and processors to the rest."""
From = Annotated[
    str | None,
    Query(
        alias="from",
        description="Not before this time: RFC 3339 with its offset from UTC, or nanoseconds since "
        "1970. An hour before `to` by default.",
    ),
]
To = Annotated[
    str | None,
    Query(alias="to", description="Before this time, in the same forms. Now by default."),
]
Step = Annotated[
    QueryInt | None,
    Query(
        ge=1,
        le=10**9,
        description=f"Seconds of a step; at most {MAX_STEPS} steps. By default there are up to "
        "100 steps.",
    ),
]
SimulatedParameter = Annotated[
    Simulated,
    Query(
        alias="simulated",
        description="`exclude` simulated events, `include` them in series and rows of their own, "
        "or return `only` them.",
    ),
]
SourceParameter = Annotated[
    Source,
    Query(
        alias="source",
        description="`bundles` of agents, or transactions of all signers on the `chain`.",
    ),
]
Order = Annotated[Measure, Query(description="Figure that ranks the groups, greatest first.")]
Names = Annotated[
    list[str] | None,
    Query(max_length=MAX_PAGE, description="Only these groups; may be repeated."),
]
_EVENT_STATS = TypeAdapter(EventStats)
_TRADE_STATS = TypeAdapter(TradeStats)
_TOP_TRADES = TypeAdapter(TopTrades)


def router(stats: Stats) -> APIRouter:
    """Return the routes of the statistics."""
    routes = APIRouter(prefix="/api/stats", tags=["stats"])
    places, turns = asyncio.Semaphore(_CONCURRENT), Turns()

    async def answer(
        who: Principal, adapter: TypeAdapter[Any], query: Callable[[], Any]
    ) -> Response:
        # The turn is first: all the requests of one user take one place.
        async with turns.turn(who.user or who.id), places:
            # The document may be long, so it is written outside the event loop.
            body = await asyncio.to_thread(lambda: adapter.dump_json(query()))
        return Response(body, media_type="application/json")

    @routes.get("/events", summary="Count events over time by type", response_model=EventStats)
    async def events(
        who: EventsRead,
        start: From = None,
        end: To = None,
        step_s: Step = None,
        type: Annotated[  # noqa: A002 - the parameter's public name
            list[str] | None, Query(description="All types by default.")
        ] = None,
        simulated: SimulatedParameter = Simulated.EXCLUDE,
    ) -> Response:
        """Return one series for each type with events, with one count for each step."""
        types = [event_type(name) for name in dict.fromkeys(type or EVENT_TYPES)]
        span = window(start, end, step_s, now_ns=now_ns())
        return await answer(who, _EVENT_STATS, lambda: stats.events(types, span, simulated))

    @routes.get(
        "/trades",
        summary="Sum profit, tips and landed trades over time",
        response_model=TradeStats,
    )
    async def trades(
        who: EventsRead,
        start: From = None,
        end: To = None,
        step_s: Step = None,
        source: SourceParameter = Source.BUNDLES,
        by: Annotated[
            GroupBy | None, Query(description="All trades in one series by default.")
        ] = None,
        order: Order = Measure.PROFIT,
        limit: Annotated[
            QueryInt, Query(ge=1, le=MAX_SERIES, description="Groups with a series.")
        ] = 10,
        simulated: SimulatedParameter = Simulated.EXCLUDE,
        name: Names = None,
    ) -> Response:
        """Return one series for each of the first groups, and one for all others (name null).

        The landed share of a step is `landed` divided by `count`.
        """
        span = window(start, end, step_s, now_ns=now_ns())
        query = TradeQuery(
            source=source,
            by=by,
            order=order,
            window=span,
            simulated=simulated,
            names=tuple(name or ()),
        )
        return await answer(who, _TRADE_STATS, lambda: stats.trades(query, limit))

    @routes.get(
        "/trades/top", summary="List the top agents, signers or venues", response_model=TopTrades
    )
    async def top(
        who: EventsRead,
        by: GroupBy,
        start: From = None,
        end: To = None,
        source: SourceParameter = Source.BUNDLES,
        order: Order = Measure.PROFIT,
        limit: Annotated[QueryInt, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: str | None = None,
        simulated: SimulatedParameter = Simulated.EXCLUDE,
        name: Names = None,
    ) -> Response:
        """Return totals over the window, greatest first; the cursor keeps the window."""
        span = window(start, end, None, now_ns=now_ns())
        query = TradeQuery(
            source=source,
            by=by,
            order=order,
            window=span,
            simulated=simulated,
            names=tuple(name or ()),
        )
        return await answer(who, _TOP_TRADES, lambda: stats.top(query, limit=limit, cursor=cursor))

    return routes
