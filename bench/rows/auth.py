"""Cost of authentication per request against the bare endpoint, and of the rate limiter alone."""

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from redis import asyncio as redis

from bench.harness import Clock, Row, RowFigures, RowInput, Side, Sides, rate
from mev import settings
from mev.auth.dependencies import ControlCommand, EventsRead
from mev.auth.model import MASTER, Permission
from mev.core import asgi
from mev.server.app import create_app
from mev.server.security import Security, build
from mev.store.boot import REDIS_TIMEOUT_S
from mev.store.folder import DataFolder
from mev.store.redis import Redis
from mev.store.valkey import EmbeddedValkey

_REQUESTS = 500
_AT_LEAST_S = 1.0
_TIMEOUT_S = 10.0
_DAY_S = 86_400.0
_PATH = "/api/bench/order"
_SCOPES = (Permission.EVENTS_READ, Permission.CONTROL_COMMAND)
# A bucket that never empties; the tokens taken from Redis at once follow from the default rate.
_BURST = 10**9


class Order(BaseModel):
    """A body of a few fields."""

    module: str
    action: str
    lamports: int
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """A request as the server hands it to an application."""

    method: str
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    async def ask(self, app: asgi.App) -> None:
        """Ask `app`, and raise unless it says 200."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
            "scheme": "http",
            "root_path": "",
            "method": self.method,
            "path": _PATH,
            "raw_path": _PATH.encode(),
            "query_string": b"",
            "headers": self.headers,
            "state": {},
        }

        async def receive() -> asgi.Message:
            return {"type": "http.request", "body": self.body, "more_body": False}

        async def send(message: asgi.Message) -> None:
            if message.get("status", 200) != 200:
                raise RuntimeError(f"{self.method} was answered with {message['status']}")

        await app(scope, receive, send)


def _open(method: str, body: bytes = b"") -> Callable[[RowInput], Any]:
    @contextmanager
    def opened(setting: RowInput) -> Iterator[Sides]:
        with _security(setting.scratch) as (runner, security, _):
            _, key = runner.run(security.keys.create(MASTER, "bench", _SCOPES, _DAY_S))
            request = _Request(method, _headers(key, body), body)
            yield Sides(
                _requests(runner, _bare_app(), request),
                _requests(runner, create_app([_guarded()], [], security.gate), request),
            )

    return opened


@contextmanager
def _limiter(setting: RowInput) -> Iterator[Sides]:
    with _security(setting.scratch) as (runner, security, valkey):
        limiter, client = security.limiter, redis.from_url(valkey.url)

        async def ours() -> None:
            for _ in range(_REQUESTS):
                decision = limiter.take_now("bench") or await limiter.take("bench")
                if not decision.allowed:
                    raise RuntimeError("a request was refused")

        async def baseline() -> None:
            for _ in range(_REQUESTS):
                await client.incr("bench")

        try:
            yield Sides(_side(runner, baseline, Clock.WALL), _side(runner, ours, Clock.WALL), _each)
        finally:
            runner.run(client.aclose())


def _each(figures: RowFigures) -> list[str]:
    ours, baseline = (1e6 / statistics.median(rates) for rates in (figures.ours, figures.baseline))
    return [f"{ours:.1f} us a request; {baseline:.1f} us when each one asks Redis"]


@contextmanager
def _security(folder: Path) -> Iterator[tuple[asyncio.Runner, Security, EmbeddedValkey]]:
    """Yield the system's request checks on an embedded Valkey, and their event loop."""
    valkey = EmbeddedValkey(folder / "valkey", timeout_s=_TIMEOUT_S)
    valkey.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            client = Redis(valkey.url, timeout_s=REDIS_TIMEOUT_S)
            chosen = settings.load(mev_data_dir=folder, rate_limit_burst=_BURST)
            security = build(chosen, DataFolder(folder), client, lambda: 0.0)
            try:
                yield runner, security, valkey
            finally:
                security.passwords.close()
                runner.run(client.close())
    finally:
        valkey.stop()


def _guarded() -> APIRouter:
    routes = APIRouter()

    @routes.get(_PATH)
    async def read(_: EventsRead) -> Order:
        return _ORDER

    @routes.post(_PATH)
    async def write(_: ControlCommand, order: Order) -> Order:
        return order

    return routes


def _bare_app() -> asgi.App:
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )

    @app.get(_PATH)
    async def read() -> Order:
        return _ORDER

    @app.post(_PATH)
    async def write(order: Order) -> Order:
        return order

    return app


def _headers(key: str, body: bytes) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"connection", b"keep-alive"),
        (b"user-agent", b"python-httpx/0.28.1"),
        (b"x-api-key", key.encode()),
    ]
    return (
        [*headers, (b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        if body
        else headers
    )


def _requests(runner: asyncio.Runner, app: asgi.App, request: _Request) -> Side:
    async def work() -> None:
        for _ in range(_REQUESTS):
            await request.ask(app)

    return _side(runner, work, Clock.CPU)


def _side(
    runner: asyncio.Runner, work: Callable[[], Coroutine[Any, Any, None]], clock: Clock
) -> Side:
    return lambda: rate(lambda: runner.run(work()), _REQUESTS, clock=clock, at_least_s=_AT_LEAST_S)


_ORDER = Order(module="arbitrage", action="set_min_profit", lamports=5_000)


def _row(name: str, method: str, body: bytes = b"") -> Row:
    return Row(
        name=name,
        unit="requests/s",
        ours=f"{method} behind the gate with an API key: who it is, how often, whether they may",
        baseline="the same endpoint without gate and permission",
        clock=Clock.CPU,
        open=_open(method, body),
        expected_cost_us=100,
    )


ROWS = (
    _row("auth_get", "GET"),
    _row("auth_post", "POST", _ORDER.model_dump_json().encode()),
    Row(
        name="rate_limiter",
        unit="requests/s",
        ours="counting a request against its sender's rate, for all processes together",
        baseline="one INCR through redis-py for each request",
        clock=Clock.WALL,
        open=_limiter,
    ),
)
