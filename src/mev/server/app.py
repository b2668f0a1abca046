"""The HTTP application: gate, raw routes, framework routers, problem JSON, request metrics.

The application does not start if an endpoint requires no permission and is not on the gate's list
of public paths.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

import mev
from mev.auth.browser import SAFE_METHODS, Headers
from mev.auth.dependencies import permission_of
from mev.auth.model import Permission
from mev.core import asgi
from mev.core.asgi import ANONYMOUS, Sender
from mev.core.errors import MevError
from mev.core.files import disk_full
from mev.limits.protocol import ANY_PATH
from mev.server.gate import PUBLIC_FOLDERS, SENDER_KEY, Gate, is_public, peer_of
from mev.server.openapi import Access, add_docs

LOG = logging.getLogger(__name__)
REQUESTS = Counter("mev_http_requests_total", "HTTP requests.", ["route", "method", "status"])
SECONDS = Histogram(
    "mev_http_seconds", "Time to answer.", ["route"], buckets=[0.0001 * 2**n for n in range(18)]
)
_OTHER = "other"
_MOST_PATH = 100
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpError(MevError):
    """The request cannot be answered."""


class InvalidRequestError(MevError):
    """A parameter or the body does not fit the schema."""

    code = "invalid_request"
    status = 422


class MalformedJsonError(MevError):
    """The body is not JSON."""

    code = "malformed_body"
    status = 400


class MethodNotAllowedError(MevError):
    """The path does not support this method; the header Allow lists those it does."""

    code = "method_not_allowed"
    status = 405


class UnprotectedRouteError(Exception):
    """An endpoint requires no permission."""


class RawRoute:
    """An ASGI application that handles `method` on `path` before the framework.

    A path that ends in ``{...}`` matches every path one level below. A route without a permission
    is public and bypasses the gate.
    """

    def __init__(
        self,
        method: str,
        path: str,
        app: asgi.App,
        openapi: Mapping[str, Any],
        permission: Permission | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.app = app
        self.permission = permission
        self.openapi = openapi
        self._prefix, self._open, _ = path.partition("{")

    def is_at(self, path: str) -> bool:
        """Return whether `path` is this route's, for any method."""
        if not self._open:
            return path == self._prefix
        return path.startswith(self._prefix) and "/" not in path[len(self._prefix) :]

    def takes(self, method: str, path: str) -> bool:
        """Return whether this route handles a request; HEAD is handled as GET without the body."""
        return self.method == ("GET" if method == "HEAD" else method) and self.is_at(path)


Refused = Callable[[Sender, str, str, int], None]
"""Takes the sender, method, route and response status of a refused control request."""
_GUARDED = re.compile(r"/api/control/.*|/api/training/models/[^/]+/deploy")
_REFUSALS = frozenset({400, 401, 403, 404, 409, 422, 429})


def ignore_refused(_sender: Sender, _method: str, _route: str, _status: int) -> None:
    """Ignore a refused request."""


