"""Log of one partition: record batches in segment files, in the producers' format.

Acknowledged batches are written: they survive a kill of the process, as with Apache Kafka's
defaults; a power failure may lose the last seconds. An incomplete batch is truncated when the log
is opened. A damaged batch in a file is replaced by an empty one before consumers can read it.
"""

import logging
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from mev.broker.batch import (
    COMPRESSION,
    HEADER,
    PREFIX,
    SEQUENCES,
    TRANSACTIONAL_OR_CONTROL,
    BatchHeader,
    empty_batch,
    parse,
    problem,
)
from mev.broker.wire import ErrorCode
from mev.core.files import write_atomically

LOG = logging.getLogger(__name__)
_INDEX_BYTES = 4096
_SEGMENTS = 16
_LEAST_SEGMENT_BYTES = 4096
_PRODUCERS = 1000
_BATCHES_REMEMBERED = 5  # maximum number of in-flight requests of an idempotent producer
_FIRST_READ = 1 << 14
_INT32 = (1 << 31) - 1


def is_restricted_id(producer_id: int) -> bool:
    """Return whether a producer id is one for restricted users: these are odd."""
    return producer_id % 2 == 1


class LogError(Exception):
    """A batch was not appended, or an offset cannot be read."""

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        super().__init__(detail or code.name)
        self.code = code


@dataclass(slots=True)
class _Producer:
    """State of an idempotent producer.

    The last batches are stored as (first sequence, last sequence, checksum, base offset).
    """

    epoch: int
    batches: deque[tuple[int, int, int, int]] = field(
        default_factory=lambda: deque(maxlen=_BATCHES_REMEMBERED)
    )


