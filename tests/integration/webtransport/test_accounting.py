"""Tests of event accounting over lossy links and with slow clients."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from mev.wire.frames import offsets_of
from mev.wire.pb.stream_pb2 import Frame
from tests.integration.realtime.service import KEY
from tests.integration.webtransport.client import Peer, peer
from tests.integration.webtransport.lossy import lossy_link
from tests.integration.webtransport.service import Service
from tests.integration.webtransport.test_flow import Deaf
from tests.services.waits import until_async

PUBLISHED = 12_000
BURST = 200
SLOW = {"soft_buffer_bytes": 50_000, "queue_bytes": 100_000}


class Account:
    """Account of numbered frames and of `progress` by a client, in any order."""

    def __init__(self, wt: Peer) -> None:
        self._wt = wt
        self.received: set[int] = set()
        self.sent = 0
        self.dropped = 0

    @property
    def complete(self) -> bool:
        """Return whether every event is accounted for."""
        self._take()
        return self.sent + self.dropped == PUBLISHED

    @property
    def lost(self) -> int:
        """Return the number of events known as lost: dropped, or sent without arriving."""
        return self.dropped + self.sent - len(self.received)

    def _take(self) -> None:
        wt = self._wt
        for payload in [*wt.whole, *wt.datagrams]:
            self._take_frame(Frame.FromString(payload))
        wt.whole.clear()
        wt.datagrams.clear()
        while b"\n" in wt.lines:
            line, _, rest = wt.lines.partition(b"\n")
            wt.lines = bytearray(rest)
            self._take_message(bytes(line))

    def _take_frame(self, frame: Frame) -> None:
        offsets = [offset for part in frame.slices for offset in offsets_of(part) if part.events]
        assert not self.received.intersection(offsets)
        self.received.update(offsets)
        self.sent = max(self.sent, frame.sequence + len(offsets))
        self.dropped = max(self.dropped, frame.dropped_total)

    def _take_message(self, line: bytes) -> None:
        message: dict[str, Any] = orjson.loads(line)
        assert message["op"] == "progress"
        self.sent = max(self.sent, message["sequence"])
        self.dropped = max(self.dropped, message["dropped_total"])


async def _publish(service: Service, first: int, end: int) -> None:
    for number in range(first, end, BURST):
        service.push(number, min(BURST, end - number), size=300)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"on_slow": "drop_oldest"},
        {"on_slow": "conflate"},
        {"on_slow": "drop_oldest", "max_rate": 2000},
        {"delivery": "datagram"},
        {"delivery": "datagram", "max_rate": 2000},
    ],
)
async def test_received_and_lost_make_what_was_published(
    start: Callable[..., Any], options: dict[str, Any], seed: int
) -> None:
    service: Service = await start(limits=SLOW, stale_s=0.05, datagrams_waiting=16)
    async with lossy_link(service.port, seed) as link, peer(link.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(op="subscribe", id="s1", topics=["tick"], **options)
        account = Account(wt)
        await _publish(service, 0, PUBLISHED // 4)
        link.loss = 0.3
        await _publish(service, PUBLISHED // 4, PUBLISHED // 2)
        with Deaf(wt):
            await _publish(service, PUBLISHED // 2, 3 * PUBLISHED // 4)
        await _publish(service, 3 * PUBLISHED // 4, PUBLISHED)
        link.loss = 0.0
        await wt.until(lambda: account.complete)
        assert link.lost
        # Frames that were sent may still arrive; those given up do not.
        (client,) = service.hub.clients.values()
        await until_async(lambda: not client.link.backlog())
        assert account.complete
        assert len(account.received) + account.lost == PUBLISHED
        (subscription,) = client.subscriptions.values()
        assert (account.sent, account.dropped) == (subscription.sent, subscription.dropped)
        assert account.lost > 0