def create_app(
    routers: Sequence[APIRouter],
    raw_routes: Sequence[RawRoute],
    gate: Gate,
    *,
    refused: Refused = ignore_refused,
) -> asgi.App:
    """Return the ASGI application: `gate` first, then `raw_routes`, then `routers`.

    `refused` is called for each refused request that would have changed something in control.

    :raises UnprotectedRouteError: if an endpoint without a permission is not on the public list.
    """
    app = FastAPI(
        title="MEV control plane",
        version=mev.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would echo the client's Host header
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for router in routers:
        app.router.routes.extend(router.routes)  # to include it would build each route again
    add_docs(
        app,
        {(raw_route.method, raw_route.path): raw_route.openapi for raw_route in raw_routes},
        lambda: _access(app, raw_routes),
    )
    _answer_head(app)
    _add_error_handlers(app)
    _access(app, raw_routes)
    return _Front(app, raw_routes, gate, refused)


def _answer_head(app: FastAPI) -> None:
    """Add HEAD to every GET route of `app` (RFC 9110 9.1); the server omits the body."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute) and "GET" in (
            methods := route.methods or set()
        ):
            methods.add("HEAD")


class _Front:
    """Passes a request through the gate to its raw route or the framework, and counts it."""

    def __init__(
        self, app: FastAPI, raw_routes: Sequence[RawRoute], gate: Gate, refused: Refused
    ) -> None:
        self._app = app
        self._raw_routes = raw_routes
        self._gate = gate
        self._refused = refused
        contexts = list(iter_route_contexts(app.routes))
        self._routes = [(route.path_regex, route.methods or {"GET", "HEAD"}) for route in contexts]
        # A route itself has its path without the prefixes of its routers.
        self._paths = {id(route.original_route): str(route.path) for route in contexts}
        # Looking up the labels costs as much as the rest.
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        raw_route = self._raw_route(scope["method"], scope["path"])
        more = (
            [] if raw_route and raw_route.permission is None else self._gate.answer_headers(scope)
        )

        async def counted(message: asgi.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == HTTPStatus.METHOD_NOT_ALLOWED:
                    more.append((b"allow", self._allow(scope["path"])))
                if more:
                    message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._answer(scope, receive, counted, raw_route, more)
        finally:
            route = self._paths.get(id(scope.get("route")), _OTHER)
            if raw_route:
                route = raw_route.path
            if (
                status in _REFUSALS
                and scope["method"] not in SAFE_METHODS
                and _GUARDED.fullmatch(scope["path"])
            ):
                place = route if route != _OTHER else scope["path"][:_MOST_PATH]
                self._refused(
                    scope.get(SENDER_KEY) or Sender(actor=ANONYMOUS), scope["method"], place, status
                )
            self._count(route, scope["method"], status, time.perf_counter() - started)

    def _raw_route(self, method: str, path: str) -> RawRoute | None:
        for raw_route in self._raw_routes:
            if raw_route.takes(method, path):
                return raw_route
        return None

    def _allow(self, path: str) -> bytes:
        """Return the methods of `path` for the header Allow, empty if there is no such path."""
        methods = {raw_route.method for raw_route in self._raw_routes if raw_route.is_at(path)}
        for regex, of_route in self._routes:
            if regex.match(path):
                methods |= of_route
        if path == ANY_PATH:
            methods = set(_METHODS)
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods | {"OPTIONS"})).encode() if methods else b""

    def _count(self, route: str, method: str, status: int, seconds: float) -> None:
        key = route, method if method in _METHODS else _OTHER, status
        if (counters := self._counters.get(key)) is None:
            counters = self._counters[key] = REQUESTS.labels(*key), SECONDS.labels(route)
        counters[0].inc()
        counters[1].observe(seconds)

    async def _answer(
        self,
        scope: asgi.Scope,
        receive: asgi.Receive,
        send: asgi.Send,
        raw_route: RawRoute | None,
        more: Headers,
    ) -> None:
        if raw_route is None or raw_route.permission is not None:
            try:
                preflight = self._gate.preflight(scope)
                if preflight is not None:
                    more += preflight
                    await asgi.respond(send, 204, b"")
                    return
                if scope["method"] == "OPTIONS":
                    await self._answer_options(scope, send)
                    return
                receive = await self._gate.admit(
                    scope,
                    receive,
                    more,
                    raw_route.permission if raw_route else None,
                    in_lane=raw_route is not None,
                )
                if raw_route is None and any(one.is_at(scope["path"]) for one in self._raw_routes):
                    self._check_method(scope["method"], scope["path"])
            except MevError as error:
                await asgi.respond_problem(send, error)
                return
            except asgi.ClientGoneError:
                return
        if raw_route:
            await raw_route.app(scope, receive, send)
            return
        stopping = self._gate.stopping(scope)
        if stopping is None:
            await self._app(scope, receive, send)
            return
        with ExitStack() as until_answered:
            until_answered.enter_context(stopping)

            async def answered(message: asgi.Message) -> None:
                until_answered.close()  # a client that does not read must not delay others
                await send(message)

            await self._app(scope, receive, answered)

    async def _answer_options(self, scope: asgi.Scope, send: asgi.Send) -> None:
        """Answer with the methods of a path; they are documented, so no credential is required."""
        self._gate.count_stranger(peer_of(scope), scope["headers"])
        allow = self._allow(scope["path"])
        if not allow:
            raise _http_error(HTTPException(404))
        await asgi.respond(send, 204, b"", (b"allow", allow))

    def _check_method(self, method: str, path: str) -> None:
        """Refuse a method that neither a raw route nor the framework handles at `path`."""
        if method.encode() not in self._allow(path).split(b", "):
            raise MethodNotAllowedError(f"{path} does not support {method}; see the header Allow")


def _access(app: FastAPI, raw_routes: Sequence[RawRoute]) -> Access:
    """Return the permission that each endpoint requires, None if it is public.

    :raises UnprotectedRouteError: naming the endpoints that lack one.
    """
    found = {(raw_route.method, raw_route.path): raw_route.permission for raw_route in raw_routes}
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route.original_route, "dependant", None)
        permission = permission_of(dependant) if dependant else None
        for method in route.methods or ():
            found[method, str(route.path_format)] = (
                permission  # without converters, as in the OpenAPI document
            )
        if not route.methods:
            found["MOUNT", f"{route.path}/"] = permission
    open_ones = [
        f"{method} {path}"
        for (method, path), permission in found.items()
        if permission is None and not _may_be_open(method, path)
    ]
    if open_ones:
        raise UnprotectedRouteError(
            f"no permission is required by {', '.join(open_ones)}; "
            "list a type of mev.auth.dependencies there"
        )
    return found


def _may_be_open(method: str, path: str) -> bool:
    return path in PUBLIC_FOLDERS if method == "MOUNT" else is_public(method, path)


def _add_error_handlers(app: FastAPI) -> None:
    async def known(_request: Request, error: Exception) -> Response:
        return _problem(cast("MevError", error))

    async def invalid(_request: Request, error: Exception) -> Response:
        places = [
            {"place": ".".join(map(str, item["loc"])), "reason": item["msg"]}
            for item in cast("RequestValidationError", error).errors()
        ]
        return _problem(
            InvalidRequestError(
                "; ".join(f"{p['place']}: {p['reason']}" for p in places), errors=places
            )
        )

    async def http(_request: Request, error: Exception) -> Response:
        return _problem(_http_error(cast("HTTPException", error)))

    async def unexpected(request: Request, error: Exception) -> Response:
        LOG.error(
            "%s %s failed",
            request.method,
            request.url.path,
            exc_info=error,
            extra={"action": "http_error"},
        )
        return _problem(HttpError("an error of ours; it is in the log"))

    async def failed_io(request: Request, error: Exception) -> Response:
        full = disk_full(error)
        return _problem(full) if full else await unexpected(request, error)

    app.add_exception_handler(MevError, known)
    app.add_exception_handler(OSError, failed_io)
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
    """Return the error for a body that the framework could not read."""
    if isinstance(cause, RecursionError):
        return MalformedJsonError("the body is JSON that is nested too deeply")
    return MalformedJsonError(f"the body cannot be read as JSON: {cause}")


def _problem(error: MevError) -> Response:
    headers = {name.decode(): value.decode() for name, value in asgi.problem_headers(error)}
    return Response(asgi.problem_body(error), error.status, headers, asgi.PROBLEM_JSON)
