"""Tests of peers that break the protocol or vanish: an error each, and nothing is left behind."""

import asyncio
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from mev.realtime.access import PrincipalQuota
from mev.realtime.hub import Hub
from tests.integration.realtime.service import HEADERS, RawClient, Service
from tests.services.waits import until_async
from tests.unit.realtime.links import client_frame

SUBSCRIBE = {"op": "subscribe", "id": "s1", "topics": ["tick"]}
CLEAR_CODES = {1000, 1001, 1002, 1007, 1008, 1009, 1013, 4401}
WORDS = [
    "op",
    "id",
    "topics",
    "filter",
    "from",
    "cursor",
    "tick",
    "on_slow",
    "lossless",
    "max_rate",
    "subscribe",
    "update",
    "ping",
    "s1",
]
VALUES: list[object] = [
    None,
    True,
    -1,
    0,
    2**63,
    2**64,
    1e308,
    "",
    "\x00",
    "\U0001d518",
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    "x" * 5000,
]
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({**SUBSCRIBE, "topics": ["tock"]}, "unknown_topic", "topics"),
    ({**SUBSCRIBE, "topics": ["tick", "x_*"]}, "unknown_topic", "topics"),
    ({**SUBSCRIBE, "topics": []}, "invalid_field", "topics"),
    ({**SUBSCRIBE, "topics": "tick"}, "invalid_field", "topics"),
    ({**SUBSCRIBE, "topics": ["tick"] * 65}, "invalid_field", "topics"),
    ({**SUBSCRIBE, "filter": ["profit_lamports > 1"]}, "bad_filter", "filter[0]"),
    (
        {**SUBSCRIBE, "topics": ["tick", "bundle"], "filter": ["bid_price > 1"]},
        "bad_filter",
        "filter[0]",
    ),
    ({**SUBSCRIBE, "filter": ["bid_price >"]}, "bad_filter", "filter[0]"),
    ({**SUBSCRIBE, "filter": ["bid_price > 'a'"]}, "bad_filter", "filter[0]"),
    ({**SUBSCRIBE, "filter": ["market_id == bare"]}, "bad_filter", "filter[0]"),
    ({**SUBSCRIBE, "filter": "bid_price > 1"}, "bad_filter", "filter"),
    ({**SUBSCRIBE, "from": "yesterday"}, "invalid_field", "from"),
    ({**SUBSCRIBE, "from": {"time": "noon"}}, "invalid_field", "from"),
    ({**SUBSCRIBE, "from": {"slot": 1}}, "no_slot", "from"),
    ({**SUBSCRIBE, "from": {"cursor": {"bundle": {"0": 1}}}}, "invalid_field", "from"),
    ({**SUBSCRIBE, "from": {"cursor": {"tick": {"0": -1}}}}, "invalid_field", "from"),
    ({**SUBSCRIBE, "on_slow": "wait"}, "invalid_field", "on_slow"),
    ({**SUBSCRIBE, "max_rate": 0}, "invalid_field", "max_rate"),
    ({**SUBSCRIBE, "delivery": "datagram"}, "unsupported", "delivery"),
    ({**SUBSCRIBE, "id": "x" * 65}, "invalid_field", "id"),
    ({**SUBSCRIBE, "colour": 1}, "unknown_field", "colour"),
    ({"op": "update", "id": "nobody"}, "unknown_id", "id"),
    ({"op": "unsubscribe", "id": "nobody"}, "unknown_id", "id"),
    ({"op": "publish"}, "unknown_op", "op"),
]
KILLED = """\
import os, socket, sys
port, number = int(sys.argv[1]), int(sys.argv[2])
head, frame = bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4])
sockets = []
for _ in range(number):
    peer = socket.create_connection(("127.0.0.1", port))
    peer.sendall(head)
    peer.recv(4096)
    peer.sendall(frame)
    peer.recv(4096)
    sockets.append(peer)
print("subscribed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def calm() -> AsyncIterator[None]:
    """Fail on any unhandled error."""
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    yield
    loop.set_exception_handler(None)
    assert problems == []


@pytest.fixture
def sockets_allowed() -> Iterator[int]:
    """Have as many sockets as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def nothing_remains(hub: Hub) -> None:
    await until_async(lambda: not hub.clients)
    assert (len(hub._groups), hub._slow_clients._clients, hub._budget.used_bytes) == (0, {}, 0)
    assert not any(hub._groups.of_topic(type_.topic) for type_ in hub.types.values())


