"""``/api/datasets``."""

from typing import Any

from fastapi import APIRouter

from mev.auth.dependencies import DatasetsRead
from mev.wire.registry import event_type


def router() -> APIRouter:
    """Return the routes of datasets."""
    routes = APIRouter(prefix="/api/datasets", tags=["datasets"])

    @routes.get("/schema/{type}", summary="Describe a dataset type")
    async def schema(_: DatasetsRead, type: str) -> dict[str, Any]:  # noqa: A002 - the parameter's public name
        """Fields with types, units and descriptions, as the Protobuf sources declare them, and the JSON Schema of one event."""
        return event_type(type).dataset_schema()

    return routes
