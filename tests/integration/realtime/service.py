"""A hub in a running server, and clients that do nothing unless they are told to."""

import asyncio
import base64
import contextlib
from collections.abc import Iterable

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from mev.auth.browser import Origins
from mev.auth.credentials import Credential
from mev.auth.errors import UnauthorizedError
from mev.auth.model import MASTER, Principal
from mev.limits.shedding import RateLimitedError
from mev.realtime.access import PrincipalQuota, StreamAccess
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.websocket.connection import PATH, websocket_class
from mev.wire.registry import EVENT_TYPES
from tests.services.waits import until_async
from tests.unit.realtime.events import ticks
from tests.unit.realtime.links import client_frame, parse_server_frames

KEY = "a-key-for-tests"
HEADERS = {"X-API-Key": KEY}


class Keys:
    """Knows one key, at once or after a while, and forgets it when told to."""

    def __init__(self) -> None:
        self.principal: Principal | None = MASTER
        self.at_once = True
        self.anonymous_clients = 1000
        self.answers = asyncio.Event()
        self.answers.set()

    def known(self, credential: Credential) -> Principal | None:
        return self.principal if self.at_once and credential.value == KEY.encode() else None

    async def identify(
        self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> Principal:
        del peer, headers
        await self.answers.wait()
        if credential.value != KEY.encode() or self.principal is None:
            raise UnauthorizedError("this API key is not known")
        return self.principal

    async def renew(self, principal: Principal) -> Principal | None:
        del principal
        return self.principal

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        del headers
        assert peer == "127.0.0.1"
        if not self.anonymous_clients:
            raise RateLimitedError("too many strangers", retry_after_s=1)
        self.anonymous_clients -= 1


class Service:
    """A hub in a running server."""

    def __init__(
        self,
        limits: HubLimits,
        quota: PrincipalQuota | None = None,
        hub: Hub | None = None,
        *,
        deflate: bool = False,
    ) -> None:
        self.hub = hub or Hub(EVENT_TYPES, limits)
        self.keys = Keys()
        self.guard = StreamAccess(
            self.hub, self.keys, quota=quota or PrincipalQuota(), period_s=0.01
        )
        ws = websocket_class(
            self.hub, self.guard, origins=Origins(["https://desk.example"]), deflate=deflate
        )
        config = uvicorn.Config(
            hello,
            port=0,
            ws=ws,
            http="httptools",
            lifespan="off",
            log_config=None,
            log_level="critical",
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server.serve())
        self._guarding = asyncio.create_task(self.guard.run())

    async def started(self) -> None:
        await until_async(lambda: self._server.started)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}{PATH}"

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._task
        self._guarding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._guarding

    def push(self, first: int, number: int, size: int = 0) -> None:
        offsets = list(range(first, first + number))
        self.hub.push(ticks(offsets, market="m" * size))

    async def raw_stranger(self) -> "RawClient":
        """Open such a connection that does not say who it is."""
        return await self.raw(X_API_Key=None)

    async def raw(self, **headers: str | None) -> "RawClient":
        """Open a connection without a WebSocket library, so that the test controls every byte."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
        client = RawClient(reader, writer)
        nonce = base64.b64encode(bytes(16)).decode()
        fields = {
            "Host": "h",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": nonce,
            **HEADERS,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [
            f"GET {PATH} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items() if value is not None),
            "",
            "",
        ]
        client.request = "\r\n".join(lines).encode()
        writer.write(client.request)
        client.head = await reader.readuntil(b"\r\n\r\n")
        return client


class RawClient:
    """A socket after the handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.request = b""
        self.head = b""

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def receive(self) -> tuple[int, bytes]:
        """Return the next frame."""
        head = await self.reader.readexactly(2)
        length = head[1]
        if length >= 126:
            more = await self.reader.readexactly(2 if length == 126 else 8)
            head, length = head + more, int.from_bytes(more)
        (frame,) = parse_server_frames(head + await self.reader.readexactly(length))
        return frame.opcode, frame.payload

    async def close_code(self) -> int:
        """Return the code of the close frame that ends the stream, and close."""
        opcode, payload = 0, b""
        while opcode != 8:
            opcode, payload = await self.receive()
        self.send(client_frame(8, payload))
        assert await self.reader.read() == b""
        await self.close()
        return int.from_bytes(payload[:2])

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def hello(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer any HTTP request."""
    del scope, receive
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"5")],
            "trailers": False,
        }
    )
    await send({"type": "http.response.body", "body": b"hello", "more_body": False})
