"""``GET /api/events/{type}``."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from mev.auth.dependencies import EventsRead
from mev.core.query import QueryInt
from mev.ingest.recent import MAX_PAGE, History
from mev.wire.registry import event_type


def router(history: History) -> APIRouter:
    """Return the routes that read events back."""
    routes = APIRouter(tags=["events"])

    @routes.get("/api/events/{type}", summary="List recent events, newest first")
    async def recent(
        _: EventsRead,
        request: Request,
        type: str,  # noqa: A002 - the parameter's public name
        limit: Annotated[QueryInt, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: str | None = None,
    ) -> Response:
        """Filter by any field: `field=value`, `field_min=value`, `field_max=value`.

        A list field matches if one of its elements does. Each item has its `partition` and `offset`
        in the stream's log, null if it was stored from an earlier log. A subscription from the
        page's `resume` starts directly after the events of this list.
        """
        filters = {
            name: value
            for name, value in request.query_params.items()
            if name not in {"limit", "cursor"}
        }
        page = await asyncio.to_thread(
            history.page, event_type(type), filters, limit=limit, cursor=cursor
        )
        return Response(page.body(), media_type="application/json")

    return routes
