"""Build `mev.v1.Frame` messages from events that are already encoded.

An event's bytes are copied once, into the frame, and never parsed: a frame is lengths and tags written between them. The result is
byte for byte what the Protobuf library would write for the same message.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from struct import Struct

_MAX_STEP = 2**32 - 1
_SENT_AT = Struct("<BQ")

# Field tags: number << 3 | wire type.
_SLICES, _SENT_AT_TAG, _DROPPED = b"\x0a", 0x11, b"\x18"
_TOPIC, _PARTITION, _FIRST_OFFSET, _OFFSET_STEP, _EVENT = b"\x0a", b"\x10", b"\x18", b"\x22", b"\x2a"


@dataclass(frozen=True, slots=True)
class Run:
    """Events of one topic and partition, in the order they were read; `values[i]` was published at `offsets[i]`."""

    topic: str
    partition: int
    offsets: Sequence[int]
    values: Sequence[bytes]


def encode_frame(runs: Iterable[Run], sent_at_ns: int, dropped: int = 0) -> bytes:
    """Return a serialised `mev.v1.Frame` that carries `runs`."""
    parts, _ = frame_parts(runs, sent_at_ns)
    return b"".join([*parts, dropped_field(dropped)])


def frame_parts(runs: Iterable[Run], sent_at_ns: int) -> tuple[list[bytes], int]:
    """Return the frame in parts, to be joined behind a transport's own header, and their total size in bytes."""
    parts: list[bytes] = []
    size = 0
    for run in runs:
        for piece in _encodable(run):
            size += _append_slice(parts, piece)
    if sent_at_ns:
        parts.append(_SENT_AT.pack(_SENT_AT_TAG, sent_at_ns))
        size += _SENT_AT.size
    return parts, size


def dropped_field(count: int) -> bytes:
    """Return the bytes that, put behind a frame without one, set its `dropped` field."""
    return _DROPPED + varint(count) if count else b""


def varint(value: int) -> bytes:
    """Encode `value`; a negative one takes ten bytes, as Protobuf's int32 and int64 do."""
    value &= 2**64 - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _append_slice(parts: list[bytes], run: Run) -> int:
    head = _slice_head(run)
    events: list[bytes] = [b""] * (2 * len(run.values))
    events[0::2] = map(_event_head, map(len, run.values))
    events[1::2] = run.values
    body_size = len(head) + sum(map(len, events))
    tag = _SLICES + varint(body_size)
    parts += (tag, head)
    parts += events
    return len(tag) + body_size


def _slice_head(run: Run) -> bytes:
    topic = run.topic.encode()
    first = run.offsets[0]
    fields = [_TOPIC, varint(len(topic)), topic] if topic else []
    fields += [_PARTITION, varint(run.partition)] if run.partition else []
    fields += [_FIRST_OFFSET, varint(first)] if first else []
    if not _contiguous(run.offsets):
        steps = b"".join([varint(after - before) for before, after in pairwise(run.offsets)])
        fields += [_OFFSET_STEP, varint(len(steps)), steps]
    return b"".join(fields)


@lru_cache(maxsize=4096)
def _event_head(size: int) -> bytes:
    return _EVENT + varint(size)


def _contiguous(offsets: Sequence[int]) -> bool:
    return list(offsets) == list(range(offsets[0], offsets[0] + len(offsets)))


def _encodable(run: Run) -> Iterator[Run]:
    """Cut `run` where the distance between neighbours does not fit `offset_step`: a rewind, or a very long jump."""
    if not run.offsets:
        return
    if _contiguous(run.offsets):
        yield run
        return
    cuts = [i for i, (before, after) in enumerate(pairwise(run.offsets), start=1) if not 0 <= after - before <= _MAX_STEP]
    for start, stop in pairwise([0, *cuts, len(run.offsets)]):
        yield Run(run.topic, run.partition, run.offsets[start:stop], run.values[start:stop])
