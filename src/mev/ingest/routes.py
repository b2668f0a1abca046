"""``GET /api/events/{type}``."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from mev.auth.dependencies import EventsRead
from mev.ingest.recent import MAX_PAGE, read_page
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import event_type


def router(clickhouse: ClickHouse, *, timeout_s: float) -> APIRouter:
    """Return the routes that read events back."""
    routes = APIRouter(tags=["events"])

    @routes.get("/api/events/{type}", summary="List recent events, newest first")
    async def recent(
        _: EventsRead,
        request: Request,
        type: str,  # noqa: A002 - the parameter's public name
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: str | None = None,
    ) -> Response:
        """Filter by any field: `field=value`, `field_min=value`, `field_max=value`; a list field matches one of its elements."""
        filters = {name: value for name, value in request.query_params.items() if name not in {"limit", "cursor"}}
        page = await asyncio.to_thread(read_page, clickhouse, event_type(type), filters, limit=limit, cursor=cursor, timeout_s=timeout_s)
        return Response(page.body(), media_type="application/json")

    return routes
