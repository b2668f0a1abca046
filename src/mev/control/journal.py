"""The control journal: every signed message that made the state, in order, on disk before it counts.

A record is its length and CRC, 4 bytes each, little-endian, then the serialised envelope. A torn last record, of a write that was
never acknowledged, is cut off at the next start.
"""

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mev.control.errors import JournalError
from mev.core.files import write_atomically

_HEAD = struct.Struct("<II")


class Journal:
    """An append-only file of envelopes. Thread-safe; `append` blocks until the disk has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    @property
    def size_bytes(self) -> int:
        """How large the file is."""
        return os.fstat(self._file).st_size

    @property
    def changed_ms(self) -> int:
        """When it was written last, milliseconds since the Unix epoch."""
        return os.fstat(self._file).st_mtime_ns // 1_000_000

    def read(self) -> Iterator[bytes]:
        """Yield every envelope, and cut off a torn end.

        :raises JournalError: when a record before the last one is damaged.
        """
        content, at = self._path.read_bytes(), 0
        while at + _HEAD.size <= len(content):
            size, crc = _HEAD.unpack_from(content, at)
            record = content[at + _HEAD.size : at + _HEAD.size + size]
            if len(record) < size or zlib.crc32(record) != crc:
                if at + _HEAD.size + size < len(content):
                    raise JournalError(f"{self._path}: the record at byte {at} is damaged; restore the file from a copy")
                break
            yield record
            at += _HEAD.size + size
        if at < len(content):
            os.ftruncate(self._file, at)

    def append(self, envelope: bytes) -> None:
        """Write `envelope` and wait for the disk.

        :raises JournalError: when the disk does not take it; nothing is left of it.
        """
        with self._lock:
            end = os.fstat(self._file).st_size
            record = _record(envelope)
            try:
                if os.write(self._file, record) != len(record):
                    raise OSError(28, "No space left on device")  # noqa: TRY301 - one way to undo a partial write
                os.fdatasync(self._file)
            except OSError as error:
                os.ftruncate(self._file, end)
                raise JournalError(f"{self._path}: {error.strerror}; make room, then repeat the command", retry_after_s=5) from None

    def rewrite(self, envelopes: Iterable[bytes]) -> None:
        """Replace everything by `envelopes`.

        :raises JournalError: when the disk does not take them; what was there stays.
        """
        with self._lock:
            try:
                write_atomically(self._path, b"".join(map(_record, envelopes)))
            except OSError as error:
                raise JournalError(f"{self._path}: {error.strerror}; make room", retry_after_s=5) from None
            os.close(self._file)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)

    def compact(self, select: Callable[[Sequence[bytes]], list[bytes]]) -> None:
        """Keep only what `select` returns of all envelopes; who appends waits.

        :raises JournalError: when the file is damaged or cannot be written; it is then as it was.
        """
        with self._lock:
            self.rewrite(select(list(self.read())))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _record(envelope: bytes) -> bytes:
    return _HEAD.pack(len(envelope), zlib.crc32(envelope)) + envelope
