"""The WebSocket protocol (RFC 6455), server side, without I/O: headers to write, bytes to read.

:class:`Parser` takes whatever the socket gave and yields whole messages; everything the RFC tells a server to refuse raises
:class:`ProtocolError` with the close code to send.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

_SHORT, _LONG = Struct("!BBH"), Struct("!BBQ")
_FIN, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_MASKED, _LENGTH = 0x80, 0x7F
_MAX_CONTROL = 125


class Opcode(IntEnum):
    """Frame types."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Close(IntEnum):
    """Close codes the server sends; 4000 and up are its own."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    TRY_AGAIN_LATER = 1013
    UNAUTHORIZED = 4401
    DISCONNECTED = 4403


class ProtocolError(Exception):
    """The peer broke the protocol; `code` is the close code it deserves."""

    def __init__(self, code: Close, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message: fragments joined, mask removed. Text has been checked to be UTF-8."""

    opcode: Opcode
    payload: bytes


def header(opcode: Opcode, size: int) -> bytes:
    """Return the header of an unfragmented, unmasked frame of `size` payload bytes."""
    if size <= _MAX_CONTROL:
        return bytes((_FIN | opcode, size))
    if size <= 0xFFFF:
        return _SHORT.pack(_FIN | opcode, 126, size)
    return _LONG.pack(_FIN | opcode, 127, size)


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """Return a whole frame."""
    return header(opcode, len(payload)) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; a reason that does not fit is cut between characters."""
    text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore")
    return frame(Opcode.CLOSE, code.to_bytes(2) + text.encode())


def close_code(payload: bytes) -> int | None:
    """Return the code in a close frame's payload, None when it has none."""
    if not payload:
        return None
    code = int.from_bytes(payload[:2])
    if len(payload) == 1 or not (code in _CODES_FROM_PEER or 3000 <= code <= 4999):
        raise ProtocolError(Close.PROTOCOL_ERROR, "invalid close code")
    _check_text(payload[2:])
    return code


_CODES_FROM_PEER = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


class Parser:
    """Turn a client's bytes into messages of at most `max_size` bytes.

    It keeps at most one unfinished message, so memory is bounded by `max_size` and what one call brings.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._buffer = bytearray()
        self._fragments = bytearray()
        self._fragmented: Opcode | None = None

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
        if (opcode is Opcode.CONTINUATION) is (self._fragmented is None):
            raise ProtocolError(Close.PROTOCOL_ERROR, "fragments out of order")
        self._fragmented = self._fragmented or opcode
        self._fragments += payload
        if not final:
            return None
        message = Message(self._fragmented, bytes(self._fragments))
        self._fragmented = None
        self._fragments.clear()
        if message.opcode is Opcode.TEXT:
            _check_text(message.payload)
        return message

    def _read_frame(self) -> tuple[bool, Opcode, bytes] | None:
        if len(self._buffer) < 2:
            return None
        first, second = self._buffer[:2]
        opcode = _opcode(first, second)
        length = self._payload_length(second & _LENGTH)
        if length is None:
            return None
        start, size = length
        if opcode < Opcode.CLOSE and len(self._fragments) + size > self.max_size:
            raise ProtocolError(Close.TOO_BIG, f"messages may have {self.max_size} bytes")
        end = start + 4 + size
        if len(self._buffer) < end:
            return None
        payload = _unmask(self._buffer[start + 4 : end], self._buffer[start : start + 4])
        del self._buffer[:end]
        return bool(first & _FIN), opcode, payload

    def _payload_length(self, length: int) -> tuple[int, int] | None:
        """Return where the mask starts and how long the payload is, None when that has not arrived."""
        if length <= _MAX_CONTROL:
            return 2, length
        width, least = (2, 126) if length == 126 else (8, 0x10000)
        if len(self._buffer) < 2 + width:
            return None
        size = int.from_bytes(self._buffer[2 : 2 + width])
        if not least <= size < 2**63:
            raise ProtocolError(Close.PROTOCOL_ERROR, "invalid length")
        return 2 + width, size


def _opcode(first: int, second: int) -> Opcode:
    """Check the first two bytes of a frame and return its type."""
    try:
        opcode = Opcode(first & _OPCODE)
    except ValueError:
        raise ProtocolError(Close.PROTOCOL_ERROR, "unknown frame type") from None
    if first & _RESERVED:
        raise ProtocolError(Close.PROTOCOL_ERROR, "no extension was agreed on")
    if not second & _MASKED:
        raise ProtocolError(Close.PROTOCOL_ERROR, "frames of a client are masked")
    if opcode >= Opcode.CLOSE and (not first & _FIN or second & _LENGTH > _MAX_CONTROL):
        raise ProtocolError(Close.PROTOCOL_ERROR, "control frames are short and whole")
    return opcode


def _unmask(payload: bytearray, mask: bytearray) -> bytes:
    # One exclusive or of two long integers: Python has no faster way over bytes.
    size = len(payload)
    key = bytes(mask) * (size // 4 + 1)
    return (int.from_bytes(payload) ^ int.from_bytes(key[:size])).to_bytes(size)


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(Close.INVALID_TEXT, "text is UTF-8") from None
