"""A server that says what a test tells it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from mev.wire.frames import Run, encode_frame
from mev.wire.pb.events_pb2 import Tick
from mev.wire.pb.stream_pb2 import Frame

KEY = "a-key-for-tests"
LOG = "log-1"
SUBPROTOCOL = Subprotocol("mev.v1.protobuf")


def tick(number: int) -> Tick:
    """Return the event at an offset."""
    return Tick(
        market_id=f"market-{number}",
        timestamp_ns=1_700_000_000_000_000_000 + number,
        bid_price=number / 2,
    )


class Peer:
    """The server's end of a connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self.gone = asyncio.Event()

    async def heard(self) -> dict[str, Any]:
        """Return the next message of the client."""
        message = json.loads(await self._socket.recv())
        assert isinstance(message, dict)
        return message

    async def say(self, op: str, **fields: object) -> None:
        await self._socket.send(json.dumps({"op": op, **fields}))

    async def say_anything(self, text: str) -> None:
        await self._socket.send(text)

    async def subscribed(
        self, request: dict[str, Any], next_offset: int = 0, **fields: object
    ) -> None:
        """Confirm a subscription that starts at `next_offset` of partition 0 of each topic."""
        topics = fields.pop("topics", request["topics"])
        assert isinstance(topics, list)
        cursor = {topic: {"0": next_offset} for topic in topics}
        answer = {"start": "live", "log": LOG, "cursor": cursor, "topics": topics, **fields}
        await self.say("subscribed", id=request["id"], **answer)

    async def begun(self, next_offset: int = 0, **fields: object) -> dict[str, Any]:
        """Hear `subscribe` and confirm it."""
        request = await self.heard()
        assert request["op"] == "subscribe"
        await self.subscribed(request, next_offset, **fields)
        return request

    async def events(
        self,
        first: int,
        number: int,
        *,
        partition: int = 0,
        topic: str = "mev.tick.v1",
        **tail: Any,
    ) -> None:
        offsets = list(range(first, first + number))
        await self.frame(
            [
                Run(
                    topic,
                    partition,
                    offsets,
                    [tick(offset).SerializeToString() for offset in offsets],
                )
            ],
            **tail,
        )

    async def frame(self, runs: list[Run], **tail: Any) -> None:
        await self._socket.send(encode_frame(runs, 1) + Frame(**tail).SerializeToString())

    async def close(self, code: int = 1001, reason: str = "") -> None:
        await self._socket.close(code, reason)

    def drop(self) -> None:
        """Break the connection off."""
        self._socket.transport.abort()

    def stall(self) -> None:
        """Neither read nor answer from now on."""
        assert isinstance(self._socket.transport, asyncio.Transport)
        self._socket.transport.pause_reading()

    @property
    def close_code(self) -> int | None:
        """The code the client closed with."""
        return self._socket.close_code

    @property
    def authorization(self) -> str:
        assert self._socket.request is not None
        return self._socket.request.headers["Authorization"]


class Server:
    """Peers by connection, in order; `refuse` may answer a handshake with an HTTP status."""

    def __init__(self) -> None:
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.url = ""
        self.handshakes = 0
        self.refuse: Callable[[Request], tuple[int, dict[str, str], bytes] | None] = (
            lambda _request: None
        )

    async def peer(self) -> Peer:
        async with asyncio.timeout(10):
            return await self._peers.get()

    async def handle(self, socket: ServerConnection) -> None:
        peer = Peer(socket)
        self._peers.put_nowait(peer)
        await socket.wait_closed()
        peer.gone.set()

    def check(self, _socket: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        refusal = self.refuse(request)
        if refusal is None:
            return None
        status, headers, body = refusal
        return Response(
            status, "refused", Headers({"Content-Length": str(len(body)), **headers}), body
        )


@asynccontextmanager
async def running(port: int = 0, **options: Any) -> AsyncIterator[Server]:
    """Give a server."""
    server = Server()
    options = {
        "subprotocols": [SUBPROTOCOL],
        "compression": None,
        "ping_interval": None,
        "close_timeout": 0.2,
    } | options
    async with serve(
        server.handle, "127.0.0.1", port, process_request=server.check, **options
    ) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


__all__ = ["KEY", "LOG", "ConnectionClosed", "Peer", "Server", "running", "tick"]
