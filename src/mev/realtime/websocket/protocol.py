"""The WebSocket protocol (RFC 6455), server side, without I/O.

:class:`Parser` takes the socket's bytes and yields whole messages; for everything that the RFC
tells a server to refuse, it raises :class:`ProtocolError` with the close code to send.
"""

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from mev.realtime.batch import EncodedFrame
from mev.realtime.link import CloseCode

_SHORT, _LONG = Struct("!BBH"), Struct("!BBQ")
_FIN, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_COMPRESSED = 0x40
_MASKED, _LENGTH = 0x80, 0x7F
_MAX_CONTROL = 125

Inflate = Callable[[bytes, int], bytes]


class Opcode(IntEnum):
    """Frame types."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class ProtocolError(Exception):
    """The peer violated the protocol; `code` is the close code to send."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message, with fragments joined and the mask removed.

    Text has been validated as UTF-8.
    """

    opcode: Opcode
    payload: bytes


def header(opcode: Opcode, size: int, *, compressed: bool = False) -> bytes:
    """Return the header of an unfragmented, unmasked frame of `size` payload bytes."""
    first = _FIN | (_COMPRESSED if compressed else 0) | opcode
    if size <= _MAX_CONTROL:
        return bytes((first, size))
    if size <= 0xFFFF:
        return _SHORT.pack(first, 126, size)
    return _LONG.pack(first, 127, size)


def frame(opcode: Opcode, payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a whole frame; `compressed` tells whether its payload is compressed."""
    return header(opcode, len(payload), compressed=compressed) + payload


def binary_message(encoded: EncodedFrame) -> bytes:
    """Return an encoded frame as a whole message, made once for all WebSockets."""
    message = encoded.websocket_message
    if message is None:
        message = encoded.websocket_message = frame(Opcode.BINARY, encoded.payload)
    return message


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; a reason that is too long is truncated between characters."""
    text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore")
    return frame(Opcode.CLOSE, code.to_bytes(2) + text.encode())


def close_code(payload: bytes) -> int | None:
    """Return the code in a close frame's payload, None if it has none."""
    if not payload:
        return None
    code = int.from_bytes(payload[:2])
    if len(payload) == 1 or not (code in _CODES_FROM_PEER or 3000 <= code <= 4999):
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "invalid close code")
    _check_text(payload[2:])
    return code


