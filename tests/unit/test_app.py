"""Tests that the application refuses endpoints without a permission and guards all of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from mev.auth.dependencies import ControlLower, EventsRead, UsersManageFresh
from mev.auth.model import CredentialKind, Permission, Principal
from mev.auth.tokens import BROWSER_PREFIX, Keyring, new_session_id
from mev.core import asgi
from mev.dashboard.routes import ASSETS
from mev.dashboard.routes import router as dashboard_router
from mev.server.app import RawRoute, UnprotectedRouteError, create_app
from mev.server.security import build, jwt_key
from mev.settings import load
from mev.store.folder import DataFolder
from mev.store.redis import Redis
from tests.unit.realtime.clock import Clock

KEY = "the-master-key-of-the-tests"
HEADERS = {"X-API-Key": KEY}


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    client = Redis(f"unix://{tmp_path}/none", timeout_s=1)
    yield client
    await client.close()


def application(
    redis: Redis,
    folder: Path,
    *routers: APIRouter,
    raw_routes: tuple[RawRoute, ...] = (),
    **settings: Any,
) -> httpx.AsyncClient:
    options = load(mev_data_dir=folder, master_api_key=KEY, **settings)
    security = build(options, DataFolder(folder), redis, lambda: 0)
    security.passwords.close()
    app = create_app(routers, raw_routes, security.gate)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mev.example")


async def answer(_scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
    await asgi.respond(send, 200, b"lane")


def dashboard() -> APIRouter:
    """Return the files of the dashboard, and a login that accepts every name."""
    router = dashboard_router()

    @router.post("/api/auth/login")
    async def login() -> str:
        return "welcome"

    return router


def routes() -> APIRouter:
    router = APIRouter(prefix="/api/x")

    @router.get("/open")
    async def open_to_all() -> str:
        return "open"

    return router


def guarded() -> APIRouter:
    router = APIRouter(prefix="/api/x")

    @router.get("/read")
    async def read(who: EventsRead) -> str:
        return who.name

    @router.post("/echo")
    async def echo(_: EventsRead, body: dict[str, Any]) -> dict[str, Any]:
        return body

    @router.post("/fresh")
    async def fresh(who: UsersManageFresh) -> str:
        return who.name

    return router


def stops(may_answer: asyncio.Event) -> APIRouter:
    router = APIRouter(prefix="/api/control")

    @router.post("/kill-switch")
    async def kill_switch(_: ControlLower) -> str:
        await may_answer.wait()
        return "stopped"

    return router


def app_of(http: httpx.AsyncClient) -> asgi.App:
    transport = http._transport
    assert isinstance(transport, httpx.ASGITransport)
    return transport.app


def http_scope(path: str) -> asgi.Scope:
    return {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"mev.example"), (b"x-api-key", KEY.encode())],
        "client": ("127.0.0.1", 1),
    }


def test_an_endpoint_that_asks_for_nothing_keeps_the_application_from_starting(
    redis: Redis, tmp_path: Path
) -> None:
    with pytest.raises(UnprotectedRouteError, match="GET /api/x/open"):
        application(redis, tmp_path, routes())
    with pytest.raises(UnprotectedRouteError, match="POST /api/x/lane"):
        application(redis, tmp_path, raw_routes=(RawRoute("POST", "/api/x/lane", answer, {}),))
    application(
        redis,
        tmp_path,
        guarded(),
        raw_routes=(RawRoute("POST", "/api/x/lane", answer, {}, Permission.EVENTS_WRITE),),
    )


async def test_a_stranger_learns_nothing_not_even_what_there_is(
    redis: Redis, tmp_path: Path
) -> None:
    async with application(redis, tmp_path, guarded()) as http:
        for path in ("/api/x/read", "/api/x/nope", "/", "/api/x/echo"):
            assert (await http.post(path, content=b"{")).status_code == 401
        assert (await http.get("/api/x/read", headers=HEADERS)).json() == "master"
        assert (await http.get("/api/x/nope", headers=HEADERS)).status_code == 404


async def test_strangers_are_counted_by_address(redis: Redis, tmp_path: Path) -> None:
    async with application(
        redis, tmp_path, guarded(), ip_rate_per_second=0.01, ip_rate_burst=3
    ) as http:
        await http.get("/api/x/read", headers=HEADERS)
        assert [
            (await http.get("/api/x/read", headers={"X-API-Key": f"guess-{n}"})).status_code
            for n in range(4)
        ] == [401, 401, 401, 429]
        refused = await http.get("/api/x/read")
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("rate_limited", "100")
        assert (await http.get("/api/x/read", headers=HEADERS)).is_success


async def test_flood_of_guesses_leaves_dashboard_and_login_open(
    redis: Redis, tmp_path: Path
) -> None:
    login = {"name": "op", "password": "correct horse battery"}
    async with application(
        redis, tmp_path, dashboard(), ip_rate_per_second=0.01, ip_rate_burst=3
    ) as http:
        guesses = [
            (await http.get("/api/x/read", headers={"X-API-Key": f"guess-{n}"})).status_code
            for n in range(4)
        ]
        assert guesses[-1] == 429
        assert (await http.get("/")).is_success
        assert (await http.get(f"{ASSETS}none.js")).status_code == 404
        assert (await http.post("/api/auth/login", json=login)).is_success
        while (await http.post("/api/auth/login", json=login)).is_success:
            pass
        assert (await http.get("/")).is_success, "files and logins are counted apart"
        assert (await http.get("/")).status_code == 429


async def test_public_pages_count_by_genuine_credential(redis: Redis, tmp_path: Path) -> None:
    options = load(mev_data_dir=tmp_path, master_api_key=KEY)
    keyring = Keyring([jwt_key(options, DataFolder(tmp_path))])
    cookie = keyring.session_token(BROWSER_PREFIX, new_session_id(), 1)
    async with application(
        redis, tmp_path, dashboard(), ip_rate_per_second=0.01, ip_rate_burst=3
    ) as http:
        forged = {"Cookie": f"mev_session={cookie[:-4]}AAAA"}
        for headers in ({}, forged, {"X-API-Key": "guess"}):
            assert (await http.get("/", headers=headers)).is_success
        for headers in ({}, forged):
            assert (await http.get("/", headers=headers)).status_code == 429
        for headers in ({"Cookie": f"mev_session={cookie}"}, HEADERS):
            answers = [(await http.get("/", headers=headers)).status_code for _ in range(4)]
            assert answers == [200, 200, 200, 429]


async def test_bodies_have_a_size_and_arrive_whole(redis: Redis, tmp_path: Path) -> None:
    async with application(redis, tmp_path, guarded(), http_max_body_bytes=1024) as http:
        assert (await http.post("/api/x/echo", json={"a": 1}, headers=HEADERS)).json() == {"a": 1}

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 100

        for body in (b" " * 2000, chunks()):
            assert (await http.post("/api/x/echo", content=body, headers=HEADERS)).json()[
                "code"
            ] == "body_too_large"


async def test_stop_whose_answer_is_not_read_keeps_no_body_waiting(
    redis: Redis, tmp_path: Path
) -> None:
    admitted, is_answering, may_read = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def unread(message: asgi.Message) -> None:
        del message
        is_answering.set()
        await may_read.wait()

    async def receive() -> asgi.Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async with application(redis, tmp_path, guarded(), stops(admitted)) as http:
        large = {"text": "x" * 5000}
        await http.post("/api/x/echo", headers=HEADERS, json=large)  # the key is known from now on
        clock = Clock()
        with clock.installed():
            scope = http_scope("/api/control/kill-switch")
            stop = asyncio.ensure_future(app_of(http)(scope, receive, unread))
            echo = asyncio.create_task(http.post("/api/x/echo", headers=HEADERS, json=large))
            await clock.forward()
            assert not echo.done()
            admitted.set()
            await is_answering.wait()
            assert (await echo).status_code == 200
            may_read.set()
            await stop


async def test_pages_of_listed_origins_may_use_the_api_and_no_others(
    redis: Redis, tmp_path: Path
) -> None:
    context, evil = {"Origin": "https://desk.example"}, {"Origin": "https://evil.example"}
    preflight = {"Access-Control-Request-Method": "POST"}
    async with application(
        redis, tmp_path, guarded(), cors_allowed_origins="https://desk.example"
    ) as http:
        allowed = await http.options("/api/x/echo", headers=context | preflight)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (
            204,
            "https://desk.example",
        )
        refused = await http.options("/api/x/echo", headers=evil | preflight)
        assert refused.json()["code"] == "cross_site_request"
        assert "access-control-allow-origin" not in refused.headers
        read = await http.get("/api/x/read", headers=context | HEADERS)
        assert (read.headers["access-control-allow-origin"], read.headers["vary"]) == (
            "https://desk.example",
            "origin",
        )
        assert (
            "access-control-allow-origin"
            not in (await http.get("/api/x/read", headers=evil | HEADERS)).headers
        )


async def test_tls_is_insisted_on_only_where_there_is_tls(redis: Redis, tmp_path: Path) -> None:
    forwarded = HEADERS | {"X-Forwarded-Proto": "https"}
    async with application(redis, tmp_path, guarded(), trusted_proxies="127.0.0.1") as http:
        assert (
            "max-age"
            in (await http.get("/api/x/read", headers=forwarded)).headers[
                "strict-transport-security"
            ]
        )
        assert (
            "strict-transport-security"
            not in (await http.get("/api/x/read", headers=HEADERS)).headers
        )
    async with application(redis, tmp_path, guarded()) as http:
        assert (
            "strict-transport-security"
            not in (await http.get("/api/x/read", headers=forwarded)).headers
        )


async def test_a_busy_server_still_obeys_and_says_how_it_is(redis: Redis, tmp_path: Path) -> None:
    router = APIRouter()
    for path in ("/api/control/halt", "/metrics", "/api/events/x", "/api/auth/me"):

        @router.get(path)
        async def ok(_: EventsRead) -> str:
            return "ok"

    options = load(mev_data_dir=tmp_path, master_api_key=KEY)
    security = build(options, DataFolder(tmp_path), redis, lambda: 0)
    security.passwords.close()
    app = create_app([router, dashboard()], [], security.gate)
    security.shedder.note(5)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://m", headers=HEADERS
    ) as http:
        answers = {
            path: (await http.get(path)).status_code
            for path in ("/api/control/halt", "/metrics", "/api/events/x", "/api/auth/me", "/")
        }
        missing = await http.get(f"{ASSETS}none.js")
    assert answers == {
        "/api/control/halt": 200,
        "/metrics": 200,
        "/api/events/x": 503,
        "/api/auth/me": 200,
        "/": 200,
    }
    assert missing.status_code == 404


async def test_a_fresh_login_is_asked_for_where_it_is_needed(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Principal(
        id="user:a",
        name="a",
        kind=CredentialKind.USER,
        permissions=frozenset(Permission),
        authenticated_at_s=1.0,
    )
    async with application(redis, tmp_path, guarded()) as http:
        assert (await http.post("/api/x/fresh", headers=HEADERS)).json() == "master"
        monkeypatch.setattr("mev.auth.authenticator.MASTER", old)
        options = {"X-API-Key": KEY}
    async with application(redis, tmp_path, guarded()) as http:
        assert (await http.post("/api/x/fresh", headers=options)).json()[
            "code"
        ] == "fresh_login_required"
        assert (await http.get("/api/x/read", headers=options)).json() == "a"
