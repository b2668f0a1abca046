"""A WebTransport server on a free port, with a real hub."""

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from mev.auth.browser import Origins
from mev.bus.batch import PartitionBatch
from mev.realtime.access import StreamAccess
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits, WebTransportLimits
from mev.realtime.webtransport.certificates import CertificateSource, SelfSigned
from mev.realtime.webtransport.server import WebTransportServer
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import EVENT_TYPES
from tests.integration.realtime.service import Keys

BOUNDS = {"tick_s": 0.01, "close_grace_s": 1, "linger_s": 0.05}
LIMITS = {"batch_window_ms": 2, "tick_s": 0.01}


class Service:
    """A WebTransport server with everything behind it."""

    def __init__(
        self,
        folder: Path,
        limits: dict[str, Any],
        bounds: dict[str, Any],
        source: CertificateSource | None = None,
    ) -> None:
        self.hub = Hub(EVENT_TYPES, HubLimits(**{**LIMITS, **limits}))
        self.keys = Keys()
        self.guard = StreamAccess(self.hub, self.keys, period_s=0.01)
        self.registry = CollectorRegistry()
        self.server = WebTransportServer(
            self.hub,
            self.guard,
            source or SelfSigned(folder),
            origins=Origins(["https://desk.example"]),
            bounds=WebTransportLimits(**{**BOUNDS, **bounds}),
            registry=self.registry,
            reload_s=0.01,
        )
        self.counts = self.server.counts

    async def started(self, host: str = "127.0.0.1") -> None:
        await self.server.start(host, 0)
        self.port = self.server.port
        self._guarding = asyncio.create_task(self.guard.run())

    async def stop(self) -> None:
        await self.server.close()
        self._guarding.cancel()
        await asyncio.gather(self._guarding, return_exceptions=True)
        self.hub.close()
        assert self.server.is_empty
        assert not self.hub.clients
        assert (self.counts.connections, self.counts.sessions, self.counts.failures) == (0, 0, 0)

    def push(self, first: int, number: int, size: int = 0) -> None:
        """Have `number` events consumed."""
        offsets = list(range(first, first + number))
        values = [
            Tick(market_id="m" * size, timestamp_ns=offset).SerializeToString()
            for offset in offsets
        ]
        self.hub.push(PartitionBatch("mev.tick.v1", 0, offsets, [b""] * number, values))
