"""Connections and authentication; each connection is served sequentially, as in Apache Kafka."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from mev.broker.groups import RESTRICTED_GROUPS, ConsumerGroups, GroupError
from mev.broker.log import PartitionLog
from mev.broker.scram import MECHANISM, AuthenticationError, Exchange, Verifier
from mev.broker.topics import Topics
from mev.broker.wire import ErrorCode, MalformedRequestError, RequestReader, ResponseWriter

LOG = logging.getLogger(__name__)
NODE_ID = 1
READ_BUFFER_BYTES = 512 << 10
"""Of each connection; asyncio keeps twice as much that is not read yet."""
_REQUEST_BYTES = 64 << 20
_RESTRICTED_REQUEST_BYTES = 256 << 10
_RESTRICTED_PRODUCE_BYTES = 2 << 20
_RESTRICTED_ITEMS = 1000
_ANSWER_BYTES = 16 << 20
_RESTRICTED_ANSWER_BYTES = 512 << 10
_STRANGER_REQUEST_BYTES = 4 << 10
_STRANGER_REQUESTS = 8
_AUTHENTICATION_S = 10.0
_LOG_PAUSE_S = 10.0
_PRODUCE, _API_VERSIONS, _SASL_HANDSHAKE, _SASL_AUTHENTICATE = 0, 18, 17, 36
_FOR_STRANGERS = frozenset({_API_VERSIONS, _SASL_HANDSHAKE, _SASL_AUTHENTICATE})


class ConnectionLimitError(Exception):
    """A user has as many connections as it may; the connection is closed."""


class Api(NamedTuple):
    """Supported versions and handler of a request type.

    A handler may return None for no response.
    """

    least: int
    most: int
    answer: "Callable[[Broker, RequestReader], ResponseWriter | Awaitable[ResponseWriter] | None]"


class Broker:
    """Serves `topics` with the handlers `apis` to the users of `verifiers`.

    `read_only` maps a user to the topics that it may not write. A user with such topics is
    restricted: it may not create topics, nor join the protected group or commit for it.
    Restricted users together have at most half of the `connections`; the rest is reserved for the
    control plane.
    """

    def __init__(
        self,
        topics: Topics,
        apis: Mapping[int, Api],
        verifiers: Mapping[str, Verifier],
        *,
        host: str,
        port: int,
        connections: int,
        read_only: Mapping[str, frozenset[str]],
    ) -> None:
        self.topics = topics
        self.apis = apis
        self.verifiers = verifiers
        self.read_only = read_only
        self.host = host
        self.port = port
        self.groups = ConsumerGroups()
        self._most_connections = connections
        self._anonymous_clients: dict[_Connection, None] = {}
        self._restricted: set[_Connection] = set()
        self._connections = 0
        self._waiting: defaultdict[PartitionLog, set[asyncio.Future[None]]] = defaultdict(set)
        self._restricted_turn = asyncio.Lock()
        self._next_producer_id = time.time_ns() // 1000 * 2
        self._told: dict[str, tuple[float, int]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        connection = _Connection(self, reader, writer)
        self._connections += 1
        self._anonymous_clients[connection] = None
        try:
            # Above the limit, the oldest unauthenticated connection is closed.
            if self._connections > self._most_connections:
                oldest = next(iter(self._anonymous_clients))
                del self._anonymous_clients[oldest]
                oldest.close()
            await connection.run()
        except (
            MalformedRequestError,
            ConnectionLimitError,
            ConnectionError,
            TimeoutError,
            asyncio.IncompleteReadError,
        ) as error:
            LOG.debug("a connection ended: %r", error)
        finally:
            self._connections -= 1
            self._anonymous_clients.pop(connection, None)
            self._restricted.discard(connection)
            connection.close()

    def authenticated(self, connection: "_Connection", user: str) -> None:
        """Register `connection` as authenticated by `user`.

        :raises ConnectionLimitError: when `user` is restricted and the limit of connections of
            restricted users is reached.
        """
        if self.is_restricted(user):
            if len(self._restricted) >= self._most_connections // 2:
                self.tell(
                    "kafka_connection_refused",
                    f"user {user!r} has {len(self._restricted)} connections",
                )
                raise ConnectionLimitError
            self._restricted.add(connection)
        self._anonymous_clients.pop(connection, None)

    def is_restricted(self, user: str) -> bool:
        """Say whether `user` may not make topics, nor act for the protected group."""
        return bool(self.read_only.get(user))

    def most_fetched(self, user: str) -> int:
        """Return the limit of the records in one answer, in bytes."""
        return _RESTRICTED_ANSWER_BYTES if self.is_restricted(user) else _ANSWER_BYTES

    @asynccontextmanager
    async def turn(self, user: str) -> AsyncIterator[None]:
        """Wait for the turn of `user`: restricted users share one, whatever their connections.

        Between two of their turns all other users are served.
        """
        if not self.is_restricted(user):
            yield
            return
        async with self._restricted_turn:
            await asyncio.sleep(0)
            yield

    def check_group(self, user: str, group: str) -> None:
        """Refuse what a user may not do for `group`.

        :raises GroupError: then.
        """
        if group == self.topics.protected_group and self.is_restricted(user):
            self.tell("group_refused", f"{group}: user {user!r} may not act for it")
            raise GroupError(ErrorCode.GROUP_AUTHORIZATION_FAILED)

    def check_new_commits(self, user: str, group: str) -> None:
        """Refuse commits of a restricted user for one more group than it may have.

        :raises GroupError: then.
        """
        offsets = self.topics.offsets
        if (
            self.is_restricted(user)
            and not offsets.has(group)
            and offsets.groups >= RESTRICTED_GROUPS
        ):
            self.tell("group_refused", f"{group}: user {user!r} commits for too many groups")
            raise GroupError(ErrorCode.GROUP_MAX_SIZE_REACHED)

    def producer_id(self, user: str) -> int:
        """Return a new producer id, unique also across restarts; see :func:`is_restricted_id`."""
        self._next_producer_id += 2
        return self._next_producer_id + self.is_restricted(user)

    def arrived(self, log: PartitionLog) -> None:
        """Wake the fetches that wait for `log`."""
        for waiting in self._waiting.pop(log, ()):
            _wake(waiting)

    async def arrival(self, logs: list[PartitionLog], timeout_s: float) -> None:
        """Wait until one of `logs` has a new batch, at most `timeout_s`."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        for log in logs:
            self._waiting[log].add(waiting)
        timer = loop.call_later(timeout_s, _wake, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            for log in logs:
                if (others := self._waiting.get(log)) is not None:
                    others.discard(waiting)
                    if not others:
                        del self._waiting[log]

    def tell(self, action: str, detail: object) -> None:
        """Log an event that clients may cause often, with a rate limit and a count."""
        at, count = self._told.get(action, (0.0, 0))
        if time.monotonic() - at < _LOG_PAUSE_S:
            self._told[action] = at, count + 1
            return
        self._told[action] = time.monotonic(), 0
        LOG.warning(
            "%s: %s%s", action, detail, f" ({count} more since the last time)" if count else ""
        )


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)


