"""Insert blocks: contiguous records of one partition, encoded for ClickHouse."""

import struct
import time
import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from mev.bus.kafka import Position
from mev.wire.registry import PLACE_COLUMNS


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINT, _FIXED64 = 0, 1  # wire types of Protobuf
_SHORT_LENGTHS = [_varint(number) for number in range(1 << 14)]


def join(values: Sequence[bytes]) -> bytes:
    """Return `values` as length-delimited messages, ClickHouse's ``Protobuf`` format."""
    lengths = _SHORT_LENGTHS
    short = len(lengths)
    parts = []
    for value in values:
        size = len(value)
        parts.append(lengths[size] if size < short else _varint(size))
        parts.append(value)
    return b"".join(parts)


def join_located(block: "InsertBlock", log: int) -> bytes:
    """Join a block's messages, each after its length and its position in the log numbered `log`.

    The format is that of :attr:`EventType.located_schema`. The position precedes the message: bytes
    after a truncated message would be read as part of it.
    """
    log_field, partition_field, offset_field = (column.number for column in PLACE_COLUMNS.values())
    place = (
        _tag(log_field, _FIXED64)
        + log.to_bytes(8, "little")
        + _tag(partition_field, _VARINT)
        + _varint(block.at[1])
    )
    place += _tag(offset_field, _FIXED64)
    offsets = struct.pack(f"<{len(block.offsets)}q", *block.offsets)
    extra, lengths = len(place) + 8, _SHORT_LENGTHS
    short = len(lengths)
    parts: list[bytes] = []
    for number, value in enumerate(block.values):
        size = len(value) + extra
        parts += (
            lengths[size] if size < short else _varint(size),
            place,
            offsets[8 * number : 8 * number + 8],
            value,
        )
    return b"".join(parts)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


@dataclass(slots=True)
class InsertBlock:
    """Records of one partition in offset order, inserted together."""

    at: Position
    offsets: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    opened_at: float = field(default_factory=time.monotonic)

    def append(self, offset: int, key: bytes, value: bytes) -> None:
        """Add the next record."""
        self.offsets.append(offset)
        self.keys.append(key)
        self.values.append(value)
        self.size_bytes += len(value)

    def extend(
        self, offsets: list[int], keys: list[bytes], values: list[bytes], size_bytes: int
    ) -> None:
        """Append records, given the total size of their values."""
        self.offsets += offsets
        self.keys += keys
        self.values += values
        self.size_bytes += size_bytes

    @property
    def next_offset(self) -> int:
        """Offset of the record after this block."""
        return self.offsets[-1] + 1

    def part(self, start: int, stop: int) -> "InsertBlock":
        """Return records `start` to `stop` as a separate block."""
        return InsertBlock(
            self.at, self.offsets[start:stop], self.keys[start:stop], self.values[start:stop]
        )

    def without(self, indices: Container[int]) -> "InsertBlock":
        """Return the other records as a separate block."""
        kept = [number for number in range(len(self.values)) if number not in indices]
        return InsertBlock(
            self.at,
            [self.offsets[number] for number in kept],
            [self.keys[number] for number in kept],
            [self.values[number] for number in kept],
        )


def token(cluster: str, block: InsertBlock, body: bytes) -> str:
    """Return a deduplication token: the same for a repeat of the block, different for any other.

    It includes the cluster and a checksum, because the offsets of an embedded broker restart at 0.
    """
    topic, partition = block.at
    return (
        f"{cluster}:{topic}:{partition}:{block.offsets[0]}-{block.offsets[-1]}:"
        f"{zlib.crc32(body):08x}"
    )
