"""Handlers of record requests: produce, fetch and list offsets."""

import time
from dataclasses import dataclass

from mev.broker.log import LogError
from mev.broker.server import Broker
from mev.broker.wire import ErrorCode, RequestReader, ResponseWriter

_LATEST, _EARLIEST = -1, -2
_LONGEST_WAIT_S = 60.0


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
    topics = request.array(
        lambda: (request.string(), request.array(lambda: (request.int32(), request.bytes_())))
    )
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
                offset = log.append(batch, may_compress=not broker.is_restricted(request.user))
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
    return ResponseWriter().int32(0).int16(ErrorCode.NONE).int64(broker.producer_id()).int16(0)


async def fetch(broker: Broker, request: RequestReader) -> ResponseWriter:
    request.int32()
    wait_s, least_bytes, most_bytes = request.int32() / 1000, request.int32(), request.int32()
    request.int8()

    def partition(topic: str) -> _Wanted:
        number, offset = request.int32(), request.int64()
        if request.version >= 5:
            request.int64()
        return _Wanted(topic, number, offset, request.int32())

    def topic() -> tuple[str, list[_Wanted]]:
        name = request.string()
        return name, request.array(lambda: partition(name))

    topics = request.array(topic)
    deadline = time.monotonic() + min(wait_s, _LONGEST_WAIT_S)
    while True:
        response, size, has_failed = _fetched(broker, request, topics, most_bytes)
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


def list_offsets(broker: Broker, request: RequestReader) -> ResponseWriter:
    request.int32()
    if request.version >= 2:
        request.int8()
    topics = request.array(
        lambda: (request.string(), request.array(lambda: (request.int32(), request.int64())))
    )
    response = ResponseWriter()
    if request.version >= 2:
        response.int32(0)

    def partition(topic: str, number: int, timestamp_ms: int) -> None:
        log = broker.topics.log(topic, number)
        if log is None:
            response.int32(number).int16(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION).int64(-1).int64(-1)
            return
        fixed = {_LATEST: (-1, log.end), _EARLIEST: (-1, log.start)}
        time_ms, offset = (
            fixed[timestamp_ms] if timestamp_ms in fixed else log.offset_at(timestamp_ms)
        )
        response.int32(number).int16(ErrorCode.NONE).int64(time_ms).int64(offset)

    return response.array(
        topics,
        lambda item: response.string(item[0]).array(
            item[1], lambda each: partition(item[0], *each)
        ),
    )