async def request(service: Service) -> bytes:
    """Return a handshake that is accepted."""
    client = await service.raw()
    await client.close()
    await until_async(lambda: not service.hub.clients)
    return client.request


async def serves(service: Service) -> None:
    """Check that a good client is served."""
    async with connect(service.url, additional_headers=HEADERS) as ws:
        await ws.send(json.dumps(SUBSCRIBE))
        assert json.loads(await ws.recv())["op"] == "subscribed"
        service.push(7, 3)
        while not (events := json.loads(await ws.recv()))["events"]:
            """Only the position, which is due at times."""
        assert [event["timestamp_ns"] for event in events["events"]] == [7, 8, 9]


async def read_out(client: RawClient) -> int | None:
    """Read to the end without sending and return the code of the close frame, if any."""
    code = None
    if client.writer.can_write_eof():
        client.writer.write_eof()
    try:
        while True:
            opcode, payload = await client.receive()
            code = int.from_bytes(payload[:2]) if opcode == 8 else code
    except (asyncio.IncompleteReadError, ConnectionError):
        await client.close()
    return code


def some_json(chance: random.Random, depth: int = 3) -> object:
    kind = chance.randrange(4 if depth else 2)
    if kind == 0:
        return chance.choice(VALUES)
    if kind == 1:
        return chance.choice(WORDS)
    if kind == 2:
        return [some_json(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {chance.choice(WORDS): some_json(chance, depth - 1) for _ in range(chance.randrange(4))}


def some_frame(chance: random.Random) -> bytes:
    """Return a frame that is wrong in one of many ways, or not at all."""
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(1, 200))
        case 1:
            return client_frame(1, chance.randbytes(chance.randrange(100)))
        case 2:
            frame = bytearray(client_frame(1, json.dumps(SUBSCRIBE).encode()))
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
            return bytes(frame)
        case 3:
            return client_frame(
                chance.randrange(16),
                chance.randbytes(chance.randrange(130)),
                final=chance.random() < 0.7,
            )
        case 4:
            return client_frame(
                1,
                json.dumps({**SUBSCRIBE, chance.choice(WORDS): some_json(chance)}).encode(
                    errors="surrogatepass"
                ),
            )
        case _:
            return client_frame(1, json.dumps(some_json(chance)).encode())


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("known", [True, False])
async def test_whatever_bytes_come_after_the_handshake(service: Service, known: bool) -> None:
    chance = random.Random(20261122)
    codes = set()
    for _ in range(150):
        client = await (service.raw() if known else service.raw_stranger())
        for _ in range(chance.randrange(1, 6)):
            client.send(some_frame(chance))
        codes.add(await read_out(client))
        service.push(0, 2)
    assert codes - {None} <= CLEAR_CODES
    assert 1002 in codes
    await nothing_remains(service.hub)
    await serves(service)


@pytest.mark.usefixtures("calm")
async def test_whatever_bytes_come_before_the_handshake(service: Service) -> None:
    chance = random.Random(20261122)
    good = await request(service)
    for number in range(150):
        head = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            head[chance.randrange(len(head))] = chance.randrange(256)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            chance.randbytes(chance.randrange(1, 400))
            if number % 2
            else bytes(head[: chance.randrange(len(head))])
        )
        writer.write_eof()
        answer = await reader.read()
        assert answer == b"" or answer.startswith(
            (b"HTTP/1.1 4", b"HTTP/1.1 2", b"HTTP/1.1 101")
        ), answer
        writer.close()
    await nothing_remains(service.hub)
    await serves(service)


