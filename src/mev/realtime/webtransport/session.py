"""A WebTransport session, as a link of the hub.

Control messages are on one stream, each frame on its own stream, and datagrams are supported.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Protocol

from aioquic.h3.connection import ErrorCode
from aioquic.quic.connection import QuicConnection

from mev.realtime.access import StreamAccess
from mev.realtime.batch import EncodedFrame
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.limits import WebTransportLimits
from mev.realtime.link import CloseCode
from mev.realtime.metrics import WebTransportCounts
from mev.realtime.requests import RequestHandler
from mev.realtime.webtransport import quic
from mev.realtime.webtransport.framing import (
    CapsuleError,
    CapsuleReader,
    Lines,
    LineTooLongError,
    close_capsule,
)
from mev.realtime.webtransport.outbox import SessionOutbox
from mev.realtime.webtransport.quic import SendStream

_QUIC_ERRORS: dict[int, ErrorCode] = {
    CloseCode.PROTOCOL_ERROR: ErrorCode.H3_GENERAL_PROTOCOL_ERROR,
    CloseCode.TOO_BIG: ErrorCode.H3_EXCESSIVE_LOAD,
    CloseCode.INTERNAL: ErrorCode.H3_INTERNAL_ERROR,
    CloseCode.TRY_AGAIN_LATER: ErrorCode.H3_EXCESSIVE_LOAD,
}
"""HTTP/3 error of a connection by the close code of its session; none for other codes."""


class SessionConnection(Protocol):
    """The connection of a session."""

    @property
    def quic(self) -> QuicConnection:
        """The library's connection."""

    def wake(self) -> None:
        """Schedule sending."""

    def end_request(self, stream_id: int, data: bytes) -> None:
        """Send the last data of a response."""

    def close(self, reason: str, error_code: int) -> None:
        """Close the connection with a reason."""


