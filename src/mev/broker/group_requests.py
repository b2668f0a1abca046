"""Handlers of consumer group requests: membership and committed offsets."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from mev.broker.groups import GroupError
from mev.broker.server import NODE_ID, Broker
from mev.broker.wire import ErrorCode, RequestReader, ResponseWriter

_METADATA_BYTES = 4 << 10


def find_coordinator(broker: Broker, request: RequestReader) -> ResponseWriter:
    request.string()
    response = ResponseWriter()
    if request.version >= 1:
        response.int32(0)
    response.int16(ErrorCode.NONE)
    if request.version >= 1:
        response.string(None)
    return response.int32(NODE_ID).string(broker.host).int32(broker.port)


async def join_group(broker: Broker, request: RequestReader) -> ResponseWriter:
    group, session_ms, rebalance_ms, member = (
        request.string(),
        request.int32(),
        request.int32(),
        request.string(),
    )
    protocol_type = request.string()
    protocols = dict(request.array(lambda: (request.string(), bytes(request.bytes_()))))
    response = ResponseWriter()
    if request.version >= 2:
        response.int32(0)
    try:
        broker.check_group(request.user, group)
        joined = await broker.groups.join(
            group,
            member,
            request.client_id,
            protocol_type,
            protocols,
            session_ms=session_ms,
            rebalance_ms=rebalance_ms,
            is_restricted=broker.is_restricted(request.user),
        )
    except GroupError as error:
        return response.int16(error.code).int32(-1).string("").string("").string(member).int32(0)
    response.int16(ErrorCode.NONE).int32(joined.generation).string(joined.protocol).string(
        joined.leader
    ).string(joined.member_id)
    return response.array(joined.members, lambda item: response.string(item[0]).bytes_(item[1]))


async def sync_group(broker: Broker, request: RequestReader) -> ResponseWriter:
    group, generation, member = request.string(), request.int32(), request.string()
    assignments = dict(request.array(lambda: (request.string(), bytes(request.bytes_()))))
    response = ResponseWriter()
    if request.version >= 1:
        response.int32(0)
    try:
        assignment = await broker.groups.sync(group, generation, member, assignments)
    except GroupError as error:
        return response.int16(error.code).bytes_(b"")
    return response.int16(ErrorCode.NONE).bytes_(assignment)


def heartbeat(broker: Broker, request: RequestReader) -> ResponseWriter:
    group, generation, member = request.string(), request.int32(), request.string()
    return _outcome(request, lambda: broker.groups.heartbeat(group, generation, member))


def leave_group(broker: Broker, request: RequestReader) -> ResponseWriter:
    group, member = request.string(), request.string()
    return _outcome(request, lambda: broker.groups.leave(group, member))


def offset_commit(broker: Broker, request: RequestReader) -> ResponseWriter:
    group, generation, member = request.string(), request.int32(), request.string()
    request.int64()
    topics = request.topics(lambda _, number: (number, request.int64(), request.nullable_string()))
    error = ErrorCode.NONE
    try:
        broker.check_group(request.user, group)
        broker.groups.check_commit(group, generation, member)
        known = {
            (topic, number): (offset, text)
            for topic, each in topics
            for number, offset, text in each
        }
        _check_metadata(text for _, text in known.values())
        broker.check_new_commits(request.user, group)
        broker.topics.offsets.put(
            group, {at: committed for at, committed in known.items() if broker.topics.log(*at)}
        )
    except GroupError as failure:
        error = failure.code
    except OSError as failure:
        broker.tell("commit_refused", f"offsets of {group} are not kept: {failure}")
        error = ErrorCode.KAFKA_STORAGE_ERROR
    response = ResponseWriter()
    if request.version >= 3:
        response.int32(0)

    def partition(topic: str, number: int) -> None:
        is_known = broker.topics.log(topic, number) is not None
        response.int32(number).int16(error if is_known else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)

    return response.array(
        topics,
        lambda item: response.string(item[0]).array(
            item[1], lambda each: partition(item[0], each[0])
        ),
    )


def offset_fetch(broker: Broker, request: RequestReader) -> ResponseWriter:
    group = request.string()
    asked = request.nullable_topics(lambda _, number: number)
    if asked is None:
        by_topic: defaultdict[str, list[int]] = defaultdict(list)
        for topic, number in broker.topics.offsets.of_group(group):
            by_topic[topic].append(number)
        asked = list(by_topic.items())
    response = ResponseWriter()
    if request.version >= 3:
        response.int32(0)

    def partition(topic: str, number: int) -> None:
        offset, text = broker.topics.offsets.get(group, topic, number) or (-1, None)
        response.int32(number).int64(offset).string(text).int16(ErrorCode.NONE)

    response.array(
        asked,
        lambda item: response.string(item[0]).array(
            item[1], lambda number: partition(item[0], number)
        ),
    )
    return response.int16(ErrorCode.NONE) if request.version >= 2 else response


def _check_metadata(texts: Iterable[str | None]) -> None:
    if any(len((text or "").encode()) > _METADATA_BYTES for text in texts):
        raise GroupError(ErrorCode.OFFSET_METADATA_TOO_LARGE)


def _outcome(request: RequestReader, act: Callable[[], None]) -> ResponseWriter:
    response = ResponseWriter()
    if request.version >= 1:
        response.int32(0)
    try:
        act()
    except GroupError as error:
        return response.int16(error.code)
    return response.int16(ErrorCode.NONE)
