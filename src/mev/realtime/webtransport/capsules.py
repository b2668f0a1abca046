"""Capsules (RFC 9297) on the stream of the CONNECT request: how a WebTransport session is closed by name and not by silence."""

from dataclasses import dataclass

from aioquic.buffer import encode_uint_var

CLOSE_SESSION = 0x2843
_MAX_REASON = 1024


class CapsuleError(Exception):
    """The peer sent no capsules, but something else."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer ended the session."""

    code: int
    reason: str


def close_capsule(code: int, reason: str) -> bytes:
    """Return the capsule that ends a session; a reason that does not fit is cut between characters."""
    text = reason.encode()[:_MAX_REASON].decode(errors="ignore").encode()
    return encode_uint_var(CLOSE_SESSION) + encode_uint_var(4 + len(text)) + code.to_bytes(4) + text


class CapsuleReader:
    """Finds the end of the session in the bytes of the stream; capsules it does not know pass by and are not kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> Closed | None:
        """Take bytes; return the end of the session when they complete it.

        :raises CapsuleError: when they cannot be capsules.
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
    """Return the variable-length integer at `start` and where it ends, None when it is not all there."""
    if start >= len(buffer):
        return None
    stop = start + (1 << (buffer[start] >> 6))
    if stop > len(buffer):
        return None
    return int.from_bytes(buffer[start:stop]) & ((1 << (8 * (stop - start) - 2)) - 1), stop
