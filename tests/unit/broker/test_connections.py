"""Connections of the embedded broker: none of the agents' keeps the control plane out."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mev.broker.__main__ import APIS
from mev.broker.scram import Verifier
from mev.broker.server import Api, Broker
from mev.broker.topics import Topics
from mev.broker.wire import RequestReader, ResponseWriter
from tests.unit.broker.client import API_VERSIONS, Streams, asked, joined, request

CONNECTIONS = 6
SEEN = 100
PIPELINED = 500


@pytest.fixture
def seen() -> list[str]:
    """Return the users of the requests with the key SEEN, in the order of their answers."""
    return []


@pytest.fixture
async def port(tmp_path: Path, seen: list[str]) -> AsyncIterator[int]:
    """Serve a broker with few connections; its users' passwords are their names."""

    def see(_: Broker, asking: RequestReader) -> ResponseWriter:
        seen.append(asking.user)
        return ResponseWriter()

    broker = Broker(
        Topics(tmp_path, partition_bytes=1 << 20),
        {**APIS, SEEN: Api(0, 0, see)},
        {user: Verifier(user, user) for user in ("mev", "agent")},
        host="127.0.0.1",
        port=0,
        connections=CONNECTIONS,
        read_only={"agent": frozenset({"orders"})},
    )
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def is_open(streams: Streams) -> bool:
    try:
        await asked(streams, API_VERSIONS, 0, b"")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return True


async def test_agents_have_half_of_the_connections(port: int) -> None:
    agents = [await joined(port, "agent") for _ in range(CONNECTIONS)]
    assert [await is_open(each) for each in agents] == [True] * 3 + [False] * 3
    ours = [await joined(port, "mev") for _ in range(3)]
    assert all([await is_open(each) for each in ours])
    for _, writer in agents + ours:
        writer.close()


async def test_requests_of_agents_are_not_as_large_as_ours(port: int) -> None:
    for user, survives in (("agent", False), ("mev", True)):
        reader, writer = await joined(port, user)
        writer.write(struct.pack(">i", 8 << 20) + struct.pack(">hhih", API_VERSIONS, 0, 1, -1))
        writer.write(bytes((8 << 20) - 10))
        try:
            await writer.drain()
            answered = bool(await reader.read(4))
        except ConnectionError:
            answered = False
        assert answered == survives
        writer.close()


async def test_pipelined_requests_of_one_client_let_others_have_their_turn(
    port: int, seen: list[str]
) -> None:
    agent, ours = await joined(port, "agent"), await joined(port, "mev")
    agent[1].write(request(SEEN, 0, b"") * PIPELINED)
    await asked(ours, SEEN, 0, b"")
    assert seen.index("mev") < PIPELINED // 2
    await agent[0].readexactly(8 * PIPELINED)
    for _, writer in (agent, ours):
        writer.close()


async def test_agents_share_one_turn_whatever_their_connections(port: int, seen: list[str]) -> None:
    agents = [await joined(port, "agent") for _ in range(CONNECTIONS // 2)]
    ours, number = await joined(port, "mev"), 100
    for _, writer in agents:
        writer.write(request(SEEN, 0, b"") * PIPELINED)
    ours[1].write(request(SEEN, 0, b"") * number)
    await ours[0].readexactly(8 * number)
    while_ours = seen[seen.index("mev") :]
    assert while_ours.count("agent") < 1.5 * number  # three times as many if each had a turn
    for _, writer in (*agents, ours):
        writer.close()


async def test_stranger_has_few_requests_before_authentication(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(API_VERSIONS, 0, b"") * PIPELINED)
    answers = 0
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
            answers += 1
    assert answers <= 8
    writer.close()
