"""Connections of the embedded broker: none of the agents' keeps the control plane out."""

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mev.broker.__main__ import APIS
from mev.broker.scram import Verifier
from mev.broker.server import Broker
from mev.broker.topics import Topics
from tests.unit.broker.client import API_VERSIONS, Streams, asked, joined

CONNECTIONS = 6


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """Serve a broker with few connections; its users' passwords are their names."""
    broker = Broker(
        Topics(tmp_path, partition_bytes=1 << 20),
        APIS,
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
