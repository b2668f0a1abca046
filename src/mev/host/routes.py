"""Readiness and metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mev.auth.dependencies import MetricsRead
from mev.host.health import Health, Readiness


def router(health: Health) -> APIRouter:
    """Return the routes that say how things are."""
    routes = APIRouter()

    @routes.get("/api/health/ready", tags=["health"], summary="Ask every dependency", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        """200 when every required dependency answers, 503 otherwise; either way each one's latency and error."""
        readiness = await health.readiness()
        response.status_code = 200 if readiness.ready else 503
        return readiness

    @routes.get("/metrics", tags=["health"], summary="Metrics for Prometheus", response_class=Response)
    async def metrics(_: MetricsRead) -> Response:
        """All metrics in Prometheus' text format."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return routes
