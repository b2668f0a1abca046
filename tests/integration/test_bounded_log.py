"""A log that no client can fill: garbage over TCP and QUIC, at the port of a running system."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from aioquic.asyncio.client import connect
from aioquic.quic.configuration import QuicConfiguration

from tests.services.system import RunningSystem, running_system

pytestmark = pytest.mark.slow

REPEATS = 5
ATTACKS = 60


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(
        tmp_path_factory.mktemp("mev") / "data", LOG_REPEATS_PER_MINUTE=str(REPEATS)
    ) as running:
        yield running


def lines(log: Path) -> int:
    return len(log.read_text().splitlines())


def webtransport(system: RunningSystem) -> tuple[str, int]:
    """Return the UDP address of WebTransport, from the report at the start."""
    (line,) = [one for one in system.log.read_text().splitlines() if "(WebTransport)" in one]
    host, port = line.split("https://")[1].split("/")[0].rsplit(":", 1)
    return host, int(port)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, id="TLS"),
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
        pytest.param(
            b"GET /api/x HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            id="upgrade",
        ),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            id="bad chunk",
        ),
    ],
)
def test_bad_connections_write_few_lines(system: RunningSystem, garbage: bytes) -> None:
    host, port = system.url.removeprefix("http://").split(":")
    before = lines(system.log)
    for _ in range(ATTACKS):
        with (
            socket.create_connection((host, int(port)), timeout=20) as connection,
            suppress(OSError),
        ):
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
    assert lines(system.log) - before <= REPEATS


async def test_bad_packets_and_handshakes_over_quic_write_few_lines(system: RunningSystem) -> None:
    host, port = webtransport(system)
    before = lines(system.log)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for _ in range(10 * ATTACKS):
            udp.sendto(b"\xc3\x00\x00\x00\x01\x08" + os.urandom(1300), (host, port))
    for _ in range(ATTACKS):
        configuration = QuicConfiguration(alpn_protocols=["nope"], verify_mode=0, idle_timeout=5)
        with suppress(ConnectionError, asyncio.TimeoutError):
            async with connect(host, port, configuration=configuration):
                pass
    assert lines(system.log) - before <= REPEATS
