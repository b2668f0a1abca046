"""Tests of limits on connections in a server, and on requests with and without Redis."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect

from mev.core import asgi
from mev.limits.addresses import Addresses, parse_network
from mev.limits.connections import ConnectionLimits, HttpConnections
from mev.limits.protocol import http_class
from tests.services.redis import RealRedis
from tests.services.system import RunningSystem, running_system
from tests.services.waits import until_document

REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
UNFINISHED = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
KILL = b"POST /api/control/kill-switch HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
LOGIN = {"name": "nobody", "password": "x"}


class Server:
    """A server of one application, with connection limits."""

    def __init__(self, proxies: tuple[str, ...] = (), **limits: float) -> None:
        connections = HttpConnections(
            ConnectionLimits(**limits),  # type: ignore[arg-type]
            Addresses([parse_network(text) for text in proxies]),
        )
        options: dict[str, Any] = {
            "port": 0,
            "interface": "asgi3",
            "lifespan": "off",
            "log_level": "critical",
        }
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._answer,
                http=http_class(connections),
                log_config=None,
                timeout_keep_alive=600,
                **options,
            )
        )
        self._task = asyncio.create_task(self._server.serve())
        self._opened: list[asyncio.StreamWriter] = []
        self._stopping = asyncio.Event()
        self.size = 2
        self.started = 0
        """Requests whose head has arrived."""
        self.gone = asyncio.Event()
        """Set when the client of a request to /waiting has gone."""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self._opened.append(writer)
        return reader, writer

    async def exchange(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes and return the status and body of the answer that ends the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        return answered(await reader.read())

    async def stop(self) -> None:
        self._stopping.set()
        for writer in self._opened:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self._server.should_exit = True
        await self._task

    async def _answer(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        self.started += 1
        if scope["path"].endswith("/busy"):
            await self._stopping.wait()
        if scope["path"] == "/waiting":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()
            return
        if scope["path"] == "/refuse":
            await asgi.respond(send, 413, b"no")
            return
        await asgi.read_body(scope, receive, limit_bytes=1 << 20)
        await asgi.respond(send, 200, b"k" * self.size)


def answered(data: bytes) -> tuple[int, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def is_problem(answer: tuple[int, bytes], status: int, code: str) -> bool:
    return answer[0] == status and json.loads(answer[1])["code"] == code


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*proxies: str, **limits: float) -> Server:
        servers.append(Server(proxies, **limits))
        return servers[-1]

    yield start
    for server in servers:
        await server.stop()


async def test_a_request_within_the_limits_is_answered_again_and_again(
    serve: Callable[..., Server],
) -> None:
    server = serve(head_bytes=1024, head_timeout_s=5)
    reader, writer = await server.connect()
    for _ in range(3):
        for byte in REQUEST:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"kk")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 5000 + b"\r\n\r\n", id="one header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 900 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", id="path"),
    ],
)
async def test_large_heads_are_refused_whole_or_in_parts(
    serve: Callable[..., Server], head: bytes
) -> None:
    server = serve(head_bytes=1024)
    assert is_problem(await server.exchange(head), 431, "headers_too_large")
    reader, writer = await server.connect()
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(head) - 100, 100):  # the end never comes
            writer.write(head[start : start + 100])
            await writer.drain()
            await asyncio.sleep(0)
    with contextlib.suppress(ConnectionError):
        assert is_problem(answered(await reader.read()), 431, "headers_too_large")


async def test_request_ends_with_its_client_although_others_wait_behind_it(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    _, writer = await server.connect()
    writer.write(REQUEST.replace(b"/ ", b"/waiting ") + REQUEST * 2)
    while not server.started:  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0.01)
    writer.close()
    await server.gone.wait()


async def test_few_requests_may_wait_on_a_connection(serve: Callable[..., Server]) -> None:
    server = serve(pipelined=3)
    reader, writer = await server.connect()
    writer.write(REQUEST * 4)
    for _ in range(4):
        assert (await reader.readuntil(b"kk")).startswith(b"HTTP/1.1 200")
    before = server.started
    refused = await server.exchange(REQUEST * 100)
    assert is_problem(refused, 429, "too_many_pipelined_requests")
    assert server.started - before <= 4


@pytest.mark.parametrize(
    "beginning", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: h\r\n", REQUEST + b"GET"]
)
async def test_a_slow_head_is_waited_for_only_so_long(
    serve: Callable[..., Server], beginning: bytes
) -> None:
    server = serve(head_timeout_s=0.1)
    reader, writer = await server.connect()
    writer.write(beginning)
    data = await reader.read()
    last = data[data.rindex(b"HTTP/1.1") :]
    assert is_problem(answered(last), 408, "headers_too_slow")


async def test_what_begins_no_request_keeps_no_connection_open(
    serve: Callable[..., Server],
) -> None:
    server = serve(head_timeout_s=0.1)
    reader, writer = await server.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"kk")
    writer.write(b"\r\n")  # ends the keep-alive timer of uvicorn
    assert is_problem(answered(await reader.read()), 408, "headers_too_slow")


async def test_no_request_at_all_is_a_problem(serve: Callable[..., Server]) -> None:
    assert is_problem(await serve().exchange(b"\x16\x03\x01 not HTTP\r\n\r\n"), 400, "bad_request")


async def busy(server: Server, path: bytes = b"/busy") -> asyncio.StreamWriter:
    """Open a connection with a request under way: it is not answered."""
    _, writer = await server.connect()
    before = server.started
    writer.write(REQUEST.replace(b"/", path, 1))
    while server.started == before:  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0.01)
    return writer


async def idle(server: Server) -> asyncio.StreamReader:
    """Open a connection and send one request, which is answered."""
    reader, writer = await server.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"kk")
    return reader


async def test_busy_connections_of_an_address_are_counted_and_room_comes_back(
    serve: Callable[..., Server],
) -> None:
    server = serve(per_address=2)
    first, _ = await busy(server), await busy(server)
    assert is_problem(await server.exchange(REQUEST), 503, "too_many_connections")
    first.close()
    await first.wait_closed()
    while True:
        reader, writer = await server.connect()
        writer.write(REQUEST)
        if (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200"):
            return


async def test_proxy_may_have_more_connections_than_an_address_but_not_all(
    serve: Callable[..., Server],
) -> None:
    server = serve("127.0.0.0/8", per_address=1, total=3)
    for _ in range(3):
        await busy(server)
    assert is_problem(await server.exchange(REQUEST), 503, "too_many_connections")


@pytest.mark.parametrize("limit", ["per_address", "total"])
async def test_oldest_connection_without_request_gives_way_at_limit(
    serve: Callable[..., Server], limit: str
) -> None:
    server = serve(**{limit: 4})
    await busy(server)
    waiting = await idle(server)
    silent = [(await server.connect())[0] for _ in range(2)]
    opened = []
    for gone in (*silent, waiting):
        opened.append(await idle(server))
        assert await gone.read() == b""
    assert not any(reader.at_eof() for reader in opened), "the newest were closed"


async def test_reserved_places_answer_control_paths_only(serve: Callable[..., Server]) -> None:
    server = serve(per_address=1, reserved=2)
    await busy(server)
    crowd = [(await server.connect())[0] for _ in range(3)]
    assert await crowd[0].read() == b"", "the oldest of the crowd gives way in the reserve, too"
    status, body = await server.exchange(KILL)  # ends: a reserved place is for one request
    assert (status, body) == (200, b"kk")
    assert is_problem(await server.exchange(REQUEST), 503, "too_many_connections")


async def test_reserve_is_full_only_of_requests_under_way(serve: Callable[..., Server]) -> None:
    server = serve(per_address=1, reserved=1, stops=1)
    await busy(server)
    await busy(server, b"/api/control/busy")
    assert is_problem(
        await server.exchange(b"POST /api/control/config HTTP/1.1\r\nHost: h\r\n\r\n"),
        503,
        "too_many_connections",
    )
    assert (await server.exchange(KILL))[0] == 200, "a place is kept for the kill switch alone"
    _, writer = await server.connect()
    writer.write(
        KILL.replace(b"Content-Length: 0", b"Content-Length: 5")
    )  # that ends never: it gives way
    assert (await server.exchange(KILL))[0] == 200


@pytest.mark.parametrize("path", [b"/", b"/api/control/kill-switch"])
async def test_bodies_that_never_come_keep_nobody_out(
    serve: Callable[..., Server], path: bytes
) -> None:
    """A client with any valid key, such as an enrolment key, sends request heads without bodies."""
    server = serve(per_address=2, reserved=1, stops=1)
    for number in range(6):
        _, writer = await server.connect()
        writer.write(UNFINISHED.replace(b"/", path, 1))
        while server.started <= number:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
    assert (await server.exchange(KILL.replace(b"Host: h", b"Host: h\r\nConnection: close")))[
        0
    ] == 200


async def test_a_client_that_reads_nothing_is_disconnected(serve: Callable[..., Server]) -> None:
    server = serve(stall_timeout_s=0.1)
    server.size = 64 << 20
    reader, writer = await server.connect()
    writer.write(REQUEST)
    await reader.readexactly(1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    while server._server.server_state.connections:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.02)


async def test_a_refused_body_is_swallowed_only_so_long(serve: Callable[..., Server]) -> None:
    server = serve(stall_timeout_s=0.1)
    reader, writer = await server.connect()
    writer.write(b"POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
    assert answered(await reader.readuntil(b"no"))[0] == 413
    with contextlib.suppress(ConnectionError):
        while not reader.at_eof():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run everything embedded with limits that are soon met."""
    limits = {
        "RATE_LIMIT_PER_SECOND": "1",
        "RATE_LIMIT_BURST": "4",
        "IP_RATE_PER_SECOND": "0.1",
        "IP_RATE_BURST": "30",
        "HTTP_BODY_TIMEOUT_S": "0.3",
        "HTTP_MAX_BODY_BYTES": "2048",
        "INGEST_MAX_BODY_BYTES": "4096",
    }
    with running_system(tmp_path_factory.mktemp("mev") / "data", **limits) as running:
        yield running


