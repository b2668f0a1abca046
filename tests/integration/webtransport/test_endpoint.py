"""Tests of arbitrary packets: garbage, floods, other versions; and of the certificate."""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mev.realtime.webtransport import certificates, quic
from mev.realtime.webtransport.certificates import Certificate, CertificateError, Files
from mev.realtime.webtransport.endpoint import AddressUnusableError
from tests.integration.realtime.service import KEY
from tests.integration.webtransport.client import peer
from tests.integration.webtransport.service import Service
from tests.services.waits import until_async


@asynccontextmanager
async def anonymous(port: int) -> AsyncIterator["Stranger"]:
    """Open a socket without any protocol."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        Stranger, remote_addr=("127.0.0.1", port)
    )
    try:
        yield protocol
    finally:
        transport.close()


class Stranger(asyncio.DatagramProtocol):
    """Sends any bytes, and keeps what comes back."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received.append(data)

    def send(self, data: bytes) -> None:
        self.transport.sendto(data)


def first_packet() -> bytes:
    """Return the first packet of a real handshake."""
    library = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
    library.connect(("127.0.0.1", 1), now=0)
    return library.datagrams_to_send(now=0)[0][0]


async def test_garbage_leaves_nothing_and_breaks_nothing(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    service: Service = await start(connect_timeout_s=1000)
    caplog.set_level(logging.ERROR)
    rng = random.Random(4433)
    template = first_packet()
    async with peer(service.port) as wt, anonymous(service.port) as nobody:
        await wt.open(X_API_Key=KEY)
        for number in range(600):
            kind = rng.randrange(6)
            data = rng.randbytes(rng.choice([0, 1, 7, 30, 1200, 1500, 9000]))
            if kind == 1:  # a long header with anything behind it
                data = bytes([0xC0 | rng.randrange(64)]) + b"\0\0\0\1" + data
            elif kind == 2:  # a first packet with some bytes changed
                changed = bytearray(template)
                for place in rng.sample(
                    range(300), rng.randrange(1, 20)
                ):  # what follows may be padding, of which nobody takes note
                    changed[place] ^= rng.randrange(1, 256)
                data = bytes(changed)
            elif kind == 3:
                data = template[: rng.randrange(len(template))]
            elif kind == 4:  # short headers for a connection that there is
                data = bytes([0x40 | rng.randrange(64)]) + wt.quic._peer_cid.cid + data
            elif kind == 5:  # a first packet with a token
                data = (
                    template[:6]
                    + template[6:14]
                    + b"\x00"
                    + encode_uint_var(len(data) % 64)
                    + data[:64]
                    + bytes(1200)
                )
            nobody.send(data)
            if number % 50 == 0:
                assert await wt.ask(op="ping", id=str(number)) == {"op": "pong", "id": str(number)}
        await until_async(lambda: service.counts.connections == 1)
    assert service.counts.packets_ignored
    assert not caplog.records


async def test_garbage_inside_a_connection_ends_no_other(service: Service) -> None:
    rng = random.Random(4433)
    async with peer(service.port) as good:
        await good.open(X_API_Key=KEY)
        for number in range(30):
            async with peer(service.port) as bad:
                await bad.open(X_API_Key=KEY)
                for _ in range(5):
                    stream_id = bad.quic.get_next_available_stream_id(
                        is_unidirectional=bool(rng.randrange(2))
                    )
                    bad.quic.send_stream_data(
                        stream_id,
                        rng.choice([b"\0", b"\1", b"\2", b"\3", b"\x40\x54", b"\x40\x41", b""])
                        + rng.randbytes(200),
                    )
                bad.quic.send_datagram_frame(rng.randbytes(20))
                bad.transmit()
            assert await good.ask(op="ping", id=str(number)) == {"op": "pong", "id": str(number)}


async def test_an_error_of_ours_ends_one_connection(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer(service.port) as good, peer(service.port) as bad:
        for wt in (good, bad):
            await wt.open(X_API_Key=KEY)
        session = max(service.hub.clients.values(), key=lambda client: client.id).link

        def fail() -> None:
            raise AssertionError

        monkeypatch.setattr(session, "acknowledged", fail)
        bad.say(op="ping")
        await bad.until(lambda: bad.terminated)
        assert await good.ask(op="ping") == {"op": "pong"}
        assert service.counts.failures == 1
        service.counts.failures = 0


async def test_another_version_is_answered_with_ours_and_only_large_packets_are(
    service: Service,
) -> None:
    unknown = b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(8) + b"\x08" + bytes(8)
    async with anonymous(service.port) as nobody:
        nobody.send(unknown)  # smaller than the answer could be: an amplifier
        nobody.send(unknown.ljust(1200, b"\0"))
        await until_async(lambda: service.counts.packets_ignored == 2 and bool(nobody.received))
    (answer,) = nobody.received
    assert answer[1:5] == bytes(4)


async def test_in_a_flood_newcomers_show_their_address(start: Callable[..., Any]) -> None:
    service: Service = await start(retry_above=1)
    async with anonymous(service.port) as nobody:
        nobody.send(first_packet())
        await until_async(lambda: service.counts.connections == 1)
        for _ in range(20):
            nobody.send(first_packet())
        await until_async(lambda: service.counts.retries == 20)
        assert service.counts.connections == 1
        async with peer(service.port) as wt:  # it comes back with the token
            assert (await wt.open(X_API_Key=KEY))[":status"] == "200"


async def test_handshakes_take_a_share_of_the_processor_and_no_more(
    start: Callable[..., Any],
) -> None:
    """A session goes on while strangers begin one handshake after the other."""
    many = 100_000
    service: Service = await start(
        handshake_share=0.02, half_open=many, retry_above=many, sessions=many
    )
    async with peer(service.port) as wt, anonymous(service.port) as nobody:
        assert (await wt.open(X_API_Key=KEY))[":status"] == "200"
        for number in range(500):
            nobody.send(first_packet())
            if not number % 50:
                assert await wt.ask(op="ping", id=str(number)) == {"op": "pong", "id": str(number)}
        await until_async(lambda: service.counts.packets_given_up > 250)


async def test_half_open_connections_are_bounded_and_given_up(start: Callable[..., Any]) -> None:
    service: Service = await start(half_open=3, connect_timeout_s=0.1)
    async with anonymous(service.port) as nobody:
        for _ in range(10):
            nobody.send(first_packet())
        await until_async(lambda: service.counts.connections_refused == 7)
        await until_async(lambda: service.server.is_empty)


async def test_an_address_has_so_many_connections(start: Callable[..., Any]) -> None:
    service: Service = await start(sessions_per_address=1, retry_above=2)
    async with anonymous(service.port) as nobody:
        for _ in range(2):
            nobody.send(first_packet())
        await until_async(lambda: service.counts.connections == 2)
        async with peer(service.port) as wt:
            assert (await wt.open(X_API_Key=KEY))[":status"] == "200"
            nobody.send(first_packet())
            await until_async(lambda: service.counts.connections_refused == 1)


async def test_a_port_that_is_taken(service: Service) -> None:
    with pytest.raises(AddressUnusableError, match="WT_PORT"):
        await Service(Path("/nowhere"), {}, {}, Fixed(made())).server.start(
            "127.0.0.1", service.port
        )


async def test_over_ipv6(start: Callable[..., Any]) -> None:
    service: Service = await start(host="::1")
    assert (
        service.server.describe("localhost")["url"]
        == f"https://[::1]:{service.port}/api/realtime/wt"
    )
    async with peer(service.port, host="::1") as wt:
        assert (await wt.open(X_API_Key=KEY))[":status"] == "200"


async def test_what_a_page_is_told(service: Service) -> None:
    told = service.server.describe("desk.example")
    (found,) = cast("list[dict[str, str]]", told["certificate_hashes"])
    assert (told["enabled"], told["url"]) == (
        True,
        f"https://desk.example:{service.port}/api/realtime/wt",
    )
    async with peer(service.port) as wt:
        shown = wt.quic.tls._peer_certificate
    assert shown is not None
    assert Certificate(chain=(shown,), key=made().key).sha256 == found["value"]


async def test_the_server_chooses_the_cipher(service: Service) -> None:
    preferred = quic.cipher_order(has_aes=quic.processor_has_aes())
    async with peer(service.port, cipher_suites=preferred[::-1]) as wt:
        schedule = wt.quic.tls.key_schedule
        assert schedule is not None
        assert schedule.cipher_suite == preferred[0]


async def test_files_that_change_are_shown_to_newcomers(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = made(), made()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    write(chain, key, first)
    service: Service = await start(source=Files(chain, key))
    assert service.server.describe("h")["certificate_hashes"] == []
    async with peer(service.port) as before:
        await before.open(X_API_Key=KEY)
        assert before.quic.tls._peer_certificate == first.chain[0]
        chain.write_bytes(second.chain[0].public_bytes(Encoding.PEM))  # without its key: not yet
        await asyncio.sleep(0.03)
        async with peer(service.port) as wt:
            assert wt.quic.tls._peer_certificate == first.chain[0]
        write(chain, key, second)
        await until_async(lambda: service.server._configuration.certificate == second.chain[0])
        async with peer(service.port) as wt:
            assert wt.quic.tls._peer_certificate == second.chain[0]
        assert await before.ask(op="ping") == {"op": "pong"}


async def test_no_certificate_no_start(start: Callable[..., Any], tmp_path: Path) -> None:
    server = Service(tmp_path, {}, {}, Files(tmp_path / "none.pem")).server
    with pytest.raises(CertificateError, match="WT_CERTIFICATE_FILE"):
        await server.start("127.0.0.1", 0)
    await server.close()


async def test_metrics(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        assert service.registry.get_sample_value("mev_webtransport_sessions") == 1
        assert service.registry.get_sample_value("mev_webtransport_sessions_opened_total") == 1
    await until_async(lambda: service.server.is_empty)
    assert service.registry.get_sample_value("mev_webtransport_connections") == 0


class Fixed:
    """A certificate store with one permanent certificate."""

    def __init__(self, certificate: Certificate) -> None:
        self._next: Certificate | None = certificate

    def reload(self) -> Certificate | None:
        found, self._next = self._next, None
        return found


def made() -> Certificate:
    return certificates.self_signed(datetime.now(UTC))


def write(chain: Path, key: Path, certificate: Certificate) -> None:
    chain.write_bytes(certificate.chain[0].public_bytes(Encoding.PEM))
    key.write_bytes(
        certificate.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    os.utime(key)
