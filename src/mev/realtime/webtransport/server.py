"""The WebTransport server: its socket and certificate, from start to close."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from aioquic.quic.configuration import QuicConfiguration
from prometheus_client import CollectorRegistry

from mev.auth.browser import Origins
from mev.core.tasks import cancel_and_log
from mev.realtime.access import StreamAccess
from mev.realtime.hub import Hub
from mev.realtime.limits import WebTransportLimits
from mev.realtime.metrics import WebTransportCollector, WebTransportCounts
from mev.realtime.webtransport import quic
from mev.realtime.webtransport.certificates import Certificate, CertificateError, CertificateSource
from mev.realtime.webtransport.connection import RequestContext
from mev.realtime.webtransport.endpoint import Endpoint
from mev.realtime.webtransport.handshake import LOCALHOST, PATH

LOG = logging.getLogger(__name__)
_RELOAD_S = 30.0


class WebTransportServer:
    """Serves sessions from :meth:`start` to :meth:`close`, on the event loop it is started on."""

    def __init__(
        self,
        hub: Hub,
        access: StreamAccess,
        source: CertificateSource,
        *,
        origins: Origins | None = None,
        bounds: WebTransportLimits | None = None,
        registry: CollectorRegistry | None = None,
        reload_s: float = _RELOAD_S,
    ) -> None:
        self.bounds = bounds or WebTransportLimits()
        self.counts = WebTransportCounts()
        self.port = 0
        """The UDP port, once started."""
        self._context = RequestContext(
            hub=hub,
            access=access,
            origins=origins or Origins(),
            bounds=self.bounds,
            counts=self.counts,
        )
        self._source = source
        self._reload_s = reload_s
        self._registry = registry
        self._collector = WebTransportCollector(self.counts)
        self._certificate: Certificate
        self._configuration: QuicConfiguration
        self._endpoint: Endpoint
        self._tasks: Sequence[asyncio.Task[None]] = ()

    async def start(self, host: str, port: int) -> None:
        """Bind the socket and serve; port 0 takes a free one.

        :raises CertificateError, AddressUnusableError: if that fails.
        """
        certificate = await asyncio.to_thread(self._source.reload)
        if certificate is None:
            raise CertificateError("there is no certificate for WebTransport")
        self._use(certificate)
        self._endpoint = Endpoint(self._context, lambda: self._configuration)
        self.port = self._endpoint.open(host, port)
        self._tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (("wt-tick", self._tick()), ("wt-certificate", self._reload()))
        ]
        if self._registry is not None:
            self._registry.register(self._collector)

    async def close(self) -> None:
        """Close every session with 1001, wait briefly for pending data, then close the socket.

        No effect if already closed.
        """
        if not self._tasks:
            return
        self._endpoint.refuse()
        for connection in list(self._endpoint.connections):
            if connection.session is not None:
                connection.session.shut_down()
            else:
                connection.close("the server is shutting down")
        deadline = time.monotonic() + self.bounds.close_grace_s + self.bounds.linger_s
        # They end one by one.
        while not self._endpoint.is_closed and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await cancel_and_log(*self._tasks)
        self._tasks = ()
        self._endpoint.close()
        if self._registry is not None:
            self._registry.unregister(self._collector)

    def describe(self, host: str) -> dict[str, object]:
        """Return what a page needs to connect; `host` is this server's name in the page."""
        # Browsers try ::1 first for localhost, and for WebTransport nothing else.
        if host == LOCALHOST:
            host = "::1" if self._endpoint.is_ipv6 else "127.0.0.1"
        name = f"[{host}]" if ":" in host else host
        hashes = (
            [{"algorithm": "sha-256", "value": self._certificate.sha256}]
            if self._certificate.self_signed
            else []
        )
        return {
            "enabled": True,
            "url": f"https://{name}:{self.port}{PATH}",
            "certificate_hashes": hashes,
        }

    @property
    def is_empty(self) -> bool:
        """True if no connection is open."""
        return not self._endpoint.connections and not self._endpoint.routes

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.bounds.tick_s)
            self._endpoint.tick(time.monotonic())

    async def _reload(self) -> None:
        while True:
            await asyncio.sleep(self._reload_s)
            try:
                certificate = await asyncio.to_thread(self._source.reload)
            except CertificateError as error:
                LOG.error(
                    "the certificate stays: %s",
                    error.detail,
                    extra={"action": "webtransport_certificate_unusable"},
                )
                continue
            if certificate is not None:
                self._use(certificate)
                LOG.info(
                    "new connections see another certificate",
                    extra={"action": "webtransport_certificate_changed"},
                )

    def _use(self, certificate: Certificate) -> None:
        base = quic.configuration(
            idle_timeout_s=self.bounds.idle_timeout_s,
            max_datagram_bytes=self.bounds.max_datagram_bytes,
        )
        first, *rest = certificate.chain
        self._configuration = replace(
            base, certificate=first, certificate_chain=rest, private_key=certificate.key
        )
        self._certificate = certificate


DISABLED: dict[str, object] = {"enabled": False, "url": None, "certificate_hashes": []}
