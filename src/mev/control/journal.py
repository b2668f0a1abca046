"""The control journal: every signed message that changes the state, in order.

Messages are written to disk before they take effect. A record is its length and CRC, 4 bytes each,
little-endian, then the serialised envelope. An incomplete last record, from an unacknowledged
write, is removed at the next start.
"""

import asyncio
import logging
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import Gauge

from mev.control.errors import JournalError
from mev.core.clock import now_ns
from mev.core.files import write_atomically

LOG = logging.getLogger(__name__)
UNKEPT = Gauge(
    "mev_control_unkept",
    "Messages in force that wait in memory because the control journal cannot be written; "
    "alert above 0.",
)
_HEAD = struct.Struct("<II")
_BATCH_BYTES = 1 << 20
"""Waiting envelopes written with one wait for the disk."""


class EnvelopeJournal:
    """An append-only file of envelopes.

    Thread-safe; `append` blocks until the record is on disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._file).st_size

    @property
    def changed_ms(self) -> int:
        """Time of the last write in milliseconds since the Unix epoch."""
        return os.fstat(self._file).st_mtime_ns // 1_000_000

    def read(self) -> Iterator[bytes]:
        """Yield every envelope; truncate an incomplete last record.

        :raises JournalError: if a record before the last one is damaged.
        """
        content, at = self._path.read_bytes(), 0
        while at + _HEAD.size <= len(content):
            size, crc = _HEAD.unpack_from(content, at)
            record = content[at + _HEAD.size : at + _HEAD.size + size]
            if len(record) < size or zlib.crc32(record) != crc:
                if at + _HEAD.size + size < len(content):
                    raise JournalError(
                        f"{self._path}: the record at byte {at} is damaged; "
                        "restore the file from a copy"
                    )
                break
            yield record
            at += _HEAD.size + size
        if at < len(content):
            os.ftruncate(self._file, at)

    def append(self, *envelopes: bytes) -> None:
        """Append `envelopes` and wait until they are on disk.

        :raises JournalError: if the write failed; all of it is undone.
        """
        with self._lock:
            end = os.fstat(self._file).st_size
            records = b"".join(map(_record, envelopes))
            try:
                if os.write(self._file, records) != len(records):
                    raise OSError(28, "No space left on device")  # noqa: TRY301 - undone below
                os.fdatasync(self._file)
            except OSError as error:
                os.ftruncate(self._file, end)
                raise JournalError(
                    f"{self._path}: {error.strerror}; make room, then repeat the command",
                    retry_after_s=5,
                ) from None

    def rewrite(self, envelopes: Iterable[bytes]) -> None:
        """Replace all records by `envelopes`.

        :raises JournalError: if the write failed; the old file is unchanged.
        """
        with self._lock:
            try:
                write_atomically(self._path, b"".join(map(_record, envelopes)))
            except OSError as error:
                raise JournalError(
                    f"{self._path}: {error.strerror}; make room", retry_after_s=5
                ) from None
            os.close(self._file)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)

    def copy(self) -> Path:
        """Copy the file to a name of its own in the same folder, and return the copy's path.

        :raises JournalError: if the write failed.
        """
        copy = self._path.with_name(f"{self._path.name}.damaged-{now_ns()}")
        try:
            write_atomically(copy, self._path.read_bytes())
        except OSError as error:
            raise JournalError(f"{copy}: {error.strerror}; make room", retry_after_s=5) from None
        return copy

    def compact(self, select: Callable[[Sequence[bytes]], list[bytes]]) -> None:
        """Replace all envelopes by those that `select` returns; appends wait meanwhile.

        :raises JournalError: if the file is damaged or cannot be written; it is unchanged.
        """
        with self._lock:
            self.rewrite(select(list(self.read())))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class JournalWriter:
    """Writes to a journal from the event loop, in order.

    What cannot be written at once waits in memory. The journal is compacted above `compact_bytes`.
    """

    def __init__(self, journal: EnvelopeJournal, *, compact_bytes: int) -> None:
        self._journal = journal
        self._compact_bytes = compact_bytes
        self._compact_at = compact_bytes
        self._waiting: deque[bytes] = deque()
        self._added = 0  # envelopes that have waited, ever
        self.waiting_bytes = 0
        """Total size of the envelopes that are not stored yet."""
        self._writing = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Number of envelopes that are not stored yet."""
        return len(self._waiting)

    async def read(self) -> list[bytes]:
        """Return all stored envelopes; see :meth:`EnvelopeJournal.read`."""
        return await asyncio.to_thread(lambda: list(self._journal.read()))

    def copy(self) -> Path:
        """Copy the journal; see :meth:`EnvelopeJournal.copy`; blocks."""
        return self._journal.copy()

    def rewrite(self, envelopes: Iterable[bytes]) -> None:
        """Replace all envelopes; blocks."""
        self._journal.rewrite(envelopes)

    async def append(self, envelope: bytes) -> None:
        """Store `envelope`, after those that wait now; it does not wait for later ones.

        :raises JournalError: if the write failed; the envelope does not wait.
        """
        last = self._added
        async with self._writing:
            await self._drain(last)
            await asyncio.to_thread(self._journal.append, envelope)

    async def keep(self, envelope: bytes) -> None:
        """Store an active message, now or as soon as possible."""
        self._waiting.append(envelope)
        self.waiting_bytes += len(envelope)
        self._added += 1
        last = self._added
        try:
            async with self._writing:
                await self._drain(last)
        except JournalError as error:
            UNKEPT.set(len(self._waiting))
            LOG.error("not stored yet: %s", error, extra={"action": "control_not_kept"})

    async def store_waiting(self) -> None:
        """Store what waits, if possible."""
        with suppress(JournalError):  # logged at the first failure
            async with self._writing:
                await self._drain(self._added)

    async def compact(self, select: Callable[[Sequence[bytes]], list[bytes]]) -> None:
        """Keep only the envelopes that `select` returns, if the journal is large enough.

        :raises JournalError: as :meth:`EnvelopeJournal.compact`.
        """
        if self._journal.size_bytes < self._compact_at:
            return
        async with self._writing:
            await asyncio.to_thread(self._journal.compact, select)
        # If compaction removes nothing, the next one waits until the journal has doubled.
        self._compact_at = max(self._compact_bytes, 2 * self._journal.size_bytes)
        LOG.info(
            "the control journal has %d bytes now",
            self._journal.size_bytes,
            extra={"action": "control_compacted"},
        )

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    async def _drain(self, last: int) -> None:
        """Store the waiting envelopes up to the one numbered `last`, in batches."""
        while self._added - len(self._waiting) < last:
            batch = self._batch()
            await asyncio.to_thread(self._journal.append, *batch)
            for envelope in batch:
                self._waiting.popleft()
                self.waiting_bytes -= len(envelope)
        UNKEPT.set(0)

    def _batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        for envelope in self._waiting:
            size += len(envelope)
            if batch and size > _BATCH_BYTES:
                break
            batch.append(envelope)
        return batch


def _record(envelope: bytes) -> bytes:
    return _HEAD.pack(len(envelope), zlib.crc32(envelope)) + envelope
