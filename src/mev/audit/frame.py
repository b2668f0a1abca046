"""File format of the audit trail, with detection of damage and of torn writes.

A frame is ``<u32 length> <u8 kind> <32 bytes hash> <u32 CRC-32 of the 37 bytes before> <body>``,
numbers little-endian. The hash is SHA-256 over the kind and the body: for a record, whose kind is
0, that is its Merkle leaf hash.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

RECORD, HEADER, SEAL, CHECKPOINT = 0, 2, 3, 4  # 1 is the prefix of inner nodes
_FIELDS = struct.Struct("<IB32s")
_HEAD_BYTES = _FIELDS.size + 4
_SECTOR_BYTES = 512


class BadFrameError(Exception):
    """The bytes at `offset` are not a frame; `torn` if an unfinished write explains them."""

    def __init__(self, what: str, offset: int, *, torn: bool) -> None:
        super().__init__(what)
        self.offset = offset
        self.torn = torn


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a file, with a verified hash."""

    offset: int
    kind: int
    hashed: bytes
    body: bytes


def encode(kind: int, body: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of a frame, and its hash."""
    hashed = hashlib.sha256(bytes([kind]) + body).digest()
    head = _FIELDS.pack(len(body), kind, hashed)
    return b"%b%b%b" % (head, zlib.crc32(head).to_bytes(4, "little"), body), hashed


def scan(data: bytes) -> Iterator[Frame]:
    """Yield the frames of a file.

    :raises BadFrameError: at the first invalid frame.
    """
    offset = 0
    while offset < len(data):
        frame = _read(data, offset)
        yield frame
        offset += _HEAD_BYTES + len(frame.body)


def _read(data: bytes, offset: int) -> Frame:
    body_at = offset + _HEAD_BYTES
    if body_at > len(data):
        raise BadFrameError("ends within the head of a record", offset, torn=True)
    head = data[offset : offset + _FIELDS.size]
    if zlib.crc32(head) != int.from_bytes(data[body_at - 4 : body_at], "little"):
        raise BadFrameError(
            "the head of the record was changed", offset, torn=_never_written(data, offset)
        )
    length, kind, hashed = _FIELDS.unpack(head)
    if body_at + length > len(data):
        raise BadFrameError("ends within a record", offset, torn=True)
    body = data[body_at : body_at + length]
    if hashlib.sha256(bytes([kind]) + body).digest() != hashed:
        raise BadFrameError("the record was changed", offset, torn=_never_written(data, offset))
    return Frame(offset, kind, hashed, body)


def _never_written(data: bytes, offset: int) -> bool:
    """Return whether the file ends with zeros after the sector of `offset`.

    A power failure after the file has grown leaves such an end.
    """
    rest = data[(offset // _SECTOR_BYTES + 1) * _SECTOR_BYTES :]
    return bool(rest) and not rest.strip(b"\x00")