class _Connection:
    """One client; before authentication, only authentication requests are accepted."""

    def __init__(
        self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._broker = broker
        self._reader = reader
        self._writer = writer
        self._exchange: Exchange | None = None
        self._user = ""

    async def run(self) -> None:
        """Answer requests until the client disconnects."""
        async with asyncio.timeout(_AUTHENTICATION_S):
            for _ in range(_STRANGER_REQUESTS):
                await self._answer_one(_STRANGER_REQUEST_BYTES)
                if self._user:
                    break
            else:
                raise MalformedRequestError("too many requests before authentication")
        self._broker.authenticated(self, self._user)
        is_restricted = self._broker.is_restricted(self._user)
        most_bytes = _RESTRICTED_REQUEST_BYTES if is_restricted else _REQUEST_BYTES
        most_items = _RESTRICTED_ITEMS if is_restricted else None
        while True:
            await self._answer_one(most_bytes, most_items)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def _answer_one(self, most_bytes: int, most_items: int | None = None) -> None:
        data = await self._request(most_bytes)
        request = RequestReader(data, self._user, most_items=most_items)
        response = (
            self._answer_stranger(request)
            if request.key in _FOR_STRANGERS
            else await self._answer(request)
        )
        if response is not None:
            self._writer.write(response.framed(request.correlation_id))
            await self._writer.drain()
        # Requests that are in the buffer already are read without a pause: others get their turn.
        await asyncio.sleep(0)

    async def _request(self, most_bytes: int) -> bytes:
        """Read one request; only Produce may have more than `most_bytes`."""
        size = int.from_bytes(await self._reader.readexactly(4))
        if size <= most_bytes:
            return await self._reader.readexactly(size)
        key = await self._reader.readexactly(2)
        if not self._user or int.from_bytes(key) != _PRODUCE or size > _RESTRICTED_PRODUCE_BYTES:
            raise MalformedRequestError(f"a request of {size} bytes")
        return key + await self._reader.readexactly(size - len(key))

    async def _answer(self, request: RequestReader) -> ResponseWriter | None:
        api = self._broker.apis.get(request.key)
        if not self._user or api is None or not api.least <= request.version <= api.most:
            raise MalformedRequestError(
                f"request {request.key} of version {request.version} is not known, or not "
                "before authentication"
            )
        async with self._broker.turn(self._user):
            answer = api.answer(self._broker, request)
        return await answer if isinstance(answer, Awaitable) else answer

    def _answer_stranger(self, request: RequestReader) -> ResponseWriter:
        if request.key == _API_VERSIONS:
            return self._api_versions(request)
        if request.key == _SASL_HANDSHAKE and request.version == 1:
            return self._sasl_handshake(request)
        if request.key == _SASL_AUTHENTICATE and request.version in {0, 1}:
            return self._sasl_authenticate(request)
        raise MalformedRequestError(f"request {request.key} of version {request.version}")

    def _api_versions(self, request: RequestReader) -> ResponseWriter:
        # A newer client receives the versions with the error, and retries with a supported one.
        is_known = 0 <= request.version <= 2
        response = ResponseWriter().int16(
            ErrorCode.NONE if is_known else ErrorCode.UNSUPPORTED_VERSION
        )
        ranges = [(key, api.least, api.most) for key, api in self._broker.apis.items()]
        ranges += [(_SASL_HANDSHAKE, 1, 1), (_API_VERSIONS, 0, 2), (_SASL_AUTHENTICATE, 0, 1)]
        response.array(
            sorted(ranges), lambda item: response.int16(item[0]).int16(item[1]).int16(item[2])
        )
        return response.int32(0) if is_known and request.version else response

    def _sasl_handshake(self, request: RequestReader) -> ResponseWriter:
        is_known = request.string() == MECHANISM
        self._exchange = Exchange(self._broker.verifiers) if is_known else None
        response = ResponseWriter().int16(
            ErrorCode.NONE if is_known else ErrorCode.UNSUPPORTED_SASL_MECHANISM
        )
        return response.array([MECHANISM], response.string)

    def _sasl_authenticate(self, request: RequestReader) -> ResponseWriter:
        response = ResponseWriter()
        if self._exchange is None:
            raise MalformedRequestError("authentication without a mechanism")
        try:
            answer = self._exchange.answer(bytes(request.bytes_()))
        except AuthenticationError as error:
            self._broker.tell("kafka_authentication_failed", error)
            self._exchange = None
            response.int16(ErrorCode.SASL_AUTHENTICATION_FAILED).string(
                f"authentication failed: {error}"
            ).bytes_(b"")
        else:
            self._user = self._exchange.user
            response.int16(ErrorCode.NONE).string(None).bytes_(answer)
        return response.int64(0) if request.version > 0 else response