@pytest.mark.parametrize(("message", "code", "field"), REFUSED)
async def test_what_there_is_not_is_refused_and_the_connection_stays(
    service: Service, message: dict[str, object], code: str, field: str
) -> None:
    async with connect(service.url, additional_headers=HEADERS) as ws:
        await ws.send(json.dumps(message))
        error = json.loads(await ws.recv())
        assert (error["op"], error["code"], error["field"]) == ("error", code, field)
        assert error["detail"]
        assert not service.hub._groups
        await ws.send(json.dumps(SUBSCRIBE))
        assert json.loads(await ws.recv())["op"] == "subscribed"
    await nothing_remains(service.hub)


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize(
    ("known", "frames", "code"),
    [
        pytest.param(True, [client_frame(1, b" " * 200_001)], 1009, id="message"),
        pytest.param(
            True,
            [client_frame(1, b" " * 50_000, final=False)]
            + [client_frame(0, b" " * 50_000, final=False)] * 4,
            1009,
            id="fragments",
        ),
        pytest.param(True, [b"\x81\xff" + (2**62).to_bytes(8) + b"1234"], 1009, id="announced"),
        pytest.param(True, [client_frame(9, bytes(126))], 1002, id="ping"),
        pytest.param(False, [client_frame(1, b" " * 20_001)], 1009, id="message of a stranger"),
    ],
)
async def test_what_is_too_large_ends_the_connection(
    start: Callable[..., Any], known: bool, frames: list[bytes], code: int
) -> None:
    service: Service = await start(
        message_bytes=200_000, unauthenticated_bytes=20_000, close_timeout_s=30
    )
    client = await (service.raw() if known else service.raw_stranger())
    client.send(*([client_frame(1, json.dumps(SUBSCRIBE).encode())] if known else []), *frames)
    assert await client.close_code() == code
    await nothing_remains(service.hub)
    await serves(service)


async def test_a_message_nested_beyond_reason_is_no_json(service: Service) -> None:
    async with connect(service.url, additional_headers=HEADERS) as ws:
        await ws.send("[" * 50_000)
        assert json.loads(await ws.recv())["code"] == "bad_json"
        await ws.send(
            '{"op":"subscribe","id":"s1","topics":["tick"],"filter":'
            + "[" * 1000
            + "]" * 1000
            + "}"
        )
        assert json.loads(await ws.recv())["code"] in {"bad_filter", "bad_json"}
    await nothing_remains(service.hub)


@pytest.mark.usefixtures("calm")
async def test_peers_that_are_killed_are_forgotten(service: Service) -> None:
    number = 20
    head = await request(service)
    frame = client_frame(1, json.dumps(SUBSCRIBE).encode())
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(service.port),
        str(number),
        head.hex(),
        frame.hex(),
    ]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"subscribed\n"
    assert sum(len(client.subscriptions) for client in service.hub.clients.values()) == number
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    service.push(0, 600)
    await until_async(
        lambda: not any(client.subscriptions for client in service.hub.clients.values())
    )
    await serves(service)


@pytest.mark.usefixtures("calm")
async def test_half_open_connections_end(start: Callable[..., Any]) -> None:
    service: Service = await start(ping_interval_s=1, close_timeout_s=0.05, auth_timeout_s=1)
    silent = []
    for _ in range(20):
        client = await service.raw()
        client.send(client_frame(1, json.dumps(SUBSCRIBE).encode()))
        silent.append(client)
    await until_async(lambda: bool(service.hub._groups))
    anonymous_clients = [await service.raw_stranger() for _ in range(20)]
    # Nobody answers pings or close frames, and nobody says goodbye.
    await nothing_remains(service.hub)
    for client, code in [
        *((client, 1001) for client in silent),
        *((client, 4401) for client in anonymous_clients),
    ]:
        assert await read_out(client) == code
    await serves(service)


@pytest.mark.slow
async def test_thousands_of_idle_sockets(start: Callable[..., Any], sockets_allowed: int) -> None:
    number = min(10_000, sockets_allowed // 2 - 300)
    service: Service = await start(
        PrincipalQuota(connections=number + 1),
        close_timeout_s=1,
        ping_interval_s=600,
        connections=number + 1,
        tick_s=0.2,
    )
    head = await request(service)
    loop = asyncio.get_running_loop()
    idle = []
    for _ in range(number):
        peer = socket.socket()
        peer.setblocking(False)
        await loop.sock_connect(peer, ("127.0.0.1", service.port))
        await loop.sock_sendall(peer, head)
        idle.append(peer)
    await until_async(lambda: len(service.hub.clients) == number)
    await serves(service)
    assert len(service.hub.clients) >= number
    for peer in idle:
        peer.close()
    await until_async(lambda: len(service.hub.clients) <= 1)
    await serves(service)