_CODES_FROM_PEER = frozenset(
    {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
)


class Parser:
    """Parses a client's bytes into messages of at most `max_size` bytes.

    It buffers at most one unfinished message, so memory is bounded by `max_size` and the size of
    one call's data. Text is validated as it arrives: the first byte that cannot be UTF-8 is an
    error, also in an unfinished frame. With `inflate`, which takes a compressed payload and its
    maximum size, messages may be compressed; their text is validated once they are complete.
    """

    def __init__(self, max_size: int, inflate: Inflate | None = None) -> None:
        self.max_size = max_size
        self._inflate = inflate
        self._compressed = False
        self._buffer = bytearray()
        self._fragments = bytearray()
        self._fragmented: Opcode | None = None
        self._text = getincrementaldecoder("utf-8")()
        self._checked = 0
        """Validated payload bytes of the unfinished frame at the start of the buffer."""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes."""
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Message | None:
        while (read := self._read_frame()) is not None:
            final, opcode, payload = read
            if opcode >= Opcode.CLOSE:
                return Message(opcode, payload)
            message = self._assemble(final=final, opcode=opcode, payload=payload)
            if message is not None:
                return message
        return None

    def _assemble(self, *, final: bool, opcode: Opcode, payload: bytes) -> Message | None:
        self._fragmented = self._fragmented or opcode
        self._fragments += payload
        if not final:
            return None
        whole, kind = bytes(self._fragments), self._fragmented
        self._fragmented = None
        self._fragments.clear()
        if self._compressed and self._inflate is not None:
            whole = self._inflate(whole, self.max_size)
            if kind is Opcode.TEXT:
                self._check_text(whole, final=True)
        return Message(kind, whole)

    def _read_frame(self) -> tuple[bool, Opcode, bytes] | None:
        if len(self._buffer) < 2:
            return None
        first, second = self._buffer[:2]
        opcode = _opcode(first, second, may_compress=self._inflate is not None)
        if opcode < Opcode.CLOSE and (opcode is Opcode.CONTINUATION) is (self._fragmented is None):
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "fragments out of order")
        length = self._payload_length(second & _LENGTH)
        if length is None:
            return None
        start, size = length
        if opcode < Opcode.CLOSE and len(self._fragments) + size > self.max_size:
            raise ProtocolError(CloseCode.TOO_BIG, f"messages may have {self.max_size} bytes")
        start, end, final = start + 4, start + 4 + size, bool(first & _FIN)
        if opcode in {Opcode.TEXT, Opcode.BINARY}:
            self._compressed = bool(first & _COMPRESSED)
        is_text = (
            Opcode.TEXT in {opcode, self._fragmented if opcode is Opcode.CONTINUATION else None}
            and not self._compressed
        )
        if len(self._buffer) < end:
            if is_text:
                self._check_arrived(start)
            return None
        payload = _unmask(self._buffer[start:end], self._buffer[start - 4 : start])
        if is_text:
            self._check_text(payload[self._checked :], final=final)
            self._checked = 0
        del self._buffer[:end]
        return final, opcode, payload

    def _check_arrived(self, start: int) -> None:
        """Validate the text of an unfinished frame, whose payload starts at `start`."""
        arrived = self._buffer[start + self._checked :]
        mask, turn = self._buffer[start - 4 : start], self._checked % 4
        self._check_text(_unmask(arrived, mask[turn:] + mask[:turn]), final=False)
        self._checked += len(arrived)

    def _check_text(self, payload: bytes, *, final: bool) -> None:
        try:
            self._text.decode(payload, final)
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_TEXT, "text is UTF-8") from None
        unfinished = self._text.getstate()[0]
        # A surrogate: Python would wait for its third byte.
        if unfinished[:1] == b"\xed" and unfinished[1:2] >= b"\xa0":
            raise ProtocolError(CloseCode.INVALID_TEXT, "text is UTF-8")

    def _payload_length(self, length: int) -> tuple[int, int] | None:
        """Return the start of the mask and the payload length, None if they have not arrived."""
        if length <= _MAX_CONTROL:
            return 2, length
        width, least = (2, 126) if length == 126 else (8, 0x10000)
        if len(self._buffer) < 2 + width:
            return None
        size = int.from_bytes(self._buffer[2 : 2 + width])
        if not least <= size < 2**63:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "invalid length")
        return 2 + width, size


def _opcode(first: int, second: int, *, may_compress: bool) -> Opcode:
    """Check the first two bytes of a frame and return its type."""
    try:
        opcode = Opcode(first & _OPCODE)
    except ValueError:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "unknown frame type") from None
    allowed = _COMPRESSED if may_compress and opcode in {Opcode.TEXT, Opcode.BINARY} else 0
    if first & _RESERVED & ~allowed:
        raise ProtocolError(
            CloseCode.PROTOCOL_ERROR, "a reserved bit is set that no extension gives a meaning"
        )
    if not second & _MASKED:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "frames of a client are masked")
    if opcode >= Opcode.CLOSE and (not first & _FIN or second & _LENGTH > _MAX_CONTROL):
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "control frames are short and whole")
    return opcode


def _unmask(payload: bytearray, mask: bytearray) -> bytes:
    # XOR of two long integers: Python has no faster way over bytes.
    size = len(payload)
    key = bytes(mask) * (size // 4 + 1)
    return (int.from_bytes(payload) ^ int.from_bytes(key[:size])).to_bytes(size)


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_TEXT, "text is UTF-8") from None
