import io
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from google.protobuf.message import DecodeError
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from mev.sink.block import InsertBlock, join, join_located, token
from mev.sink.partition import BlockLimits, Partition
from mev.sink.reconcile import uncovered
from mev.wire.pb.events_pb2 import Tick

AT = ("mev.tick.v1", 2)
LIMITS = BlockLimits(rows=4, size_bytes=100, age_s=1e9)


@given(st.lists(st.text(max_size=200), max_size=20))
def test_joining_is_the_official_encoding(names: list[str]) -> None:
    messages = [Tick(market_id=name) for name in names]
    official = io.BytesIO()
    for message in messages:
        serialize_length_prefixed(message, official)
    assert join([message.SerializeToString() for message in messages]) == official.getvalue()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 16_385, 2_097_151, 2_097_152])
def test_lengths_are_varints(size: int) -> None:
    assert join([bytes(size)]) == _VarintBytes(size) + bytes(size)


def test_records_say_where_they_were_and_cannot_change_it_by_being_cut_short() -> None:
    values = [
        Tick(market_id="m" * size, timestamp_ns=7).SerializeToString() for size in (1, 100, 20_000)
    ]
    joined = io.BytesIO(
        join_located(block([*values, b"\x0a\x7f"], at=("mev.tick.v1", 300)), log=2**64 - 2)
    )
    for number, value in enumerate(values):
        record = parse_length_prefixed(Tick, joined)
        assert record is not None
        place = record.SerializeToString().removeprefix(
            value
        ) or record.SerializeToString().removesuffix(value)
        assert sorted([value, place]) == sorted(
            [value, _PLACE + (10 + number).to_bytes(8, "little")]
        )
    with pytest.raises(DecodeError):
        parse_length_prefixed(Tick, joined)


_LOG = _VarintBytes(2001 << 3 | 1) + (2**64 - 2).to_bytes(8, "little")
_PLACE = _LOG + _VarintBytes(2002 << 3) + _VarintBytes(300) + _VarintBytes(2003 << 3 | 1)


def block(values: list[bytes], first: int = 10, at: tuple[str, int] = AT) -> InsertBlock:
    filled = InsertBlock(at)
    for offset, value in enumerate(values, first):
        filled.append(offset, b"key-%d" % offset, value)
    return filled


def named(filled: InsertBlock, cluster: str = "cluster") -> str:
    return token(cluster, filled, join(filled.values))