class _Segment:
    """One file of a log: the batches from offset `base`."""

    def __init__(self, path: Path, base: int) -> None:
        self.path = path
        self.base = base
        self.end = base
        self.size = 0
        self.max_timestamp_ms = -1
        self.is_indexed = True
        self._offsets: list[int] = [base]
        self._positions: list[int] = [0]
        self._handle: int | None = None

    def add(self, header: BatchHeader) -> None:
        """Add a batch that was written at the end."""
        if self.size - self._positions[-1] >= _INDEX_BYTES:
            self._offsets.append(header.base_offset)
            self._positions.append(self.size)
        self.size += header.size
        self.end = header.next_offset
        self.max_timestamp_ms = max(self.max_timestamp_ms, header.max_timestamp_ms)

    def scan(self) -> Iterator[BatchHeader]:
        """Index and yield the batches of the file, up to the first incomplete one.

        Damaged batches are replaced by empty ones, also in the file.

        :raises LogError: when the file cannot be replaced.
        """
        self.is_indexed, self.size, self.end = False, 0, self.base
        self._offsets, self._positions = [self.base], [0]
        content = self.path.read_bytes()
        position, is_repaired, parts = 0, False, []
        while (
            (header := parse(content, position))
            and header.base_offset >= self.end
            and position + header.size <= len(content)
        ):
            part = content[position : position + header.size]
            position += header.size
            if reason := problem(header, part):
                part, header = self._without_records(header, reason, parse(content, position))
                is_repaired = True
            parts.append(part)
            self.add(header)
            yield header
        if is_repaired:
            try:
                write_atomically(self.path, b"".join(parts))
            except OSError as error:
                raise LogError(ErrorCode.KAFKA_STORAGE_ERROR, str(error)) from None
        self.is_indexed = True

    def _without_records(
        self, header: BatchHeader, reason: str, following: BatchHeader | None
    ) -> tuple[bytes, BatchHeader]:
        """Return an empty batch for the offsets of a damaged one."""
        last_delta = header.last_offset_delta
        if following is not None and 0 < following.base_offset - header.base_offset <= _INT32:
            last_delta = following.base_offset - header.base_offset - 1
        LOG.error(
            "batch_damaged: %s: offsets %d to %d are left out: %s",
            self.path,
            header.base_offset,
            header.base_offset + last_delta,
            reason,
        )
        part = empty_batch(header.base_offset, last_delta)
        return part, header._replace(
            length=len(part) - (header.size - header.length),
            last_offset_delta=last_delta,
            max_timestamp_ms=-1,
            producer_id=-1,
            records=0,
        )

    def index(self) -> None:
        """Index the file, once.

        :raises LogError: as :meth:`scan` does.
        """
        if not self.is_indexed:
            deque(self.scan(), maxlen=0)

    def position(self, offset: int) -> int | None:
        """Return the position of the batch that contains `offset`, or of the next one."""
        self.index()
        at = self._positions[bisect_right(self._offsets, offset) - 1]
        for header, position in self.headers(at):
            if header.next_offset > offset:
                return position
        return None

    def headers(self, position: int = 0) -> Iterator[tuple[BatchHeader, int]]:
        """Yield headers and positions of the batches from `position`."""
        while position < self.size:
            block = self.read(position, _FIRST_READ)
            start = 0
            while (header := parse(block, start)) is not None:
                yield header, position + start
                start += header.size
            if not start:
                return
            position += start

    def read(self, position: int, size: int) -> bytes:
        """Return up to `size` bytes from `position`."""
        size = min(size, self.size - position)
        if self._handle is not None:
            return os.pread(self._handle, size, position)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(handle, size, position)
        finally:
            os.close(handle)

    def open(self) -> None:
        """Open the file for :meth:`write` and truncate it after the last complete batch."""
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._handle, self.size)

    def write(self, data: bytes) -> None:
        """Append all of `data`, or nothing."""
        if self._handle is None:
            raise ValueError(f"{self.path} is closed")
        rest = memoryview(data)
        position = self.size
        try:
            while rest:
                written = os.pwrite(self._handle, rest, position)
                rest, position = rest[written:], position + written
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._handle, self.size)
            raise LogError(
                ErrorCode.KAFKA_STORAGE_ERROR, f"{self.path}: {error.strerror}"
            ) from None

    def sync(self) -> None:
        """Put on the disk what was written."""
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file for writing; it stays readable."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class PartitionLog:
    """Batches of a partition in `folder`, limited to the newest `max_bytes`.

    `stored` returns the offset below which batches may be deleted; with None, all of them may.
    When other batches fill the log, new ones are refused with a retriable error. The next `skipped`
    offsets are not assigned to records.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        stored: Callable[[], int] | None = None,
        skipped: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = max(_LEAST_SEGMENT_BYTES, max_bytes // _SEGMENTS)
        self._stored = stored
        self._producers: dict[int, _Producer] = {}
        self._segments = self._found()
        self._active.open()
        if skipped:
            part = empty_batch(self.end, skipped - 1)
            self._active.write(part)
            self._active.add(BatchHeader._make(HEADER.unpack(part)))

    @property
    def start(self) -> int:
        """First available offset."""
        return self._segments[0].base

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return self._active.end

    def append(self, data: memoryview, *, is_restricted: bool = False) -> int:
        """Append one batch and return its base offset; a producer's retry is not written twice.

        The records in a compressed batch are not examined; from restricted users it is refused.
        They have producer ids of their own, with which they cannot end another user's sequence.

        :raises LogError: when consumers could not read the batch, or it is out of sequence, or does
            not fit.
        """
        header = parse(data, 0)
        if (
            header is None
            or header.size != len(data)
            or header.records < 1
            or header.last_offset_delta != header.records - 1
        ):
            raise LogError(ErrorCode.CORRUPT_MESSAGE, "not one whole record batch of format 2")
        if header.attributes & TRANSACTIONAL_OR_CONTROL:
            raise LogError(
                ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
                "the embedded broker knows no transactions",
            )
        if is_restricted and header.producer_id >= 0 and not is_restricted_id(header.producer_id):
            raise LogError(
                ErrorCode.UNKNOWN_PRODUCER_ID, "the producer id was not given to this user"
            )
        if is_restricted and header.attributes & COMPRESSION:
            raise LogError(
                ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
                "this user's batches must not be compressed; set compression.type=none",
            )
        content = bytes(data)
        if reason := problem(header, content):
            raise LogError(ErrorCode.CORRUPT_MESSAGE, reason)
        if (repeated := self._sequence(header)) is not None:
            return repeated
        self._make_room(header.size)
        offset = self.end
        written = header._replace(base_offset=offset)
        self._active.write(PREFIX.pack(offset, header.length, 0) + content[PREFIX.size :])
        self._active.add(written)
        self._remember(written)
        return offset

    def read(self, offset: int, max_bytes: int) -> bytes:
        """Return complete batches from the one that contains `offset`.

        Returns at least one batch, more up to `max_bytes`, and nothing at the end.

        :raises LogError: when the offset is out of range.
        """
        if offset == self.end:
            return b""
        if not self.start <= offset < self.end:
            raise LogError(ErrorCode.OFFSET_OUT_OF_RANGE)
        following = bisect_right(self._segments, offset, key=lambda one: one.base)
        segment = self._segments[following - 1]
        position = segment.position(offset)
        if (
            position is None
        ):  # the segment's last offsets are not there: what follows is in the next
            return (
                self.read(self._segments[following].base, max_bytes)
                if following < len(self._segments)
                else b""
            )
        data = segment.read(position, max(max_bytes, HEADER.size))
        first = parse(data, 0)
        if first is not None and first.size > len(data):
            return segment.read(position, first.size)
        return data[: _whole(data)]

    def offset_at(self, timestamp_ms: int) -> tuple[int, int]:
        """Return (timestamp, offset) of the first batch since `timestamp_ms`, else (-1, -1).

        :raises LogError: when a file cannot be read.
        """
        for segment in self._segments:
            segment.index()
            if segment.max_timestamp_ms < timestamp_ms:
                continue
            for header, _ in segment.headers():
                if header.max_timestamp_ms >= timestamp_ms:
                    return header.max_timestamp_ms, header.base_offset
        return -1, -1

    def sync(self) -> None:
        """Put on the disk what was appended."""
        self._active.sync()

    def close(self) -> None:
        """Close the files."""
        self._active.close()

    @property
    def _active(self) -> _Segment:
        return self._segments[-1]

    def _found(self) -> list[_Segment]:
        bases = sorted(int(path.stem) for path in self._folder.glob("*.log"))
        segments = [_Segment(self._path(base), base) for base in bases] or [
            _Segment(self._path(0), 0)
        ]
        for segment, following in pairwise(segments):
            segment.size, segment.end, segment.is_indexed = (
                segment.path.stat().st_size,
                following.base,
                False,
            )
        if bases:
            for header in segments[-1].scan():
                self._remember(header)
        return segments

    def _size(self) -> int:
        return sum(segment.size for segment in self._segments)

    def _path(self, base: int) -> Path:
        return self._folder / f"{base:020d}.log"

    def _make_room(self, size: int) -> None:
        if self._active.size + size > self._segment_bytes and self._active.size:
            self._roll()
        while self._size() + size > self._max_bytes and len(self._segments) > 1:
            oldest = self._segments[0]
            if self._stored is not None and self._stored() < oldest.end:
                raise LogError(
                    ErrorCode.KAFKA_STORAGE_ERROR, "what is not stored yet fills the partition"
                )
            oldest.path.unlink(missing_ok=True)
            del self._segments[0]

    def _roll(self) -> None:
        fresh = _Segment(self._path(self.end), self.end)
        try:
            fresh.open()
        except OSError as error:
            raise LogError(
                ErrorCode.KAFKA_STORAGE_ERROR, f"{fresh.path}: {error.strerror}"
            ) from None
        self._active.close()
        self._segments.append(fresh)

    def _sequence(self, header: BatchHeader) -> int | None:
        """Return the offset of the earlier batch that `header` repeats, or None for a new batch.

        :raises LogError: when it does not follow the producer's last batch.
        """
        known = self._producers.get(header.producer_id)
        # Any sequence is valid as the first one of an unknown producer.
        if known is None or not known.batches:
            return None
        if header.producer_epoch < known.epoch:
            raise LogError(ErrorCode.INVALID_PRODUCER_EPOCH)
        expected = (
            (known.batches[-1][1] + 1) % SEQUENCES if header.producer_epoch == known.epoch else 0
        )
        if header.producer_epoch == known.epoch:
            # The checksum: another client of the same user may have used the producer's id.
            sent = header.base_sequence, header.last_sequence, header.crc
            for first, last, crc, offset in known.batches:
                if (first, last, crc) == sent:
                    return offset
        if header.base_sequence != expected:
            raise LogError(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
        return None

    def _remember(self, header: BatchHeader) -> None:
        if header.producer_id < 0:
            return
        known = self._producers.pop(header.producer_id, None)
        if known is None or known.epoch != header.producer_epoch:
            known = _Producer(header.producer_epoch)
        known.batches.append(
            (header.base_sequence, header.last_sequence, header.crc, header.base_offset)
        )
        # Producers are evicted in order of their last use.
        self._producers[header.producer_id] = known
        if len(self._producers) > _PRODUCERS:
            del self._producers[next(iter(self._producers))]


def _whole(data: bytes) -> int:
    """Return the size of the complete batches in `data`."""
    end = 0
    while (header := parse(data, end)) is not None and end + header.size <= len(data):
        end += header.size
    return end
