"""Connections of the embedded broker: none of the agents' keeps the control plane out."""

import asyncio
import base64
import hashlib
import hmac
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mev.broker.__main__ import APIS
from mev.broker.scram import Verifier
from mev.broker.server import Broker
from mev.broker.topics import Topics

CONNECTIONS = 6
API_VERSIONS, SASL_HANDSHAKE, SASL_AUTHENTICATE = 18, 17, 36
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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


async def asked(streams: Streams, key: int, version: int, body: bytes) -> bytes:
    """Send a request; return the answer behind its number."""
    reader, writer = streams
    request = struct.pack(">hhih", key, version, 1, -1) + body
    writer.write(struct.pack(">i", len(request)) + request)
    size = int.from_bytes(await reader.readexactly(4))
    return (await reader.readexactly(size))[4:]


async def said(streams: Streams, message: bytes) -> bytes:
    """Send a message of SCRAM; return the answer to it."""
    answer = await asked(streams, SASL_AUTHENTICATE, 0, struct.pack(">i", len(message)) + message)
    assert answer[:2] == b"\0\0", answer
    return answer[8:]


async def joined(port: int, user: str) -> Streams:
    """Connect as a user."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    await asked(streams, SASL_HANDSHAKE, 1, struct.pack(">h", 13) + b"SCRAM-SHA-256")
    bare = f"n={user},r=nonce".encode()
    challenge = await said(streams, b"n,," + bare)
    fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
    salted = hashlib.pbkdf2_hmac(
        "sha256", user.encode(), base64.b64decode(fields["s"]), int(fields["i"])
    )
    key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = f"c=biws,r={fields['r']}".encode()
    signature = hmac.digest(
        hashlib.sha256(key).digest(), b",".join((bare, challenge, without_proof)), "sha256"
    )
    proof = base64.b64encode(bytes(one ^ other for one, other in zip(key, signature, strict=True)))
    await said(streams, without_proof + b",p=" + proof)
    return streams


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
