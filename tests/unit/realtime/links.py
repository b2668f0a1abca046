"""A connection that lives in memory, for tests of everything above the socket."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import orjson

from mev.realtime.batch import EncodedFrame
from mev.realtime.websocket import protocol
from mev.realtime.websocket.protocol import Opcode
from mev.wire.pb.stream_pb2 import Frame


@dataclass(frozen=True)
class Sent:
    """One WebSocket message as a client would see it."""

    opcode: int
    payload: bytes

    @property
    def json(self) -> dict[str, object]:
        """The payload of a text message."""
        return cast("dict[str, object]", orjson.loads(self.payload))

    @property
    def frame(self) -> Frame:
        """The payload of a binary message."""
        return Frame.FromString(self.payload)


class MemoryLink:
    """A link whose peer reads when it is told to."""

    def __init__(
        self, *, reading: bool = True, transport: str = "websocket", datagram_bytes: int = 0
    ) -> None:
        self.reading = reading
        self.transport = transport
        self.datagrams: list[bytes] = []
        self.stale: list[bool] = []
        self._datagram_bytes = datagram_bytes
        self.waiting = bytearray()
        self.received = bytearray()
        self.pings = 0
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self.aborted_for: tuple[int, str] | None = None

    def send_text(self, text: bytes, resume: str = "") -> None:
        """Keep a text message until the peer reads."""
        del resume  # it is in the text
        self._write(protocol.frame(Opcode.TEXT, text))

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Keep a frame until the peer reads."""
        self.stale.append(stale)
        whole = protocol.frame(Opcode.BINARY, frame.payload + tail)
        self._write(whole if tail else protocol.binary_message(frame))

    def send_datagram(self, payload: bytes) -> None:
        """Deliver a datagram at once."""
        self.datagrams.append(payload)

    def datagram_bytes(self) -> int:
        """Return the largest datagram."""
        return self._datagram_bytes

    def taken(self) -> int:
        """Return how many bytes the peer has read."""
        return len(self.received)

    def _write(self, data: bytes) -> None:
        self.waiting += data
        if self.reading:
            self.read(len(self.waiting))

    def backlog(self) -> int:
        """Return how many bytes the peer has not read."""
        return len(self.waiting)

    def ping(self) -> None:
        """Count a ping."""
        self.pings += 1

    def close(self, code: int, reason: str) -> None:
        """Note a close."""
        self.closed = (code, reason)

    def abort(self, code: int, reason: str) -> None:
        """Note an abort."""
        self.aborted = True
        self.aborted_for = (code, reason)

    def read(self, size: int) -> None:
        """Let the peer read `size` bytes."""
        self.received += self.waiting[:size]
        del self.waiting[:size]

    def messages(self) -> list[Sent]:
        """Return the whole messages the peer has read so far."""
        return list(parse_server_frames(bytes(self.received)))


def parse_server_frames(data: bytes) -> Iterator[Sent]:
    """Yield the unmasked, unfragmented frames in `data`, without an incomplete one at the end."""
    position = 0
    while position + 2 <= len(data):
        length, start = data[position + 1], position + 2
        if length >= 126:
            width = 2 if length == 126 else 8
            length, start = int.from_bytes(data[start : start + width]), start + width
        if start + length > len(data):
            return
        assert data[position] & 0x80
        yield Sent(data[position] & 0x0F, data[start : start + length])
        position = start + length


def client_frame(
    opcode: int,
    payload: bytes,
    *,
    final: bool = True,
    mask: bytes = b"\x01\x02\x03\x04",
    reserved: int = 0,
) -> bytes:
    """Return a frame as a client sends it."""
    size = len(payload)
    if size <= 125:
        length = bytes((0x80 | size,))
    elif size <= 0xFFFF:
        length = bytes((0x80 | 126,)) + size.to_bytes(2)
    else:
        length = bytes((0x80 | 127,)) + size.to_bytes(8)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes((final << 7 | reserved | opcode,)) + length + mask + masked


TEXT, BINARY = int(Opcode.TEXT), int(Opcode.BINARY)