def test_a_token_is_the_same_for_a_repeat_and_different_for_all_else() -> None:
    base = named(block([b"a", b"b"]))
    assert named(block([b"a", b"b"])) == base
    others = [
        named(block([b"a", b"c"])),
        named(block([b"ab", b""])),
        named(block([b"a", b"b"], first=11)),
        named(block([b"a"])),
        named(block([b"a", b"b"], at=("mev.tick.v1", 1))),
        named(block([b"a", b"b"], at=("mev.bundle.v1", 2))),
        named(block([b"a", b"b"]), cluster="another"),
    ]
    assert len({base, *others}) == len(others) + 1


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=10), st.data())
def test_a_part_is_a_block_of_its_own(values: list[bytes], data: st.DataObject) -> None:
    whole = block(values)
    middle = data.draw(st.integers(0, len(values)))
    left, right = whole.part(0, middle), whole.part(middle, len(values))
    assert left.at == right.at == whole.at
    assert [*left.offsets, *right.offsets] == whole.offsets
    assert [*left.keys, *right.keys] == whole.keys
    assert [*left.values, *right.values] == whole.values
    assert whole.next_offset == 10 + len(values)


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    """Return `numbers` as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 10)).map(
            lambda pair: (pair[0], pair[0] + pair[1])
        ),
        max_size=8,
    ).map(sorted),
    st.integers(0, 35),
    st.integers(0, 35),
)
def test_what_is_uncovered_is_what_a_set_says(
    ranges: list[tuple[int, int]], earliest: int, more: int
) -> None:
    committed = earliest + more
    covered = {number for first, last in ranges for number in range(first, last + 1)}
    begin = min([earliest, *covered])
    end = max([committed, *(number + 1 for number in covered)])
    assert uncovered(ranges, earliest, committed) == ranges_of(set(range(begin, end)) - covered)


@pytest.mark.parametrize(
    ("ranges", "earliest", "committed", "gaps"),
    [
        ([], 0, 0, []),
        ([], 5, 5, []),
        ([], 0, 10, [(0, 9)]),
        ([(0, 4), (5, 9)], 0, 10, []),
        ([(0, 4), (7, 9)], 0, 10, [(5, 6)]),
        ([(5, 9)], 0, 10, [(0, 4)]),
        ([(5, 9)], 7, 10, []),
        ([(0, 4)], 0, 10, [(5, 9)]),
        ([(0, 4), (0, 9), (2, 3)], 0, 10, []),
        ([(0, 9)], 0, 5, []),
        ([(0, 4)], 8, 8, [(5, 7)]),
    ],
)
def test_gaps_are_named(
    ranges: list[tuple[int, int]], earliest: int, committed: int, gaps: list[tuple[int, int]]
) -> None:
    assert uncovered(ranges, earliest, committed) == gaps


class Store:
    """Keeps the blocks that a partition gives it, each when it is let."""

    def __init__(self) -> None:
        self.blocks: list[InsertBlock] = []
        self.may_store = threading.Event()
        self.executor = ThreadPoolExecutor(1)

    def __call__(self, given: InsertBlock, cancelled: threading.Event) -> None:
        assert self.may_store.wait(30)
        assert not cancelled.is_set()
        self.blocks.append(given)


def append(partition: Partition, *offsets: int, size: int = 1) -> None:
    for offset in offsets:
        partition.append(offset, b"", bytes(size))


def is_under_way(partition: Partition) -> bool:
    return partition.insert is not None


def lost() -> float:
    return REGISTRY.get_sample_value("mev_sink_lost_total", {"topic": AT[0]}) or 0.0


def test_a_block_is_due_when_it_is_full_or_old_or_at_the_end() -> None:
    store = Store()
    store.may_store.set()
    with store.executor as executor:
        waiting = Partition(AT, LIMITS)
        waiting.start_due(executor, store, all_now=True)
        append(waiting, 0, 1, 2)
        waiting.start_due(executor, store)
        assert not is_under_way(waiting)
        assert waiting.finish() is None
        waiting.start_due(executor, store, all_now=True)
        assert is_under_way(waiting)

        full = Partition(AT, LIMITS)
        append(full, 0, 1, 2, 3)
        full.start_due(executor, store)
        large = Partition(AT, LIMITS)
        append(large, 0, size=100)
        large.start_due(executor, store)
        old = Partition(AT, BlockLimits(rows=4, size_bytes=100, age_s=0))
        append(old, 0)
        old.start_due(executor, store)
    assert [partition.finish() for partition in (waiting, full, large, old)] == [3, 4, 1, 1]
    assert [len(stored.values) for stored in store.blocks] == [3, 4, 1, 1]
    assert [partition.held_bytes for partition in (waiting, full, large, old)] == [0] * 4


def test_what_comes_while_a_block_is_under_way_waits_in_the_next() -> None:
    store = Store()
    partition = Partition(AT, LIMITS)
    with store.executor as executor:
        append(partition, 0, 1, 2, 3)
        partition.start_due(executor, store)
        append(partition, 4, 5, 6)
        assert partition.finish() is None
        behind = [partition.is_behind]
        append(partition, 7)
        behind.append(partition.is_behind)
        assert partition.held_bytes == 8
        store.may_store.set()
        wait([partition.insert] if partition.insert else [], timeout=30)
        assert partition.finish() == 4
        behind.append(partition.is_behind)
        partition.start_due(executor, store)
    assert partition.finish() == 8
    assert [stored.offsets for stored in store.blocks] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert behind == [False, True, False]


def test_a_failed_insert_is_not_hidden() -> None:
    def fail(_block: InsertBlock, _cancelled: threading.Event) -> None:
        raise ValueError("no")

    partition = Partition(AT, LIMITS)
    append(partition, 0)
    with ThreadPoolExecutor(1) as executor:
        partition.start_due(executor, fail, all_now=True)
    with pytest.raises(ValueError, match="no"):
        partition.finish()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=40))
def test_blocks_are_whole_bounded_and_without_gaps(steps: list[tuple[int, int]]) -> None:
    partition, offsets = Partition(AT, LIMITS), list[int]()
    before, missing, offset = lost(), 0, 0
    for skip, size in steps:
        missing += skip if offsets else 0
        offset += skip
        append(partition, offset, size=size)
        offsets.append(offset)
        offset += 1
    assert [number for filled in partition.blocks for number in filled.offsets] == offsets
    for filled in partition.blocks:
        assert filled.offsets == list(range(filled.offsets[0], filled.next_offset))
        assert len(filled.values) <= LIMITS.rows
        assert filled.size_bytes - len(filled.values[-1]) < LIMITS.size_bytes
    assert partition.held_bytes == sum(size for _, size in steps)
    assert lost() - before == missing


def test_a_gap_before_the_first_record_counts_when_the_place_to_begin_is_known() -> None:
    before = lost()
    append(Partition(AT, LIMITS, next_offset=5), 8)
    append(Partition(AT, LIMITS), 8)
    assert lost() - before == 3
