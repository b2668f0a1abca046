"""Build `mev.v1.Frame` messages from events that are already encoded.

An event is an opaque `bytes` field of the frame: its bytes are copied as they were published, and never parsed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import sub

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


def encode_positions(positions: Mapping[tuple[str, int], int], sent_at_ns: int) -> bytes:
    """Return a serialised frame without events that says of each topic and partition which offset comes next."""
    slices = [Slice(topic=topic, partition=partition, first_offset=offset) for (topic, partition), offset in positions.items()]
    return Frame(slices=slices, sent_at_ns=sent_at_ns).SerializeToString()


def offsets_of(part: Slice) -> list[int]:
    """Return the offset of each event in `part`."""
    if not part.offset_step:
        return list(range(part.first_offset, part.first_offset + len(part.events)))
    offsets = [part.first_offset]
    for step in part.offset_step:
        offsets.append(offsets[-1] + step)
    return offsets


def _slices(run: Run) -> Iterator[Slice]:
    if _contiguous(run.offsets):
        yield _slice(run, [])
        return
    steps = list(map(sub, run.offsets[1:], run.offsets))
    try:
        yield _slice(run, steps)
    except ValueError:  # the library refuses a distance that does not fit: a rewind, or a very long jump
        yield from _cut(run, steps)


def _cut(run: Run, steps: list[int]) -> Iterator[Slice]:
    """Begin a new slice after each distance that does not fit `offset_step`."""
    cuts = [place for place, step in enumerate(steps, start=1) if not 0 <= step <= _MAX_STEP]
    for start, stop in pairwise([0, *cuts, len(run.offsets)]):
        part = Run(run.topic, run.partition, run.offsets[start:stop], run.values[start:stop])
        yield _slice(part, [] if _contiguous(part.offsets) else steps[start : stop - 1])


def _slice(run: Run, steps: list[int]) -> Slice:
    return Slice(topic=run.topic, partition=run.partition, first_offset=run.offsets[0], offset_step=steps, events=run.values)


def _contiguous(offsets: Sequence[int]) -> bool:
    return list(offsets) == list(range(offsets[0], offsets[0] + len(offsets)))
