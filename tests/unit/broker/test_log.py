"""Tests of a partition's log: durable appends; repeats and damaged data add nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.broker.log import LogError, PartitionLog
from mev.broker.wire import ErrorCode, MalformedRequestError, RequestReader
from tests.unit.broker.client import HEADER, batch


def read_all(log: PartitionLog) -> list[int]:
    """Return the base offsets of all batches."""
    found, offset = [], log.start
    while data := log.read(offset, 1 << 20):
        position = 0
        while position < len(data):
            header = HEADER.unpack_from(data, position)
            found.append(header[0])
            position, offset = position + header[1] + 12, header[0] + header[6] + 1
    return found


@given(
    st.lists(st.tuples(st.integers(1, 50), st.binary(max_size=300)), max_size=40),
    st.integers(0, 200),
)
def test_log_keeps_whole_batches_over_a_cut_file(
    batches: list[tuple[int, bytes]], cut: int
) -> None:
    with TemporaryDirectory() as folder:
        log = PartitionLog(Path(folder), max_bytes=1 << 20)
        offsets = [log.append(batch(records, payload=payload)) for records, payload in batches]
        assert read_all(log) == offsets
        log.close()
        newest = max(Path(folder).glob("*.log"))
        newest.write_bytes(newest.read_bytes()[: max(0, newest.stat().st_size - cut)])
        again = PartitionLog(Path(folder), max_bytes=1 << 20)
        kept = read_all(again)
        assert kept == offsets[: len(kept)]
        assert again.append(batch()) == again.end - 1
        again.close()


def test_repeat_of_an_idempotent_producer_is_not_written_again_after_a_restart(
    tmp_path: Path,
) -> None:
    log = PartitionLog(tmp_path, max_bytes=1 << 20)
    first = log.append(batch(3, producer_id=7, sequence=0))
    log.close()
    again = PartitionLog(tmp_path, max_bytes=1 << 20)
    assert again.append(batch(3, producer_id=7, sequence=0)) == first
    assert again.end == 3
    with pytest.raises(LogError) as caught:
        again.append(batch(1, producer_id=7, sequence=9))
    assert caught.value.code is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_other_content_with_the_sequence_of_a_batch_is_refused_not_acknowledged(
    tmp_path: Path,
) -> None:
    log = PartitionLog(tmp_path, max_bytes=1 << 20)
    log.append(batch(3, producer_id=7, sequence=0, payload=b"forged"))
    with pytest.raises(LogError) as refused:
        log.append(batch(3, producer_id=7, sequence=0, payload=b"own"))
    assert refused.value.code is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_oldest_batches_go_but_not_before_they_are_stored(tmp_path: Path) -> None:
    stored = 0
    log = PartitionLog(tmp_path, max_bytes=64 << 10, stored=lambda: stored)
    payload = b"x" * 1000

    def fill() -> None:
        for _ in range(1000):
            log.append(batch(payload=payload))

    with pytest.raises(LogError) as caught:
        fill()
    assert caught.value.code is ErrorCode.KAFKA_STORAGE_ERROR
    assert log.start == 0
    stored = log.end
    log.append(batch(payload=payload))
    assert log.start > 0
    with pytest.raises(LogError) as gone:
        log.read(0, 100)
    assert gone.value.code is ErrorCode.OFFSET_OUT_OF_RANGE


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_batch_or_taken_whole(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        log = PartitionLog(Path(folder), max_bytes=1 << 20)
        with pytest.raises(LogError):
            log.append(memoryview(data))
        assert log.end == 0
        log.close()


@given(st.binary(max_size=100))
def test_request_reader_raises_one_error_for_any_bytes(data: bytes) -> None:
    try:
        request = RequestReader(data)
        request.array(
            lambda: (request.string(), request.array(lambda: (request.int32(), request.bytes_())))
        )
    except MalformedRequestError:
        pass
