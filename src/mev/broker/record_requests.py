"""Handlers of record requests: produce, fetch and list offsets."""

import asyncio
import time
from dataclasses import dataclass

from mev.broker.log import LogError, PartitionLog
from mev.broker.server import Broker
from mev.broker.wire import ErrorCode, RequestReader, ResponseWriter

_LATEST, _EARLIEST = -1, -2
_LONGEST_WAIT_S = 60.0
_LEAST_BYTES = 64 << 10
"""The most that a fetch waits for: each new batch reads again what is there."""


@dataclass(slots=True)
class _Wanted:
    """The requested range of one partition in a fetch."""

    topic: str
    partition: int
    offset: int
    max_bytes: int


def produce(broker: Broker, request: RequestReader) -> ResponseWriter | None:
    transactional_id, acknowledgements, _timeout_ms = (
        request.nullable_string(),
        request.int16(),
        request.int32(),
    )
    topics = request.topics(lambda _, number: (number, request.bytes_()))
    response = ResponseWriter()

    def topic(item: tuple[str, list[tuple[int, memoryview]]]) -> None:
        name, partitions = item
        response.string(name).array(partitions, lambda each: partition(name, *each))

    def partition(name: str, number: int, batch: memoryview) -> None:
        error, offset, start = ErrorCode.NONE, -1, -1
        log = broker.topics.log(name, number)
        if transactional_id is not None:
            error = ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        elif name in broker.read_only.get(request.user, ()):
            error = ErrorCode.TOPIC_AUTHORIZATION_FAILED
            broker.tell("write_refused", f"{name}: user {request.user!r} may only read it")
        elif log is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        else:
            try:
                offset = log.append(batch, is_restricted=broker.is_restricted(request.user))
                start = log.start
            except LogError as failure:
                error = failure.code
                broker.tell("append_refused", f"{name}[{number}]: {failure}")
            else:
                broker.arrived(log)
        response.int32(number).int16(error).int64(offset).int64(-1)
        if request.version >= 5:
            response.int64(start)

    response.array(topics, topic).int32(0)
    return response if acknowledgements else None


def init_producer_id(broker: Broker, request: RequestReader) -> ResponseWriter:
    if request.nullable_string() is not None:
        return (
            ResponseWriter()
            .int32(0)
            .int16(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
            .int64(-1)
            .int16(-1)
        )
    return (
        ResponseWriter()
        .int32(0)
        .int16(ErrorCode.NONE)
        .int64(broker.producer_id(request.user))
        .int16(0)
    )


async def fetch(broker: Broker, request: RequestReader) -> ResponseWriter:
    request.int32()
    wait_s, least_bytes, most_bytes = request.int32() / 1000, request.int32(), request.int32()
    request.int8()
    least_bytes = min(least_bytes, _LEAST_BYTES)

    def partition(topic: str, number: int) -> _Wanted:
        offset = request.int64()
        if request.version >= 5:
            request.int64()
        return _Wanted(topic, number, offset, request.int32())

    topics = request.topics(partition)
    deadline = time.monotonic() + min(wait_s, _LONGEST_WAIT_S)
    while True:
        async with broker.turn(request.user):
            response, size, has_failed = _fetched(
                broker, request, topics, min(most_bytes, broker.most_fetched(request.user))
            )
        left_s = deadline - time.monotonic()
        if size >= least_bytes or has_failed or left_s <= 0:
            return response
        logs = [
            broker.topics.log(each.topic, each.partition) for _, wanted in topics for each in wanted
        ]
        await broker.arrival([log for log in logs if log is not None], left_s)


def _fetched(
    broker: Broker, request: RequestReader, topics: list[tuple[str, list[_Wanted]]], most_bytes: int
) -> tuple[ResponseWriter, int, bool]:
    """Return the fetch response, the size of its records, and whether a partition failed."""
    response, size, has_failed = ResponseWriter().int32(0), 0, False

    def partition(wanted: _Wanted) -> None:
        nonlocal size, has_failed
        log = broker.topics.log(wanted.topic, wanted.partition)
        error, records = (
            ErrorCode.NONE if log is not None else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
            b"",
        )
        try:
            if log is not None and size < most_bytes:
                records = log.read(wanted.offset, min(wanted.max_bytes, most_bytes - size))
        except LogError as failure:
            error = failure.code
        has_failed = has_failed or error is not ErrorCode.NONE
        size += len(records)
        end, start = (log.end, log.start) if log is not None else (-1, -1)
        response.int32(wanted.partition).int16(error).int64(end).int64(end)
        if request.version >= 5:
            response.int64(start)
        response.int32(-1).bytes_(records)

    response.array(topics, lambda item: response.string(item[0]).array(item[1], partition))
    return response, size, has_failed


async def list_offsets(broker: Broker, request: RequestReader) -> ResponseWriter:
    request.int32()
    if request.version >= 2:
        request.int8()
    topics = request.topics(lambda _, number: (number, request.int64()))
    found: dict[tuple[str, int], tuple[ErrorCode, int, int]] = {}
    for topic, partitions in topics:
        for number, timestamp_ms in partitions:
            async with broker.turn(request.user):
                found[topic, number] = _offset(broker.topics.log(topic, number), timestamp_ms)
            await asyncio.sleep(0)  # a search by time takes long
    response = ResponseWriter()
    if request.version >= 2:
        response.int32(0)

    def partition(topic: str, number: int) -> None:
        error, time_ms, offset = found[topic, number]
        response.int32(number).int16(error).int64(time_ms).int64(offset)

    return response.array(
        topics,
        lambda item: response.string(item[0]).array(
            item[1], lambda each: partition(item[0], each[0])
        ),
    )


def _offset(log: PartitionLog | None, timestamp_ms: int) -> tuple[ErrorCode, int, int]:
    """Return error, timestamp and offset of the first batch since `timestamp_ms`."""
    if log is None:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, -1
    if timestamp_ms == _LATEST:
        return ErrorCode.NONE, -1, log.end
    if timestamp_ms == _EARLIEST:
        return ErrorCode.NONE, -1, log.start
    try:
        return ErrorCode.NONE, *log.offset_at(timestamp_ms)
    except LogError as failure:
        return failure.code, -1, -1