def new_key(http: httpx.Client) -> str:
    while True:
        answer = http.post(
            "/api/auth/keys", json={"name": "k", "scopes": ["events:write", "events:read"]}
        )
        if answer.status_code != 429:
            return str(answer.raise_for_status().json()["key"])
        time.sleep(float(answer.headers["retry-after"]))


def test_each_principal_has_its_rate_with_burst_and_headers(
    system: RunningSystem, http: httpx.Client
) -> None:
    with (
        httpx.Client(base_url=system.url, headers={"X-API-Key": new_key(http)}) as one,
        httpx.Client(base_url=system.url, headers={"X-API-Key": new_key(http)}) as other,
    ):
        answers = [one.get("/api/auth/me")]
        while answers[-1].is_success:
            answers.append(one.get("/api/auth/me"))
        assert len(answers) > 4
        refused = answers[-1]
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) >= 1
        assert answers[0].headers["ratelimit-limit"] == "4"
        assert answers[0].headers["ratelimit-policy"] == "1;w=1;burst=4"
        assert answers[0].headers["ratelimit-remaining"] == "3"
        assert answers[0].headers["ratelimit-reset"] == "1"
        assert refused.headers["ratelimit-remaining"] == "0"
        assert one.post("/api/events/bundle", json={"bundle_id": "x"}).status_code == 429
        assert all(
            one.get("/api/health/").is_success and one.get("/api/health/ready").is_success
            for _ in range(20)
        )
        assert other.get("/api/auth/me").is_success


