"""Liveness (a raw ASGI route), readiness, load and metrics."""

from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mev.auth.dependencies import MetricsRead
from mev.core import asgi
from mev.host.health import Readiness
from mev.host.performance import Performance
from mev.host.pipeline import Pipeline, PipelineStatus
from mev.host.source import HealthSource, SystemLoad

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


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthDetails:
    """Readiness, and the state of the path of events in this process."""

    readiness: Readiness
    pipeline: PipelineStatus


def router(source: HealthSource) -> APIRouter:
    """Return the routes of readiness, load and metrics, answered by `source`."""
    routes, pipeline = APIRouter(), Pipeline()

    @routes.get(
        "/api/health/ready",
        tags=["health"],
        summary="Ask every dependency",
        responses={503: {"model": Readiness}},
    )
    async def ready(response: Response) -> Readiness:
        """Return 200 if every required dependency answers, else 503, with latencies and errors."""
        readiness = await source.readiness()
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
        return HealthDetails(readiness=await source.readiness(), pipeline=pipeline.status())

    @routes.get(
        "/api/health/metrics/system",
        tags=["health"],
        summary="Show the load of the machine and the processes",
    )
    async def system(_: MetricsRead) -> SystemLoad:
        """Return processors, memory, disks, network, open files, event loops and collections.

        Rates and shares cover the latest `window_s`: the time since an earlier request, or since
        the start.
        """
        return await source.system()

    @routes.get(
        "/api/health/metrics/performance",
        tags=["health"],
        summary="Show latencies and rates of the latest minute",
    )
    async def performance(_: MetricsRead) -> Performance:
        """Return quantiles and rates of each stage and route, from the histograms of `/metrics`.

        Stages: `http`; `publish` to the brokers' acknowledgement; `receive`, `flush` and `queue`
        of the stream; `insert` of a block into ClickHouse. They cover the latest `window_s`: the
        time since an earlier request, or since the start.
        """
        return await source.performance()

    @routes.get(
        "/metrics", tags=["health"], summary="Metrics for Prometheus", response_class=Response
    )
    async def metrics(_: MetricsRead) -> Response:
        """Return all metrics in the Prometheus text format, after a check of every dependency."""
        await source.readiness()
        return Response(await source.metrics(), media_type=CONTENT_TYPE_LATEST)

    return routes
