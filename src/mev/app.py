"""The HTTP application: routers, the fast lane before them, problem JSON for every error, a metric for every request."""

import logging
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib import resources
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

import mev
from mev.auth.master_key import AuthenticatedBrowser, MasterKey
from mev.core import asgi
from mev.core.errors import MevError

LOG = logging.getLogger(__name__)
REQUESTS = Counter("mev_http_requests_total", "HTTP requests.", ["route", "method", "status"])
SECONDS = Histogram("mev_http_seconds", "Time to answer.", ["route"], buckets=[0.0001 * 2**n for n in range(18)])
_OTHER = "other"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpError(MevError):
    """The request cannot be answered."""


class InvalidRequestError(MevError):
    """A parameter or the body does not fit the schema."""

    code = "invalid_request"
    status = 422


class Lane:
    """An ASGI application in front of the framework: `method` on `path`, or on every path below it when it ends in ``{...}``."""

    def __init__(self, method: str, path: str, app: asgi.App, openapi: Mapping[str, Any]) -> None:
        self.method = method
        self.path = path
        self.app = app
        self.openapi = openapi
        self._prefix, self._open, _ = path.partition("{")

    def takes(self, method: str, path: str) -> bool:
        """Say whether a request is this lane's."""
        return method == self.method and (path.startswith(self._prefix) if self._open else path == self._prefix)


def create_app(routers: Sequence[APIRouter], lanes: Sequence[Lane], master_key: MasterKey) -> asgi.App:
    """Return the ASGI application of `routers` with `lanes` before them."""
    app = FastAPI(
        title="MEV control plane",
        version=mev.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.master_key = master_key
    for router in routers:
        app.include_router(router)
    _add_docs(app, lanes)
    _add_error_handlers(app)
    return _Front(app, lanes)


class _Front:
    """Sends a request to its lane or to the framework, and counts it."""

    def __init__(self, app: FastAPI, lanes: Sequence[Lane]) -> None:
        self._app = app
        self._lanes = lanes

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        lane = next((lane for lane in self._lanes if lane.takes(scope["method"], scope["path"])), None)

        async def counted(message: asgi.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (lane.app if lane else self._app)(scope, receive, counted)
        finally:
            route = lane.path if lane else getattr(scope.get("route"), "path", _OTHER)
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            REQUESTS.labels(route, method, status).inc()
            SECONDS.labels(route).observe(time.perf_counter() - started)


def _add_docs(app: FastAPI, lanes: Sequence[Lane]) -> None:
    """Serve the OpenAPI document, lanes included, and a page to read it with no file from elsewhere."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for lane in lanes:
                document["paths"].setdefault(lane.path, {})[lane.method.lower()] = lane.openapi
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    assets = cast("Any", resources.files("fastapi_swagger") / "resources")
    app.mount("/docs/assets", StaticFiles(directory=assets))

    @app.get("/openapi.json", include_in_schema=False)
    async def document(_: AuthenticatedBrowser) -> dict[str, Any]:
        return openapi()

    @app.get("/docs", include_in_schema=False)
    async def docs(_: AuthenticatedBrowser) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )


def _add_error_handlers(app: FastAPI) -> None:
    async def known(_request: Request, error: Exception) -> Response:
        return _problem(cast("MevError", error))

    async def invalid(_request: Request, error: Exception) -> Response:
        places = [
            {"place": ".".join(map(str, item["loc"])), "reason": item["msg"]} for item in cast("RequestValidationError", error).errors()
        ]
        return _problem(InvalidRequestError("; ".join(f"{p['place']}: {p['reason']}" for p in places), errors=places))

    async def http(_request: Request, error: Exception) -> Response:
        return _problem(_http_error(cast("HTTPException", error)))

    async def unexpected(request: Request, error: Exception) -> Response:
        LOG.error("%s %s failed", request.method, request.url.path, exc_info=error, extra={"action": "http_error"})
        return _problem(HttpError("an error of ours; it is in the log"))

    app.add_exception_handler(MevError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _http_error(error: HTTPException) -> MevError:
    status = HTTPStatus(error.status_code)
    answer = HttpError(f"{status.phrase}: see /docs for the paths and methods there are")
    answer.code, answer.status = status.name.lower(), status.value  # type: ignore[misc]
    return answer


def _problem(error: MevError) -> Response:
    headers = {name.decode(): value.decode() for name, value in asgi.problem_headers(error)}
    return Response(asgi.problem_body(error), error.status, headers, asgi.PROBLEM_JSON)
