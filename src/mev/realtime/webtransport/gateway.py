"""The WebTransport service: the socket, its certificate, and the end of both."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from aioquic.quic.configuration import QuicConfiguration
from prometheus_client import CollectorRegistry

from mev.auth.browser import Origins
from mev.realtime.guard import Guard
from mev.realtime.hub import Hub
from mev.realtime.webtransport import quic
from mev.realtime.webtransport.bounds import Bounds
from mev.realtime.webtransport.certificates import Certificate, CertificateError, Source
from mev.realtime.webtransport.connection import Desk
from mev.realtime.webtransport.counts import Counts, CountsCollector
from mev.realtime.webtransport.endpoint import Endpoint
from mev.realtime.webtransport.requests import LOCALHOST, PATH

LOG = logging.getLogger(__name__)
_LOOK_S = 30.0


class Gateway:
    """Serves sessions from :meth:`start` to :meth:`close`, on the event loop it is started on."""

    def __init__(
        self,
        hub: Hub,
        guard: Guard,
        source: Source,
        *,
        origins: Origins | None = None,
        bounds: Bounds | None = None,
        registry: CollectorRegistry | None = None,
        look_s: float = _LOOK_S,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.counts = Counts()
        self.port = 0
        """The UDP port, once started."""
        self._desk = Desk(hub=hub, guard=guard, origins=origins or Origins(), bounds=self.bounds, counts=self.counts)
        self._source = source
        self._look_s = look_s
        self._registry = registry
        self._collector = CountsCollector(self.counts)
        self._certificate: Certificate
        self._configuration: QuicConfiguration
        self._endpoint: Endpoint
        self._tasks: Sequence[asyncio.Task[None]] = ()

    async def start(self, host: str, port: int) -> None:
        """Bind the socket and serve; port 0 takes a free one.

        :raises CertificateError, AddressUnusableError: when that cannot be.
        """
        certificate = await asyncio.to_thread(self._source.look)
        if certificate is None:
            raise CertificateError("there is no certificate for WebTransport")
        self._show(certificate)
        self._endpoint = Endpoint(self._desk, lambda: self._configuration)
        self.port = self._endpoint.open(host, port)
        self._tasks = [asyncio.create_task(work, name=name) for name, work in (("wt-tick", self._tick()), ("wt-certificate", self._look()))]
        if self._registry is not None:
            self._registry.register(self._collector)

    async def close(self) -> None:
        """End every session with 1001, wait a while for what is under way, then close the socket; a no-op when closed."""
        if not self._tasks:
            return
        self._endpoint.refuse()
        for connection in list(self._endpoint.connections):
            if connection.link is not None:
                connection.link.send_away()
            else:
                connection.close()
        deadline = time.monotonic() + self.bounds.close_grace_s + self.bounds.linger_s
        while not self._endpoint.is_closed and time.monotonic() < deadline:  # noqa: ASYNC110 - they end one by one
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = ()
        self._endpoint.close()
        if self._registry is not None:
            self._registry.unregister(self._collector)

    def describe(self, host: str) -> dict[str, object]:
        """Return what a page needs to connect, when it knows this server as `host`, a name without a port."""
        if host == LOCALHOST:  # browsers look for that at ::1 first, and for WebTransport nowhere else
            host = "::1" if self._endpoint.is_ipv6 else "127.0.0.1"
        name = f"[{host}]" if ":" in host else host
        hashes = [{"algorithm": "sha-256", "value": self._certificate.sha256}] if self._certificate.self_signed else []
        return {"enabled": True, "url": f"https://{name}:{self.port}{PATH}", "certificate_hashes": hashes}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept of any connection."""
        return not self._endpoint.connections and not self._endpoint.routes

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.bounds.tick_s)
            self._endpoint.tick(time.monotonic())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            try:
                certificate = await asyncio.to_thread(self._source.look)
            except CertificateError as error:
                LOG.error("the certificate stays: %s", error.detail, extra={"action": "webtransport_certificate_unusable"})
                continue
            if certificate is not None:
                self._show(certificate)
                LOG.info("new connections see another certificate", extra={"action": "webtransport_certificate_changed"})

    def _show(self, certificate: Certificate) -> None:
        base = quic.configuration(idle_timeout_s=self.bounds.idle_timeout_s, max_datagram_bytes=self.bounds.max_datagram_bytes)
        first, *rest = certificate.chain
        self._configuration = replace(base, certificate=first, certificate_chain=rest, private_key=certificate.key)
        self._certificate = certificate


DISABLED: dict[str, object] = {"enabled": False, "url": None, "certificate_hashes": []}