class WebTransportSession:
    """The link of one session, created when it is accepted; it receives the connection's events."""

    transport = "webtransport"

    def __init__(
        self,
        connection: SessionConnection,
        session_id: int,
        bounds: WebTransportLimits,
        counts: WebTransportCounts,
    ) -> None:
        self.session_id = session_id
        self.outbox = SessionOutbox(
            connection.quic,
            session_id,
            stale_s=bounds.stale_s,
            limit_bytes=bounds.unacknowledged_bytes,
        )
        self._connection = connection
        self._bounds = bounds
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._capsules = CapsuleReader()
        self._lines = Lines(bounds.early_bytes)
        self._control: SendStream | None = None
        self._request: SendStream | None = None
        """The request's stream, once the close capsule was sent on it."""
        self._busy: asyncio.Task[None] | None = None
        self._closing: tuple[int, str, float] | None = None
        self._close_sent = False
        self._ended_at: float | None = None
        self._on_release: Callable[[], None] | None = None
        self._client: Client
        self._requests: RequestHandler
        self._hub: Hub

    def begin(
        self, hub: Hub, access: StreamAccess, client: Client, requests: RequestHandler
    ) -> None:
        """Set the hub, the client and the handler of its requests."""
        self._hub, self._client, self._requests = hub, client, requests
        self._counts.sessions += 1
        self._counts.sessions_opened += 1

        def on_release() -> None:
            access.unregister(client)
            hub.release(client)
            self._counts.sessions -= 1

        self._on_release = on_release

    # Interface for the hub.

    def send_text(self, text: bytes, resume: str = "") -> None:
        """Send a line on the control stream; before it exists, nothing can have been requested."""
        del resume  # the text contains it
        if self._control is not None and self._closing is None:
            self._control.write(text + b"\n")
            self._connection.wake()

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Send a frame on its own stream."""
        if self._closing is not None:
            return
        if self.outbox.push(frame.payload, tail, stale=stale, now=time.monotonic()):
            self._connection.wake()
        else:
            self.abort(
                CloseCode.TRY_AGAIN_LATER,
                f"more than {self._bounds.unacknowledged_bytes} bytes are not acknowledged",
            )

    def send_datagram(self, payload: bytes) -> None:
        """Send a datagram; if too many are queued, the oldest are dropped."""
        if self._closing is None and 0 < len(payload) <= self.datagram_bytes():
            data = quic.datagram(self.session_id, payload)
            self._counts.datagrams_given_up += quic.send_newest_datagram(
                self._connection.quic, data, waiting=self._bounds.datagrams_waiting
            )
            self._connection.wake()

    def datagram_bytes(self) -> int:
        """Return the maximum size of a datagram."""
        return quic.datagram_bytes(self._connection.quic, self.session_id)

    def backlog(self) -> int:
        """Return the number of bytes queued or not acknowledged."""
        return self.outbox.backlog + sum(
            stream.unacknowledged for stream in (self._control, self._request) if stream is not None
        )

    def taken(self) -> int:
        """Return the number of bytes acknowledged in total."""
        return self.outbox.taken + (self._control.acknowledged if self._control else 0)

    def ping(self) -> None:
        """Send a ping, which the peer acknowledges."""
        self._connection.quic.send_ping(self.session_id)
        self._connection.wake()

    def close(self, code: int, reason: str) -> None:
        """Close the session; data sent before has some time to arrive."""
        if self._closing is None:
            self._closing = (code, reason, time.monotonic() + self._bounds.close_grace_s)
            if self._control is not None:
                self._control.write(b"", end=True)
            self._send_close()
            self._connection.wake()

    def abort(self, code: int, reason: str) -> None:
        """Close the connection, with the session's close reason if there is one."""
        if self._closing is not None:
            code, reason, _ = self._closing
        self._connection.close(f"{code}: {reason}", _QUIC_ERRORS.get(code, ErrorCode.H3_NO_ERROR))
        self._loop.call_soon(self.release)

    # Interface for the connection.

    def control_received(self, stream_id: int, data: bytes) -> None:
        """Handle bytes of the control stream."""
        if self._control is None:
            self._control = SendStream(self._connection.quic, stream_id)
        self._lines.feed(data)
        self._read()

    def stream_reset(self, stream_id: int) -> None:
        """Handle a stream that the peer reset or stopped."""
        if stream_id == self.session_id:
            self._peer_ended()
        elif (
            self._control is not None and stream_id == self._control.id and self._control.was_reset
        ):
            self._hub.disconnect(
                self._client, CloseCode.PROTOCOL_ERROR, "the control stream was stopped"
            )

    def capsules_received(self, data: bytes, *, ended: bool) -> None:
        """Handle bytes of the request's stream."""
        try:
            closed = self._capsules.feed(data)
        except CapsuleError as error:
            self.abort(CloseCode.PROTOCOL_ERROR, str(error))
            return
        if closed is not None or ended:
            self._peer_ended()

    def alive(self) -> None:
        """Record activity of the peer."""
        self._client.heard += 1

    def acknowledged(self) -> None:
        """Process acknowledgements, and use the freed space."""
        self.outbox.settle()
        if self._closing is not None:
            self._send_close()
        elif not self._client.closing:
            self._client.drain()

    def tick(self, now: float) -> None:
        """Apply time-outs."""
        if self._ended_at is not None:
            if now - self._ended_at >= self._bounds.linger_s:
                self.abort(CloseCode.NORMAL, "the session has ended")
            return
        given_up = self.outbox.expire(now)
        self._counts.frames_given_up += given_up
        if given_up:
            self._connection.wake()
            self.acknowledged()
        elif self._closing is not None:
            self._send_close()

    def shut_down(self) -> None:
        """Close the session because the server stops, with its cursors."""
        self._hub.disconnect(
            self._client, CloseCode.GOING_AWAY, "the server is shutting down", resume="going_away"
        )

    def release(self) -> None:
        """Release the session; its connection is closed."""
        on_release, self._on_release = self._on_release, None
        if self._busy is not None:
            self._busy.cancel()
        if on_release is not None:
            on_release()

    def _read(self) -> None:
        """Handle the complete lines one by one."""
        if self._busy is not None:
            if len(self._lines) > self._lines.max_size:
                self.abort(
                    CloseCode.TOO_BIG, f"more than {self._lines.max_size} bytes before an answer"
                )
            return
        try:
            while (
                self._busy is None
                and not self._client.closing
                and (line := self._next_line()) is not None
            ):
                self._client.heard += 1
                work = self._requests.receive_text(line)
                if work is not None:
                    self._busy = self._loop.create_task(self._until_done(work))
        except LineTooLongError:
            self._hub.disconnect(
                self._client, CloseCode.TOO_BIG, f"messages may have {self._lines.max_size} bytes"
            )

    def _next_line(self) -> bytes | None:
        # The previous line may have authenticated the client.
        limits = self._hub.limits
        self._lines.max_size = (
            limits.unauthenticated_bytes if self._client.principal is None else limits.message_bytes
        )
        return self._lines.next()

    async def _until_done(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:
            self.abort(CloseCode.INTERNAL, "an error of the server")
            raise
        self._busy = None
        self._read()

    def _peer_ended(self) -> None:
        if self._ended_at is not None:
            return
        if not self._close_sent:  # the peer closed first
            self._close_sent = True
            self.abort(CloseCode.NORMAL, "the client ended the session")
        self._ended_at = time.monotonic()
        self._hub.disconnect(self._client, CloseCode.NORMAL, "")
        self._loop.call_soon(self.release)

    def _send_close(self) -> None:
        """Send the close capsule once all data has arrived, or its time is over."""
        if self._closing is None or self._close_sent:
            return
        code, reason, deadline = self._closing
        control_done = self._control is None or self._control.is_finished or self._control.was_reset
        if (self.outbox.is_idle and control_done) or time.monotonic() >= deadline:
            self._close_sent = True
            self.outbox.clear()
            self._request = SendStream(self._connection.quic, self.session_id)
            self._connection.end_request(self.session_id, close_capsule(code, reason))
            self._connection.wake()
