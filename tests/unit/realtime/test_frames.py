from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mev.wire.frames import Run, encode_frame, encode_positions, offsets_of, published_ms_of
from mev.wire.pb.stream_pb2 import Frame

_partitions = st.integers(0, 2**31 - 1)
_times = st.one_of(st.just(0), st.integers(-1, 2**45))
_jumps = st.one_of(st.just(1), st.integers(0, 5), st.integers(-(2**40), 2**40))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    offsets = [draw(st.one_of(st.just(0), st.integers(2**45, 2**62)))]
    for jump in draw(st.lists(_jumps, max_size=20)):
        offsets.append(max(0, offsets[-1] + jump))
    values = draw(st.lists(st.binary(max_size=200), min_size=len(offsets), max_size=len(offsets)))
    times = draw(
        st.one_of(st.just([]), st.lists(_times, min_size=len(offsets), max_size=len(offsets)))
    )
    return Run(draw(st.text(max_size=20)), draw(_partitions), offsets, values, times)


def events(run: Run) -> list[tuple[str, int, int, bytes, int]]:
    times = run.published_ms or [0] * len(run.offsets)
    return [
        (run.topic, run.partition, *event)
        for event in zip(run.offsets, run.values, times, strict=True)
    ]


def read(frame: Frame) -> list[tuple[str, int, int, bytes, int]]:
    return [
        (part.topic, part.partition, *event)
        for part in frame.slices
        for event in zip(offsets_of(part), part.events, published_ms_of(part), strict=True)
    ]


@given(st.lists(runs(), max_size=4), st.integers(0, 2**64 - 1))
def test_every_event_comes_back_with_its_offset_and_time(some: list[Run], sent_at_ns: int) -> None:
    frame = Frame.FromString(encode_frame(some, sent_at_ns))
    assert read(frame) == [event for run in some for event in events(run)]
    assert (frame.sent_at_ns, frame.dropped) == (sent_at_ns, 0)


@given(runs())
def test_steps_are_distances_and_absent_when_contiguous(run: Run) -> None:
    for part in Frame.FromString(encode_frame([run], 0)).slices:
        offsets = offsets_of(part)
        steps = [after - before for before, after in pairwise(offsets)]
        assert list(part.offset_step) == ([] if set(steps) <= {1} else steps)


def test_a_run_with_steps_that_fit_is_one_slice() -> None:
    offsets = [7, 8, 8 + 2**32 - 1, 8 + 2**32 - 1]
    (part,) = Frame.FromString(encode_frame([Run("t", 0, offsets, [b""] * 4)], 0)).slices
    assert (part.first_offset, list(part.offset_step)) == (7, [1, 2**32 - 1, 0])


@given(st.lists(runs(), max_size=3), st.integers(0, 2**64 - 1))
def test_what_one_subscriber_is_told_can_be_put_behind_a_finished_frame(
    some: list[Run], dropped: int
) -> None:
    frame = Frame.FromString(
        encode_frame(some, 1) + Frame(dropped=dropped, subscription="a").SerializeToString()
    )
    assert (frame.dropped, frame.subscription) == (dropped, "a")
    assert read(frame) == [event for run in some for event in events(run)]


def test_positions_are_slices_without_events() -> None:
    frame = Frame.FromString(encode_positions({("t", 1): 5, ("t", 2): 0}, 9))
    assert [
        (part.topic, part.partition, part.first_offset, list(part.events)) for part in frame.slices
    ] == [
        ("t", 1, 5, []),
        ("t", 2, 0, []),
    ]
