"""Validation of record batches: what no consumer could read is not stored, and not sent."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.broker import batch as batches
from mev.broker.log import LogError, PartitionLog
from mev.broker.wire import ErrorCode
from mev.core import native
from tests.unit.broker.client import (
    HEADER,
    TOPIC,
    batch,
    joined,
    produced,
    producer_id,
    record,
    varint,
)
from tests.unit.broker.test_log import read_all

HEADERS = b"\0\0\0" + varint(-1) + varint(1) + b"v" + varint(1) + varint(1) + b"h" + varint(-1)
UNREADABLE = {
    "checksum": batch(wrong_checksum=1),
    "garbage": batch(content=b"\xff" * 40),
    "fewer records": batch(2, content=record(0)),
    "more records": batch(1, content=record(0) + record(1)),
    "two billion records": batch(2_147_483_647, content=b"\x02" * 40),
    "offsets": batch(2, content=record(0) + record(0)),
    "negative length": batch(content=varint(-5) + record(0)[1:]),
    "long value": batch(content=b"\x0e\0\0\0\x01\x7ex\0"),
    "short record": batch(content=b"\x0c" + record(0)[1:]),
    "headers": batch(content=record(0)[:-1] + varint(1 << 30)),
    "codec": batch(attributes=7),
    "timestamp type": batch(attributes=8),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_batch_that_no_consumer_can_read_is_refused(tmp_path: Path, data: memoryview) -> None:
    log = PartitionLog(tmp_path, max_bytes=1 << 20)
    with pytest.raises(LogError) as caught:
        log.append(data)
    assert (caught.value.code, log.end) == (ErrorCode.CORRUPT_MESSAGE, 0)
    assert log.append(batch(content=varint(len(HEADERS)) + HEADERS)) == 0


@given(st.integers(0, 1000), st.integers(1, 255))
def test_batch_with_any_changed_byte_is_refused_or_reads_the_same(at: int, change: int) -> None:
    data = bytearray(batch(3, payload=b"value"))
    at = 12 + at % (len(data) - 12)
    data[at] ^= change
    header = batches.parse(bytes(data), 0)
    is_refused = header is None or bool(batches.problem(header, bytes(data)))
    assert is_refused or at < 16, "only the leader epoch may change: the broker writes its own"


@pytest.mark.skipif(not native.is_used(), reason="compares the native module with Python code")
@given(
    st.lists(st.binary(max_size=20), max_size=4),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=2),
    st.binary(max_size=3),
    st.integers(0, 5),
)
def test_native_and_python_validation_agree(
    values: list[bytes], changes: list[tuple[int, int]], rest: bytes, count: int
) -> None:
    from mev._native import are_complete_records

    data = bytearray(b"".join(record(*one) for one in enumerate(values)) + rest)
    for at, byte in changes:
        if data:
            data[at % len(data)] = byte
    for number in {count, len(values)}:
        expected = batches.are_complete_records(bytes(data), 0, number)
        assert are_complete_records(bytes(data), 0, number) == expected
        assert expected or changes or rest or number != len(values)


def test_damaged_batches_in_files_are_replaced_by_empty_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = PartitionLog(tmp_path, max_bytes=64 << 10)
    payload = b"x" * 1000
    offsets = [log.append(batch(2, payload=payload)) for _ in range(12)]
    log.close()
    oldest, *_, newest = sorted(tmp_path.glob("*.log"))
    assert oldest != newest
    for path in (oldest, newest):
        content = bytearray(path.read_bytes())
        content[HEADER.size + 10] ^= 1  # in its first batch
        path.write_bytes(content)
    for _ in range(2):
        again = PartitionLog(tmp_path, max_bytes=64 << 10)
        assert read_all(again) == offsets, "empty batches keep the offsets"
        data = again.read(0, 100)
        header = batches.parse(data, 0)
        assert header is not None
        assert (header.records, header.next_offset, len(data)) == (0, 2, HEADER.size)
        assert batches.problem(header, data) == ""
        again.close()
    assert caplog.text.count("batch_damaged") == 2, "they are replaced in the files too"


async def test_agent_cannot_end_the_sequence_of_another_users_producer(port: int) -> None:
    agent, ours = await joined(port, "agent"), await joined(port, "mev")
    their_id, our_id = await producer_id(agent), await producer_id(ours)
    assert await produced(ours, TOPIC, batch(producer_id=our_id)) == ErrorCode.NONE
    forged = batch(producer_id=our_id, sequence=1)
    assert await produced(agent, TOPIC, forged) == ErrorCode.UNKNOWN_PRODUCER_ID
    for sequence in range(1, 3):
        following = batch(producer_id=our_id, sequence=sequence, payload=b"ours")
        assert await produced(ours, TOPIC, following) == ErrorCode.NONE
    for sequence in range(2):
        own = batch(producer_id=their_id, sequence=sequence)
        assert await produced(agent, TOPIC, own) == ErrorCode.NONE
    for _, writer in (agent, ours):
        writer.close()


async def test_agents_batches_are_readable_and_not_compressed(port: int) -> None:
    agent, ours = await joined(port, "agent"), await joined(port, "mev")
    gzip = batch(content=b"not gzip", attributes=1)
    assert await produced(agent, TOPIC, UNREADABLE["garbage"]) == ErrorCode.CORRUPT_MESSAGE
    assert await produced(agent, TOPIC, gzip) == ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
    assert await produced(agent, TOPIC, batch()) == ErrorCode.NONE
    assert await produced(ours, TOPIC, gzip) == ErrorCode.NONE
    for _, writer in (agent, ours):
        writer.close()