def raw(system: RunningSystem) -> socket.socket:
    host, port = system.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize("path", ["/api/events/bundle", "/api/auth/keys"])
def test_a_body_that_does_not_come_is_waited_for_only_so_long(
    system: RunningSystem, http: httpx.Client, path: str
) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {new_key(http)}\r\nContent-Length: 100\r\n"
    )
    with raw(system) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n[")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answered(answer)[0] == 408
    assert b"body_too_slow" in answer


@pytest.mark.parametrize(("path", "size"), [("/api/events/bundle", 5000), ("/api/auth/keys", 3000)])
def test_a_large_body_is_refused(
    system: RunningSystem, http: httpx.Client, path: str, size: int
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(size // 100):
            yield b" " * 100

    key = {"X-API-Key": new_key(http), "Content-Type": "application/json"}
    for body in (b" " * size, chunks()):
        answer = httpx.post(f"{system.url}{path}", content=body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.slow
def test_a_body_that_is_too_large_hears_so_from_a_busy_server_too(tmp_path: Path) -> None:
    limits = {"INGEST_MAX_BODY_BYTES": "4096", "HTTP_MAX_BODY_BYTES": "2048"}
    busy = RunningSystem(tmp_path / "data", SHED_LAG_MS="0.000001", **limits)
    busy.start()
    try:
        with busy.client() as http:
            for path, limit in (("/api/events/bundle", 4096), ("/api/datasets/export", 2048)):
                sizes = (limit + 1, limit)
                answers = [
                    http.post(
                        path, content=b" " * size, headers={"Content-Type": "application/json"}
                    )
                    for size in sizes
                ]
                assert [(a.status_code, a.json()["code"]) for a in answers] == [
                    (413, "body_too_large"),
                    (503, "overloaded"),
                ]
    finally:
        busy.kill()


def test_who_guesses_is_slowed_down_by_address_and_who_is_known_is_not(
    system: RunningSystem, http: httpx.Client
) -> None:
    key = {"X-API-Key": new_key(http)}
    assert httpx.get(f"{system.url}/api/auth/me", headers=key).is_success
    statuses = [
        httpx.get(f"{system.url}/api/auth/me", headers={"X-API-Key": f"guess-{n}"}).status_code
        for n in range(40)
    ]
    assert statuses.count(401) >= 10
    assert statuses[-1] == 429
    assert httpx.post(f"{system.url}/api/auth/login", json=LOGIN).status_code == 401
    logins = [httpx.post(f"{system.url}/api/auth/login", json={}).status_code for _ in range(40)]
    assert logins.count(422) >= 10
    assert logins[-1] == 429, "logins are counted by address too, apart from guesses"
    assert httpx.get(f"{system.url}/api/auth/me", headers=key).is_success
    assert httpx.get(f"{system.url}/api/health/").is_success


@pytest.fixture
def on_redis(tmp_path: Path, real_redis: RealRedis) -> Iterator[RunningSystem]:
    """Give a system whose Redis can be taken away."""
    running = RunningSystem(
        tmp_path / "data",
        REDIS_URL=real_redis.url,
        ACCESS_CACHE_S="0.2",
        RATE_LIMIT_PER_SECOND="1",
        RATE_LIMIT_BURST="6",
    )
    running.start()
    yield running
    running.kill()


@pytest.mark.slow
async def test_without_redis_the_system_goes_on_and_says_so(
    on_redis: RunningSystem, real_redis: RealRedis
) -> None:
    await asyncio.to_thread(_check_without_redis, on_redis, real_redis)


def _check_without_redis(system: RunningSystem, redis: RealRedis) -> None:
    password = "correct horse battery"
    with system.client() as master:
        user = {"name": f"u{time.time_ns()}", "password": password, "role": "operator"}
        master.post("/api/auth/users", json=user).raise_for_status()
        used, unused = new_key(master), new_key(master)
    login = {"name": user["name"], "password": password}
    token = (
        httpx.post(f"{system.url}/api/auth/login", json=login)
        .raise_for_status()
        .json()["access_token"]
    )

    def me(**headers: str) -> httpx.Response:
        return httpx.get(
            f"{system.url}/api/auth/me",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            timeout=20,
        )

    assert me(X_API_Key=used).is_success
    redis.kill()
    _await_degraded(system, wanted=["redis"])
    assert me(X_API_Key=used).is_success
    assert me(Authorization=f"Bearer {token}").json()["name"] == user["name"]
    assert me(X_API_Key=system.key).is_success
    assert me(X_API_Key="mev_0_x").status_code == 503
    assert (me(X_API_Key=unused).status_code, me(X_API_Key=unused).json()["code"]) == (
        503,
        "accounts_unavailable",
    )
    refused = httpx.post(f"{system.url}/api/auth/login", json=login, timeout=20)
    assert (refused.status_code, refused.json()["code"]) == (503, "accounts_unavailable")
    statuses = [me(X_API_Key=used).status_code for _ in range(12)]
    assert 429 in statuses, "the local bucket counts"
    redis.start()
    _await_degraded(system, wanted=[])
    assert httpx.post(f"{system.url}/api/auth/login", json=login, timeout=20).is_success
    assert me(X_API_Key=unused).is_success


def _await_degraded(system: RunningSystem, wanted: list[str]) -> None:
    with httpx.Client(base_url=system.url, timeout=20) as http:
        ready = until_document(http, "/api/health/ready", lambda page: page["degraded"] == wanted)
    assert ready["ready"] is True


@pytest.mark.slow
async def test_without_redis_open_streams_stay(
    on_redis: RunningSystem, real_redis: RealRedis
) -> None:
    address = on_redis.url.replace("http", "ws", 1) + "/api/realtime/ws"
    with on_redis.client() as master:
        made = await asyncio.to_thread(
            master.post, "/api/auth/keys", json={"name": "k", "scopes": ["stream:read"]}
        )
    async with connect(address, additional_headers={"X-API-Key": made.json()["key"]}) as ws:
        await asyncio.to_thread(real_redis.kill)
        await asyncio.to_thread(_await_degraded, on_redis, ["redis"])
        await asyncio.sleep(0.5)
        await ws.send('{"op": "ping"}')
        assert json.loads(await ws.recv()) == {"op": "pong"}
    await asyncio.to_thread(real_redis.start)
