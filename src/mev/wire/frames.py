"""Encoding of `mev.v1.Frame` messages from encoded events.

An event is an opaque `bytes` field of the frame: its published bytes are copied without parsing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub

from mev.wire.pb.stream_pb2 import Frame, Slice

_MAX_STEP = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Run:
    """One or more events of a topic and partition, in offset order.

    `values[i]` has the offset `offsets[i]`. `published_ms` holds the publication times, or is
    empty.
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    values: Sequence[bytes]
    published_ms: Sequence[int] = ()


def encode_frame(runs: Iterable[Run], sent_at_ns: int, resume: str = "") -> bytes:
    """Return a serialised frame with the events of `runs`, without subscriber-specific fields."""
    slices = [part for run in runs for part in _slices(run)]
    return Frame(slices=slices, sent_at_ns=sent_at_ns, resume=resume).SerializeToString()


def encode_positions(
    positions: Mapping[tuple[str, int], int], sent_at_ns: int, resume: str = ""
) -> bytes:
    """Return a serialised frame without events that holds the next offset of each partition."""
    slices = [
        Slice(topic=topic, partition=partition, first_offset=offset)
        for (topic, partition), offset in positions.items()
    ]
    return Frame(slices=slices, sent_at_ns=sent_at_ns, resume=resume).SerializeToString()


def offsets_of(part: Slice) -> list[int]:
    """Return the offset of each event in `part`."""
    if not part.offset_step:
        return list(range(part.first_offset, part.first_offset + len(part.events)))
    offsets = [part.first_offset]
    for step in part.offset_step:
        offsets.append(offsets[-1] + step)
    return offsets


def published_ms_of(part: Slice) -> list[int]:
    """Return the publication time of each event in `part` in ms since the epoch; 0 if unknown."""
    if not part.published_step_ms:
        return [part.first_published_ms] * len(part.events)
    return list(accumulate(part.published_step_ms, initial=part.first_published_ms))


def _slices(run: Run) -> Iterator[Slice]:
    if _contiguous(run.offsets):
        yield _slice(run, [])
        return
    steps = list(map(sub, run.offsets[1:], run.offsets))
    try:
        yield _slice(run, steps)
    except ValueError:  # a step does not fit the field: a rewind, or a very large gap
        yield from _cut(run, steps)


def _cut(run: Run, steps: list[int]) -> Iterator[Slice]:
    """Start a new slice after each step that does not fit `offset_step`."""
    cuts = [place for place, step in enumerate(steps, start=1) if not 0 <= step <= _MAX_STEP]
    for start, stop in pairwise([0, *cuts, len(run.offsets)]):
        part = Run(
            run.topic,
            run.partition,
            run.offsets[start:stop],
            run.values[start:stop],
            run.published_ms[start:stop],
        )
        yield _slice(part, [] if _contiguous(part.offsets) else steps[start : stop - 1])


def _slice(run: Run, steps: list[int]) -> Slice:
    part = Slice(
        topic=run.topic,
        partition=run.partition,
        first_offset=run.offsets[0],
        offset_step=steps,
        events=run.values,
    )
    times = run.published_ms
    if len(times) == len(run.offsets):
        part.first_published_ms = times[0]
        if times.count(times[0]) < len(times):
            part.published_step_ms.extend(map(sub, times[1:], times))
    return part


def _contiguous(offsets: Sequence[int]) -> bool:
    return list(offsets) == list(range(offsets[0], offsets[0] + len(offsets)))
