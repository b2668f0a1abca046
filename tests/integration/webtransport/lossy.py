"""A UDP proxy between a client and a server, which loses packets as it is told."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

Address = tuple[str, int]


class LossyLink(asyncio.DatagramProtocol):
    """UDP proxy of one client to `server`; `loss` is the share of packets dropped each way."""

    def __init__(self, server: Address, seed: int) -> None:
        self.loss = 0.0
        self.lost = 0
        self._server = server
        self._random = random.Random(seed)
        self._client: Address | None = None
        self._transport: asyncio.DatagramTransport

    @property
    def port(self) -> int:
        """The port that the client connects to."""
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if addr[:2] != self._server:
            self._client = addr
        if self._random.random() < self.loss:
            self.lost += 1
        elif addr[:2] != self._server:
            self._transport.sendto(data, self._server)
        elif self._client is not None:
            self._transport.sendto(data, self._client)


@asynccontextmanager
async def lossy_link(port: int, seed: int) -> AsyncIterator[LossyLink]:
    """Open a proxy before the server on `port`."""
    loop = asyncio.get_running_loop()
    transport, link = await loop.create_datagram_endpoint(
        lambda: LossyLink(("127.0.0.1", port), seed), local_addr=("127.0.0.1", 0)
    )
    try:
        yield link
    finally:
        transport.close()
