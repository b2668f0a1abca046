"""Handlers of topic requests: metadata and creation."""

from mev.broker.server import NODE_ID, Broker
from mev.broker.topics import DEFAULT_PARTITIONS, TopicError
from mev.broker.wire import ErrorCode, RequestReader, ResponseWriter


def metadata(broker: Broker, request: RequestReader) -> ResponseWriter:
    names = request.nullable_array(request.string)
    may_create = (request.boolean() if request.version >= 4 else True) and not broker.is_restricted(
        request.user
    )
    found = [
        (_found(broker, name, may_create=may_create), name)
        for name in (broker.topics.names() if names is None else dict.fromkeys(names))
    ]
    response = ResponseWriter()
    if request.version >= 3:
        response.int32(0)
    response.array(
        [NODE_ID],
        lambda node: response.int32(node).string(broker.host).int32(broker.port).string(None),
    )
    if request.version >= 2:
        response.string(broker.topics.cluster_id)
    response.int32(NODE_ID)

    def partition(number: int) -> None:
        response.int16(ErrorCode.NONE).int32(number).int32(NODE_ID)
        response.array([NODE_ID], response.int32).array([NODE_ID], response.int32)
        if request.version >= 5:
            response.int32(0)

    def topic(item: tuple[ErrorCode, str]) -> None:
        error, name = item
        response.int16(error).string(name).int8(0)
        response.array(range(len(broker.topics.partitions(name))), partition)

    return response.array(found, topic)


def _found(broker: Broker, name: str, *, may_create: bool) -> ErrorCode:
    if broker.topics.partitions(name):
        return ErrorCode.NONE
    if not may_create:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    try:
        broker.topics.create(name)
    except TopicError as error:
        return error.code
    return ErrorCode.NONE


def create_topics(broker: Broker, request: RequestReader) -> ResponseWriter:
    def wanted() -> tuple[str, int, dict[str, str | None]]:
        name, partitions, _replicas = request.string(), request.int32(), request.int16()
        placed = request.array(lambda: (request.int32(), request.array(request.int32)))
        settings = dict(request.array(lambda: (request.string(), request.nullable_string())))
        return name, len(placed) or partitions, settings

    topics = request.array(wanted)
    request.int32()
    is_trial = request.boolean()
    response = ResponseWriter()
    if request.version >= 2:
        response.int32(0)

    def create(item: tuple[str, int, dict[str, str | None]]) -> None:
        name, partitions, settings = item
        error, detail = ErrorCode.NONE, None
        try:
            _check_may_create(broker, request.user)
            if not is_trial:
                is_compacted = settings.get("cleanup.policy") == "compact"
                broker.topics.create(
                    name,
                    DEFAULT_PARTITIONS if partitions == -1 else partitions,
                    is_compacted=is_compacted,
                )
        except TopicError as failure:
            error, detail = failure.code, str(failure)
        response.string(name).int16(error).string(detail)

    return response.array(topics, create)


def _check_may_create(broker: Broker, user: str) -> None:
    if broker.is_restricted(user):
        raise TopicError(ErrorCode.TOPIC_AUTHORIZATION_FAILED, f"user {user!r} may not make topics")
