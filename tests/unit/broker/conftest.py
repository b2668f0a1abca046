"""A broker for the tests."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mev.broker.__main__ import APIS
from mev.broker.scram import Verifier
from mev.broker.server import Broker
from mev.broker.topics import Topics
from tests.unit.broker.client import PARTITIONS, TOPIC


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """Serve a broker with one topic; its users' passwords are their names."""
    topics = Topics(tmp_path, partition_bytes=64 << 20)
    topics.create(TOPIC, PARTITIONS)
    broker = Broker(
        topics,
        APIS,
        {user: Verifier(user, user) for user in ("mev", "agent")},
        host="127.0.0.1",
        port=0,
        connections=6,
        read_only={"agent": frozenset({"orders"})},
    )
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
