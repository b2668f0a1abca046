"""``GET /api/sink/reconcile``."""

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel

from mev.auth.dependencies import MetricsRead
from mev.sink.reconcile import Coverage, Reconciler


class Reconciliation(BaseModel):
    """Result of a reconciliation; complete if every committed record is stored."""

    complete: bool
    items: list[Coverage]
    next_cursor: None = None


def router(reconciler: Reconciler) -> APIRouter:
    """Return the routes of the sink."""
    routes = APIRouter(tags=["sink"])

    @routes.get(
        "/api/sink/reconcile", summary="Prove that nothing is missing between Kafka and ClickHouse"
    )
    async def reconcile(_: MetricsRead) -> Reconciliation:
        """Compare the offsets in Kafka, the committed offsets, and the stored blocks."""
        coverage = await asyncio.to_thread(reconciler.coverage)
        return Reconciliation(
            complete=not any(partition.missing for partition in coverage), items=coverage
        )

    return routes
