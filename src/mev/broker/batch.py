"""Record batches of format 2: header, and validation of all that a consumer parses.

A consumer that cannot parse a batch fetches it again and again and reads nothing after it: no such
batch may be stored or sent.
"""

import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

import google_crc32c

from mev.core import native

HEADER = struct.Struct(">qiibIhiqqqhii")
PREFIX = struct.Struct(">qii")
"""Base offset, length and leader epoch, which the checksum does not cover."""
_BEFORE_LENGTH = 12
_BEFORE_CHECKED = 21
_MAGIC = 2
COMPRESSION = 0x07
TRANSACTIONAL_OR_CONTROL = 0x30
SEQUENCES = 1 << 31
_CODECS = 4
_INT32 = range(-(1 << 31), 1 << 31)
_VARINT_BYTES = 10


class BatchHeader(NamedTuple):
    """Header of a record batch of format 2."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @property
    def size(self) -> int:
        """Size of the whole batch in bytes."""
        return self.length + _BEFORE_LENGTH

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last record."""
        return (self.base_sequence + self.last_offset_delta) % SEQUENCES

    @property
    def next_offset(self) -> int:
        """Offset after the batch."""
        return self.base_offset + self.last_offset_delta + 1


def parse(data: bytes | memoryview, position: int) -> BatchHeader | None:
    """Return the header at `position`, or None if it is incomplete or invalid."""
    if len(data) - position < HEADER.size:
        return None
    header = BatchHeader._make(HEADER.unpack_from(data, position))
    if header.magic != _MAGIC or header.size < HEADER.size or header.last_offset_delta < 0:
        return None
    return header


def problem(header: BatchHeader, data: bytes) -> str:
    """Return why a consumer could not read the whole batch `data`, or an empty text.

    The records of a compressed batch are not examined.
    """
    codec = header.attributes & COMPRESSION
    if header.attributes & ~COMPRESSION or codec > _CODECS:
        return f"unknown attributes {header.attributes:#x}"
    if google_crc32c.value(data[_BEFORE_CHECKED:]) != header.crc:
        return "the checksum is wrong"
    if header.records < 0 or (header.records and header.last_offset_delta != header.records - 1):
        return "the number of records does not match their offsets"
    if not codec and not _validator()(data, HEADER.size, header.records):
        return f"the content is not {header.records} complete records"
    return ""


def empty_batch(offset: int, last_offset_delta: int) -> bytes:
    """Return a batch without records in the place of `last_offset_delta` + 1 offsets.

    Consumers continue behind it, as behind the records that compaction removed.
    """
    checked = struct.pack(">hiqqqhii", 0, last_offset_delta, -1, -1, -1, -1, -1, 0)
    length = HEADER.size - _BEFORE_LENGTH
    prefix = PREFIX.pack(offset, length, 0)
    return prefix + struct.pack(">bI", _MAGIC, google_crc32c.value(checked)) + checked


def are_complete_records(data: bytes, start: int, count: int) -> bool:
    """Return whether `data` from `start` is `count` records with offset deltas from 0."""
    at = start
    try:
        for number in range(count):
            length, at = _varint(data, at)
            end = at + length
            _, at = _varlong(data, at + 1)  # after the attributes, the timestamp delta
            delta, at = _varint(data, at)
            if length < 0 or end > len(data) or delta != number:
                return False
            for _ in ("key", "value"):
                at = _after_nullable(data, at)
            headers, at = _varint(data, at)
            if headers < 0:
                return False
            for _ in range(headers):
                name, at = _varint(data, at)
                if name < 0 or at > end:
                    return False
                at = _after_nullable(data, at + name)
            if at != end:
                return False
    except (IndexError, ValueError):
        return False
    return at == len(data)


def _after_nullable(data: bytes, at: int) -> int:
    length, at = _varint(data, at)
    if length < -1:
        raise ValueError
    return at + max(length, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varlong(data, at)
    if value not in _INT32:
        raise ValueError
    return value, at


def _varlong(data: bytes, at: int) -> tuple[int, int]:
    """Return the zigzag-encoded number at `at`, and the position behind it."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise ValueError
            return (value >> 1) ^ -(value & 1), at
    raise ValueError


@functools.cache
def _validator() -> Callable[[bytes, int, int], bool]:
    if not native.is_used():
        return are_complete_records
    from mev import _native  # noqa: PLC0415 - may be missing

    return _native.are_complete_records
