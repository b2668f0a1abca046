"""What the two streams of a session carry.

Capsules (RFC 9297) on the CONNECT stream close the session explicitly; the control stream has one
message per line.
"""

from dataclasses import dataclass

from aioquic.buffer import encode_uint_var

CLOSE_SESSION = 0x2843
_MAX_REASON = 1024


class CapsuleError(Exception):
    """The peer's data is not a sequence of capsules."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer closed the session."""

    code: int
    reason: str


def close_capsule(code: int, reason: str) -> bytes:
    """Return the capsule that closes a session; a reason that is too long is truncated."""
    text = reason.encode()[:_MAX_REASON].decode(errors="ignore").encode()
    return encode_uint_var(CLOSE_SESSION) + encode_uint_var(4 + len(text)) + code.to_bytes(4) + text


class CapsuleReader:
    """Finds the close capsule in the bytes of the stream; other capsules are skipped."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> Closed | None:
        """Parse bytes; return the close capsule if they complete it, else None.

        :raises CapsuleError: if they cannot be capsules.
        """
        self._buffer += data
        while True:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
            if self._skip:
                return None
            header = self._header()
            if header is None:
                return None
            kind, size, start = header
            if kind != CLOSE_SESSION:
                self._skip = start + size
                continue
            if not 4 <= size <= 4 + _MAX_REASON:
                raise CapsuleError("a closing capsule of the wrong size")
            if len(self._buffer) < start + size:
                return None
            value = bytes(self._buffer[start : start + size])
            return Closed(int.from_bytes(value[:4]), value[4:].decode(errors="replace"))

    def _header(self) -> tuple[int, int, int] | None:
        kind = _integer(self._buffer, 0)
        size = _integer(self._buffer, kind[1]) if kind else None
        return (kind[0], *size) if kind and size else None


def _integer(buffer: bytearray, start: int) -> tuple[int, int] | None:
    """Return the variable-length integer at `start` and its end, None if it is incomplete."""
    if start >= len(buffer):
        return None
    stop = start + (1 << (buffer[start] >> 6))
    if stop > len(buffer):
        return None
    return int.from_bytes(buffer[start:stop]) & ((1 << (8 * (stop - start) - 2)) - 1), stop


class LineTooLongError(Exception):
    """A line, complete or not, is longer than allowed."""


class Lines:
    """Splits a stream into lines of at most `max_size` bytes, with a bounded buffer."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        """May change between lines."""
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next complete line that is not empty, or None.

        :raises LineTooLongError: if it is too long, complete or not.
        """
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._buffer)
            if (end if end >= 0 else len(self._buffer)) > self.max_size:
                raise LineTooLongError
            if end < 0:
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            if line.strip():
                return line

    def __len__(self) -> int:
        return len(self._buffer)
