from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mev.wire.frames import Run, dropped_field, encode_frame, varint
from mev.wire.pb.stream_pb2 import Frame, Slice

_steps = st.lists(st.one_of(st.just(1), st.integers(0, 2**32 - 1)), max_size=20)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    first = draw(st.one_of(st.just(0), st.integers(0, 2**62)))
    offsets = [first]
    for step in draw(_steps):
        offsets.append(offsets[-1] + step)
    values = draw(st.lists(st.binary(max_size=200), min_size=len(offsets), max_size=len(offsets)))
    return Run(draw(st.text(max_size=20)), draw(st.integers(0, 2**31 - 1)), offsets, values)


def reference(run: Run) -> Slice:
    steps = [after - before for before, after in pairwise(run.offsets)]
    contiguous = all(step == 1 for step in steps)
    return Slice(
        topic=run.topic, partition=run.partition, first_offset=run.offsets[0], offset_step=[] if contiguous else steps, events=run.values
    )


@given(st.lists(runs(), max_size=4), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_bytes_are_those_of_the_protobuf_library(some: list[Run], sent_at_ns: int, dropped: int) -> None:
    frame = Frame(slices=map(reference, some), sent_at_ns=sent_at_ns, dropped=dropped)
    assert encode_frame(some, sent_at_ns, dropped) == frame.SerializeToString()


@given(st.lists(runs(), max_size=3), st.integers(1, 2**64 - 1))
def test_dropped_can_be_put_behind_a_finished_frame(some: list[Run], dropped: int) -> None:
    frame = Frame.FromString(encode_frame(some, 1) + dropped_field(dropped))
    assert frame.dropped == dropped
    assert list(frame.slices) == list(map(reference, some))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_any_offsets_come_back_with_their_events(offsets: list[int]) -> None:
    values = [str(offset).encode() for offset in offsets]
    frame = Frame.FromString(encode_frame([Run("t", 3, offsets, values)], 0))
    read = []
    for part in frame.slices:
        assert len(part.offset_step) in {0, len(part.events) - 1}
        offset = part.first_offset
        for step, event in zip([0, *(part.offset_step or [1] * (len(part.events) - 1))], part.events, strict=True):
            offset += step
            read.append((offset, event))
    assert read == list(zip(offsets, values, strict=True))


def test_a_run_of_nothing_is_no_slice() -> None:
    assert encode_frame([Run("t", 0, [], [])], 0) == b""
    assert dropped_field(0) == b""


def test_negative_numbers_take_ten_bytes() -> None:
    assert varint(-1) == b"\xff" * 9 + b"\x01"
