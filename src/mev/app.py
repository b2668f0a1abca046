"""The HTTP application: routers, the fast lane before them, the gate before both, problem JSON for every error, a metric for every request.

An endpoint that asks for no permission and is not on the gate's short public list keeps the application from starting.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

import mev
from mev.auth.browser import Headers
from mev.auth.dependencies import permission_of
from mev.auth.model import Permission
from mev.core import asgi
from mev.core.errors import MevError
from mev.docs import Access, add_docs
from mev.gate import PUBLIC_FOLDERS, Gate, is_public

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


class MalformedBodyError(MevError):
    """The body is not JSON."""

    code = "malformed_body"
    status = 400


class UnprotectedRouteError(Exception):
    """An endpoint asks for no permission."""


class Lane:
    """An ASGI application in front of the framework: `method` on `path`, or on every path below it when it ends in ``{...}``.

    A lane without a permission is public and passes no gate at all.
    """

    def __init__(self, method: str, path: str, app: asgi.App, openapi: Mapping[str, Any], permission: Permission | None = None) -> None:
        self.method = method
        self.path = path
        self.app = app
        self.permission = permission
        self.openapi = openapi
        self._prefix, self._open, _ = path.partition("{")

    def takes(self, method: str, path: str) -> bool:
        """Say whether a request is this lane's."""
        return method == self.method and (path.startswith(self._prefix) if self._open else path == self._prefix)


def create_app(routers: Sequence[APIRouter], lanes: Sequence[Lane], gate: Gate) -> asgi.App:
    """Return the ASGI application of `routers` with `lanes` before them and `gate` before both.

    :raises UnprotectedRouteError: when an endpoint is open that is not on the public list.
    """
    app = FastAPI(
        title="MEV control plane",
        version=mev.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for router in routers:
        app.include_router(router)
    add_docs(app, {(lane.method, lane.path): lane.openapi for lane in lanes}, lambda: _access(app, lanes))
    _add_error_handlers(app)
    _access(app, lanes)
    return _Front(app, lanes, gate)


class _Front:
    """Sends a request through the gate to its lane or to the framework, and counts it."""

    def __init__(self, app: FastAPI, lanes: Sequence[Lane], gate: Gate) -> None:
        self._app = app
        self._lanes = lanes
        self._gate = gate
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}  # looking labels up costs as much as the rest

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        lane = self._lane(scope["method"], scope["path"])
        more = [] if lane and lane.permission is None else self._gate.answer_headers(scope)

        async def counted(message: asgi.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if more:
                    message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._answer(scope, receive, counted, lane, more)
        finally:
            route = lane.path if lane else getattr(scope.get("route"), "path", _OTHER)
            self._count(route, scope["method"], status, time.perf_counter() - started)

    def _lane(self, method: str, path: str) -> Lane | None:
        for lane in self._lanes:
            if lane.takes(method, path):
                return lane
        return None

    def _count(self, route: str, method: str, status: int, seconds: float) -> None:
        key = route, method if method in _METHODS else _OTHER, status
        if (counters := self._counters.get(key)) is None:
            counters = self._counters[key] = REQUESTS.labels(*key), SECONDS.labels(route)
        counters[0].inc()
        counters[1].observe(seconds)

    async def _answer(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send, lane: Lane | None, more: Headers) -> None:
        if lane is None or lane.permission is not None:
            try:
                preflight = self._gate.preflight(scope)
                if preflight is not None:
                    more += preflight
                    await asgi.respond(send, 204, b"")
                    return
                receive = await self._gate.admit(scope, receive, more, lane.permission if lane else None, in_lane=lane is not None)
            except MevError as error:
                await asgi.respond_problem(send, error)
                return
            except asgi.ClientGoneError:
                return
        await (lane.app if lane else self._app)(scope, receive, send)


def _access(app: FastAPI, lanes: Sequence[Lane]) -> Access:
    """Return what each endpoint asks for, None where it is public.

    :raises UnprotectedRouteError: naming those that should ask for something.
    """
    found = {(lane.method, lane.path): lane.permission for lane in lanes}
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route.original_route, "dependant", None)
        permission = permission_of(dependant) if dependant else None
        for method in route.methods or {"MOUNT"}:
            found[method, f"{route.path}/" if method == "MOUNT" else str(route.path)] = permission
    open_ones = [
        f"{method} {path}" for (method, path), permission in found.items() if permission is None and not _may_be_open(method, path)
    ]
    if open_ones:
        raise UnprotectedRouteError(f"no permission is asked for by {', '.join(open_ones)}; list a type of mev.auth.dependencies there")
    return found


def _may_be_open(method: str, path: str) -> bool:
    return path in PUBLIC_FOLDERS if method == "MOUNT" else is_public(method, path)


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
    if error.status_code == HTTPStatus.BAD_REQUEST and error.__cause__ is not None:
        return _unreadable(error.__cause__)
    status = HTTPStatus(error.status_code)
    answer = HttpError(f"{status.phrase}: see /docs for the paths and methods there are")
    answer.code, answer.status = status.name.lower(), status.value  # type: ignore[misc]
    return answer


def _unreadable(cause: BaseException) -> MevError:
    """Return why the framework could not read a body."""
    if isinstance(cause, RecursionError):
        return MalformedBodyError("the body is JSON that is nested too deeply")
    return MalformedBodyError(f"the body cannot be read as JSON: {cause}")


def _problem(error: MevError) -> Response:
    headers = {name.decode(): value.decode() for name, value in asgi.problem_headers(error)}
    return Response(asgi.problem_body(error), error.status, headers, asgi.PROBLEM_JSON)
