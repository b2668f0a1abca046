"""Build `mev.v1.Frame` messages from events that are already encoded.

An event is an opaque `bytes` field of the frame: its bytes are copied as they were published, and never parsed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mev.wire.pb.stream_pb2 import Frame, Slice

_MAX_STEP = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Run:
    """One or more events of a topic and partition, in the order they were read; `values[i]` was published at `offsets[i]`."""

    topic: str
    partition: int
    offsets: Sequence[int]
    values: Sequence[bytes]


def encode_frame(runs: Iterable[Run], sent_at_ns: int) -> bytes:
    """Return a serialised frame that carries `runs`, without `dropped`."""
    return Frame(slices=[part for run in runs for part in _slices(run)], sent_at_ns=sent_at_ns).SerializeToString()


def dropped_field(count: int) -> bytes:
    """Return the bytes that, put behind a serialised frame without one, set its `dropped` field."""
    return Frame(dropped=count).SerializeToString()


def offsets_of(part: Slice) -> list[int]:
    """Return the offset of each event in `part`."""
    if not part.offset_step:
        return list(range(part.first_offset, part.first_offset + len(part.events)))
    offsets = [part.first_offset]
    for step in part.offset_step:
        offsets.append(offsets[-1] + step)
    return offsets


def _slices(run: Run) -> Iterator[Slice]:
    """Cut `run` where the distance between neighbours does not fit `offset_step`: a rewind, or a very long jump."""
    if _contiguous(run.offsets):
        # The usual case, at the speed of the Protobuf library.
        yield Slice(topic=run.topic, partition=run.partition, first_offset=run.offsets[0], events=run.values)
        return
    cuts = [i for i, (before, after) in enumerate(pairwise(run.offsets), start=1) if not 0 <= after - before <= _MAX_STEP]
    for start, stop in pairwise([0, *cuts, len(run.offsets)]):
        offsets = run.offsets[start:stop]
        steps = [] if _contiguous(offsets) else [after - before for before, after in pairwise(offsets)]
        values = run.values[start:stop]
        yield Slice(topic=run.topic, partition=run.partition, first_offset=offsets[0], offset_step=steps, events=values)


def _contiguous(offsets: Sequence[int]) -> bool:
    return list(offsets) == list(range(offsets[0], offsets[0] + len(offsets)))
