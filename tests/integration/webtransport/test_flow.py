"""Frames and datagrams under way: slow clients, late frames, limits of the peer."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from aioquic.h3.connection import ErrorCode

from mev.realtime.batch import EncodedFrame
from mev.realtime.link import CloseCode
from mev.realtime.webtransport.framing import Closed
from mev.realtime.webtransport.outbox import LATE
from mev.realtime.webtransport.quic import stream_error
from mev.realtime.webtransport.session import WebTransportSession
from mev.wire.pb.stream_pb2 import Frame
from tests.integration.realtime.service import KEY
from tests.integration.webtransport.client import Peer, peer
from tests.integration.webtransport.service import Service
from tests.services.waits import until_async

SUBSCRIBE = {"op": "subscribe", "id": "s1", "topics": ["tick"]}


def link_of(service: Service) -> WebTransportSession:
    """Return the link of the only session."""
    (client,) = service.hub.clients.values()
    assert isinstance(client.link, WebTransportSession)
    return client.link


def ended(wt: Peer) -> tuple[int, str]:
    """Return the error and the reason that a connection ended with."""
    assert wt.terminated is not None
    return wt.terminated.error_code, wt.terminated.reason_phrase


class Deaf:
    """While it lasts, packets to a peer are lost."""

    def __init__(self, wt: Peer) -> None:
        self._wt = wt

    def __enter__(self) -> None:
        self._wt.datagram_received = lambda data, addr: None  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self._wt.datagram_received


class Mute(asyncio.DatagramTransport):
    """A socket whose packets are all lost."""

    def sendto(self, data: object, addr: object = None) -> None:
        """Lose a packet."""


@pytest.mark.parametrize("low_latency", [False, True])
async def test_many_frames_of_all_sizes_arrive_whole(
    start: Callable[..., Any], low_latency: bool
) -> None:
    service: Service = await start(low_latency=low_latency)
    async with peer(service.port, max_data=1 << 24, max_stream_data=1 << 24) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        sizes = [0, 1, 100, 16_383, 16_384, 65_536, 300_000, *([50] * 400)]
        for number, size in enumerate(sizes):
            link.send_frame(
                EncodedFrame(bytes([number % 251]) * size), b"tail%d" % number, stale=False
            )
        await wt.until(lambda: len(wt.whole) == len(sizes))
        expected = [
            bytes([number % 251]) * size + b"tail%d" % number for number, size in enumerate(sizes)
        ]
        assert sorted(wt.whole) == sorted(expected)
        await until_async(lambda: link.backlog() == 0)
        assert link.taken() >= sum(map(len, expected))
        assert (link.outbox.quic._loss._pacer.packet_time is None) is low_latency


async def test_what_the_peer_does_not_let_us_send_waits_and_counts(service: Service) -> None:
    async with peer(service.port, max_stream_data=1000) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        with Deaf(wt):
            link.send_frame(EncodedFrame(bytes(1_000_000)), b"", stale=False)
            assert link.backlog() >= 1_000_000
            await until_async(lambda: not link.outbox.waits or link.outbox.unsent() > 0)
            assert link.backlog() >= 1_000_000
        await wt.until(lambda: wt.whole)
        await until_async(lambda: link.backlog() == 0)


async def test_the_stream_limit_of_the_peer_is_kept(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        for number in range(1000):  # it lets us have 128 at a time
            link.send_frame(EncodedFrame(b"%d" % number), b"", stale=False)
        await wt.until(lambda: len(wt.whole) == 1000)


async def test_late_frames_are_given_up_for_newer_ones(start: Callable[..., Any]) -> None:
    service: Service = await start(stale_s=0.05)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        with Deaf(wt):
            for number in range(4):
                link.send_frame(EncodedFrame(bytes([number]) * 200_000), b"", stale=number != 1)
            await until_async(lambda: service.counts.frames_given_up == 2)
        await wt.until(lambda: len(wt.whole) == 2)
        assert sorted(data[0] for data in wt.whole) == [1, 3]  # the lossless one, and the newest
        assert set(wt.resets.values()) <= {stream_error(LATE)}
        await until_async(lambda: link.backlog() == 0)


async def test_a_frame_alone_is_never_late(start: Callable[..., Any]) -> None:
    service: Service = await start(stale_s=0.01)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        with Deaf(wt):
            link_of(service).send_frame(EncodedFrame(bytes(100_000)), b"", stale=True)
            link_of(service).tick(time.monotonic() + 10)
        await wt.until(lambda: wt.whole)
        assert not service.counts.frames_given_up


async def test_frames_that_may_be_given_up_make_room(start: Callable[..., Any]) -> None:
    service: Service = await start(unacknowledged_bytes=1_000_000)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        with Deaf(wt):
            for number in range(10):
                link.send_frame(EncodedFrame(bytes([number]) * 400_000), b"", stale=True)
            assert link.backlog() < 1_500_000
            assert link.outbox.given_up
        await wt.until(lambda: any(data[0] == 9 for data in wt.whole))


async def test_frames_that_may_not_end_the_session(start: Callable[..., Any]) -> None:
    service: Service = await start(unacknowledged_bytes=1_000_000)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        for number in range(4):
            link_of(service).send_frame(EncodedFrame(bytes([number]) * 400_000), b"", stale=False)
        await until_async(lambda: not service.hub.clients)
        await wt.until(lambda: wt.terminated)
        assert ended(wt) == (
            ErrorCode.H3_EXCESSIVE_LOAD,
            "1013: more than 1000000 bytes are not acknowledged",
        )


async def test_a_stream_the_client_does_not_want_is_given_up(service: Service) -> None:
    async with peer(service.port, max_stream_data=1000) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        link.send_frame(EncodedFrame(bytes(1_000_000)), b"", stale=False)
        await wt.until(lambda: wt.streams)
        (stream_id,) = wt.streams
        wt.quic.stop_stream(stream_id, 0)
        wt.transmit()
        await wt.until(lambda: stream_id in wt.resets)
        await until_async(lambda: link.backlog() == 0)
        link.send_frame(EncodedFrame(b"next"), b"", stale=False)
        await wt.until(lambda: wt.whole == [b"next"])


async def test_a_slow_client_loses_the_oldest_and_learns_it(start: Callable[..., Any]) -> None:
    service: Service = await start(limits={"soft_buffer_bytes": 200_000, "queue_bytes": 200_000})
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE)
        with Deaf(wt):
            for first in range(0, 256 * 20, 256):
                service.push(first, 256, size=400)
        received, dropped = 0, 0
        while received + dropped < 256 * 20:
            await wt.until(lambda: wt.whole or b"\n" in wt.lines)
            if wt.whole:
                frame = await wt.frame()
                received += sum(len(part.events) for part in frame.slices)
                dropped += frame.dropped
            else:
                dropped += (await wt.hear()).get("dropped", 0)
        assert dropped
        assert received + dropped == 256 * 20


async def test_a_slow_client_holds_up_nobody(service: Service) -> None:
    async with peer(service.port) as slow, peer(service.port) as fast:
        for wt in (slow, fast):
            await wt.open(X_API_Key=KEY)
            await wt.ask(**SUBSCRIBE)
        with Deaf(slow):
            for first in range(0, 256 * 8, 256):
                service.push(first, 256, size=400)
            await fast.until(lambda: len(fast.whole) == 8)


async def test_datagrams(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        assert (await wt.ask(**SUBSCRIBE, delivery="datagram"))["delivery"] == "datagram"
        service.push(7, 20, size=100)
        await wt.until(
            lambda: (
                sum(
                    len(part.events)
                    for data in wt.datagrams
                    for part in Frame.FromString(data).slices
                )
                == 20
            )
        )
        assert all(len(data) <= link_of(service).datagram_bytes() for data in wt.datagrams)
        assert min(Frame.FromString(data).sequence for data in wt.datagrams) == 0


@pytest.mark.parametrize("limit", [1200, 1350, 1472])
async def test_the_largest_datagram_arrives_and_a_larger_one_is_not_tried(
    start: Callable[..., Any], limit: int
) -> None:
    service: Service = await start(max_datagram_bytes=limit)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        link = link_of(service)
        most = link.datagram_bytes()
        assert limit - 60 < most < limit
        for size in (most + 1, most, 1):
            link.send_datagram(bytes(size))
        await wt.until(lambda: len(wt.datagrams) == 2)
        assert sorted(map(len, wt.datagrams)) == [1, most]


async def test_the_newest_datagrams_are_kept(start: Callable[..., Any]) -> None:
    service: Service = await start(datagrams_waiting=8)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        for number in range(100):
            link_of(service).send_datagram(b"%d" % number)
        await wt.until(lambda: b"99" in wt.datagrams)
        assert wt.datagrams == [b"%d" % number for number in range(92, 100)]
        assert service.counts.datagrams_given_up == 92


async def test_a_peer_that_takes_no_datagrams_has_no_session(service: Service) -> None:
    async with peer(service.port, max_datagram_frame_size=None) as wt:
        wt.session = wt.request(X_API_Key=KEY)
        await wt.until(lambda: wt.terminated)  # it announced what it has not
    await until_async(lambda: service.server.is_empty)


async def test_a_silent_client_is_pinged_and_then_gone(start: Callable[..., Any]) -> None:
    service: Service = await start(limits={"ping_interval_s": 0.02}, idle_timeout_s=0.4)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE)
        (client,) = service.hub.clients.values()
        heard = client.heard
        await until_async(lambda: client.heard >= heard + 3)  # answers to pings
        with Deaf(wt):
            await until_async(lambda: not service.hub.clients)


async def test_silent_connection_ends_with_a_reason(start: Callable[..., Any]) -> None:
    service: Service = await start(limits={"ping_interval_s": 0.05}, idle_timeout_s=0.4)
    async with peer(service.port) as wt:
        # It would end the session for the same reason.
        wt.quic._idle_timeout = lambda: 60.0  # type: ignore[method-assign]
        await wt.open(X_API_Key=KEY)
        wt._transport = Mute()
        await wt.until(lambda: wt.terminated)
        code, reason = ended(wt)
        assert code == ErrorCode.H3_NO_ERROR
        assert reason.startswith("nothing was received for ")


async def test_blocked_lossless_client_learns_why_its_session_ended(
    start: Callable[..., Any],
) -> None:
    limits = {"soft_buffer_bytes": 50_000, "queue_bytes": 50_000, "close_timeout_s": 0.1}
    service: Service = await start(limits=limits, close_grace_s=0.05)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE, on_slow="lossless")
        with Deaf(wt):
            for first in range(0, 256 * 8, 256):
                service.push(first, 256, size=400)
            (client,) = service.hub.clients.values()
            await until_async(lambda: client.closing)
            await asyncio.sleep(0.3)  # longer than a client has that reads
            assert service.hub.clients
        await wt.until(lambda: wt.closed)
        assert wt.closed == Closed(
            1013, "too much waits for a lossless subscription; resume from the cursor"
        )
        while (message := await wt.hear())["op"] != "closing":
            assert message["op"] == "progress"
        assert message["code"] == "too_slow"
        await wt.until(lambda: wt.terminated)
        assert ended(wt) == (ErrorCode.H3_EXCESSIVE_LOAD, f"1013: {wt.closed.reason}")
    await until_async(lambda: not service.hub.clients)


async def test_client_that_missed_the_end_of_its_connection_is_told_when_it_sends(
    service: Service,
) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        with Deaf(wt):
            link_of(service).abort(CloseCode.GOING_AWAY, "the client took nothing for 30 s")
            await until_async(lambda: service.server.is_empty)
        await asyncio.sleep(0.11)  # it is not told for every packet
        wt.quic.send_ping(1)
        wt.transmit()
        await wt.until(lambda: wt.terminated)
        assert ended(wt) == (ErrorCode.H3_NO_ERROR, "1001: the client took nothing for 30 s")


async def test_lost_packets_are_sent_again(service: Service) -> None:
    rng = random.Random(4433)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        receive = wt.datagram_received
        wt.datagram_received = lambda data, addr: (  # type: ignore[method-assign]
            None if rng.random() < 0.1 else receive(data, addr)
        )
        for number in range(40):
            link_of(service).send_frame(EncodedFrame(bytes([number]) * 20_000), b"", stale=False)
        await wt.until(lambda: len(wt.whole) == 40)
        assert sorted(data[0] for data in wt.whole) == list(range(40))


async def test_a_client_may_change_its_address(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(op="ping")
        wt._transport.close()  # type: ignore[union-attr]
        moved, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: wt, local_addr=("::", 0)
        )
        assert await wt.ask(op="ping") == {"op": "pong"}
        link_of(service).send_frame(EncodedFrame(bytes(100_000)), b"", stale=False)
        await wt.until(lambda: wt.whole)
        assert service.counts.connections == 1
        wt.close()
        moved.close()
