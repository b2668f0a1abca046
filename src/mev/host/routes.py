"""Liveness (a raw ASGI route), readiness and metrics."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mev.auth.dependencies import MetricsRead
from mev.core import asgi
from mev.host.health import Readiness
from mev.host.pipeline import Pipeline, PipelineStatus

ALIVE_PATH = "/api/health/"
_ALIVE = b'{"status":"ok"}'
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(_ALIVE)),
    (b"cache-control", b"no-store"),
]
_START = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
_BODY = {"type": "http.response.body", "body": _ALIVE}

ALIVE_OPENAPI = {
    "tags": ["health"],
    "summary": "Say that the process is alive",
    "responses": {
        "200": {
            "description": "Alive.",
            "content": {"application/json": {"example": {"status": "ok"}}},
        }
    },
}


async def health_route(_scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
    """Answer that the process is alive."""
    await send(_START)
    await send(_BODY)


async def own_metrics() -> bytes:
    """Return the metrics of this process in the Prometheus text format."""
    return generate_latest()


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthDetails:
    """Readiness, and the state of the path of events in this process."""

    readiness: Readiness
    pipeline: PipelineStatus


def router(
    readiness_of: Callable[[], Awaitable[Readiness]],
    metrics_of: Callable[[], Awaitable[bytes]] = own_metrics,
) -> APIRouter:
    """Return the routes of readiness and metrics, with the functions that gather them."""
    routes, pipeline = APIRouter(), Pipeline()

    @routes.get(
        "/api/health/ready",
        tags=["health"],
        summary="Ask every dependency",
        responses={503: {"model": Readiness}},
    )
    async def ready(response: Response) -> Readiness:
        """Return 200 if every required dependency answers, else 503, with latencies and errors."""
        readiness = await readiness_of()
        response.status_code = 200 if readiness.ready else 503
        return readiness

    @routes.get(
        "/api/health/details",
        tags=["health"],
        summary="Show dependencies, lag, freshness and latencies",
    )
    async def details(_: MetricsRead) -> HealthDetails:
        """Return 200 also if the system is not ready.

        Stages: `publish` to the brokers' acknowledgement; `receive`, `flush` and `queue` of the
        stream; `insert` of a block into ClickHouse.
        """
        return HealthDetails(readiness=await readiness_of(), pipeline=pipeline.status())

    @routes.get(
        "/metrics", tags=["health"], summary="Metrics for Prometheus", response_class=Response
    )
    async def metrics(_: MetricsRead) -> Response:
        """Return all metrics in the Prometheus text format."""
        return Response(await metrics_of(), media_type=CONTENT_TYPE_LATEST)

    return routes
