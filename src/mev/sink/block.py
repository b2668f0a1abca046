"""Blocks: contiguous records of one partition, as ClickHouse reads them."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from mev.bus.kafka import Position


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SHORT_LENGTHS = [_varint(number) for number in range(1 << 14)]


def join(values: Sequence[bytes]) -> bytes:
    """Join messages, each behind its length as a varint: ClickHouse's ``Protobuf`` format."""
    lengths = _SHORT_LENGTHS
    short = len(lengths)
    parts = []
    for value in values:
        size = len(value)
        parts.append(lengths[size] if size < short else _varint(size))
        parts.append(value)
    return b"".join(parts)


@dataclass(slots=True)
class Block:
    """Records of one partition in offset order, to be inserted at once."""

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

    def extend(self, offsets: list[int], keys: list[bytes], values: list[bytes], size_bytes: int) -> None:
        """Add the next records, whose values have `size_bytes` together."""
        self.offsets += offsets
        self.keys += keys
        self.values += values
        self.size_bytes += size_bytes

    @property
    def next_offset(self) -> int:
        """Offset to read after this block."""
        return self.offsets[-1] + 1

    def part(self, start: int, stop: int) -> "Block":
        """Return records `start` to `stop` as a block of their own."""
        return Block(self.at, self.offsets[start:stop], self.keys[start:stop], self.values[start:stop])


def token(cluster: str, block: Block, body: bytes) -> str:
    """Name a block so that its repeat is recognised, and nothing else is: an embedded broker's offsets begin again at 0."""
    topic, partition = block.at
    return f"{cluster}:{topic}:{partition}:{block.offsets[0]}-{block.offsets[-1]}:{zlib.crc32(body):08x}"
