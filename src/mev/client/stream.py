"""The stream: a connection that reconnects, and its subscriptions."""

import asyncio
import logging
import random
import ssl as ssl_module
from collections.abc import Callable, Iterable
from itertools import count
from types import TracebackType
from typing import Any

from mev.client.connection import ConnectionSettings, StreamConnection, TryAgainError, stream_url
from mev.client.cursor import Cursor, Start, wire_start
from mev.client.errors import NotAServerError, StreamError, UnreachableError
from mev.client.subscription import Subscription
from mev.client.subscription_state import (
    Backlog,
    Message,
    OnSlow,
    SubscriptionOptions,
    SubscriptionState,
)
from mev.core.errors import MevError, UnavailableError
from mev.core.tasks import cancel
from mev.wire.pb.stream_pb2 import Frame

_log = logging.getLogger("mev.client")
_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
_LONGEST_RETRY_AFTER_S = 300.0  # upper limit of the server's retry_after_s


class Stream:
    """Live events of a control plane at `url`, which may be the address of its API.

    `api_key` is an API key or an access token, or a function that returns one; the function is
    called in a thread before each connection. Entering the stream connects, and fails after
    `connect_timeout_s`; later connections are replaced without a time limit.

    `buffer_bytes` limits the data that waits for the user, over all subscriptions: above it the
    socket is not read. Subscriptions of one stream therefore wait for each other; use a separate
    stream for a slow subscription.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | Callable[[], str],
        ssl: ssl_module.SSLContext | None = None,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 20.0,
        buffer_bytes: int = 4 << 20,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self._credential = api_key
        self._settings = ConnectionSettings(
            url=stream_url(url),
            ssl=ssl,
            open_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_message_bytes=max_message_bytes,
            renewable=callable(api_key),
        )
        self._backlog = Backlog(buffer_bytes)
        self._subscriptions: dict[str, SubscriptionState] = {}
        self._ids = count(1)
        self._connection: StreamConnection | None = None
        self._connected_before = False
        self._failures = 0
        self._end: MevError | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self.problem: str | None = None  # why there is no connection now

    async def __aenter__(self) -> "Stream":
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ran)
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                await self._opened.wait()
        except TimeoutError:
            await self.close()
            raise UnreachableError(
                f"{self.problem or f'{self._settings.url} does not answer'}; is the system "
                "running there?"
            ) from None
        except BaseException:
            await self.close()
            raise
        if self._end is not None:
            raise self._end
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Return whether the stream is connected."""
        return self._connection is not None

    def subscribe(
        self,
        topics: Iterable[str],
        *,
        filter: Iterable[str] = (),  # noqa: A002 - the protocol's name
        from_: Start = "live",
        on_slow: OnSlow = "drop_oldest",
        max_rate: int | None = None,
        snapshot: bool = False,
    ) -> Subscription:
        """Subscribe to event types or patterns of them, such as `agent_*`.

        Events fulfil all conditions of `filter`. `from_` is `"live"`, `"earliest"`, an aware
        `datetime`, a :class:`Slot`, a :class:`Resume` or a :class:`Cursor`. When the reader is
        slower than the events, `on_slow` drops the oldest, keeps the newest of each key, or makes
        everything wait; `max_rate` is in events per second. With `snapshot`, batches with the
        newest event of each key are sent first, then live events.
        """
        wire_start(from_)  # fails here for an invalid start
        if snapshot and from_ != "live":
            raise ValueError("a snapshot is of now; leave from_ or snapshot out")
        options = SubscriptionOptions(
            topics=_strings(topics, "topics"),
            filter=_strings(filter, "filter"),
            on_slow=on_slow,
            max_rate=max_rate,
        )
        state = SubscriptionState(
            f"s{next(self._ids)}", options, from_, self._backlog, snapshot=snapshot
        )
        if self._closed or self._task is None:
            state.end(
                self._end
                or StreamError("the stream is not open; use it inside `async with Stream(...)`")
            )
        else:
            self._subscriptions[state.id] = state
            self._send_request(state)
        return Subscription(state, self._backlog, self._send_request, self._send_unsubscribe)

    async def close(self) -> None:
        """Close the connection and end the subscriptions; received batches can still be read."""
        self._closed = True
        if self._task is not None:
            await cancel(self._task)
        self._finish(self._end)

    def _send_request(self, state: SubscriptionState) -> None:
        """Send the pending request of a subscription, or leave it to the next connection."""
        if self._connection is not None and (message := state.request()) is not None:
            self._connection.send(message)

    def _send_unsubscribe(self, state: SubscriptionState) -> None:
        if self._connection is not None:
            self._connection.send({"op": "unsubscribe", "id": state.id})
        else:
            state.disconnected()

    async def _run(self) -> None:
        while True:
            try:
                await self._connect()
            except TryAgainError as interruption:
                self.problem = interruption.reason
                pause = self._pause(interruption.retry_after_s)
                _log.warning("%s; next attempt in %.1f s", interruption.reason, pause)
                await asyncio.sleep(pause)

    def _ran(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, MevError):
            _log.error("the stream ended", exc_info=error)
            error = StreamError(f"the stream ended with an error of its own: {error!r}")
        self._finish(error)

    async def _connect(self) -> None:
        try:
            credential = (
                await asyncio.to_thread(self._credential)
                if callable(self._credential)
                else self._credential
            )
            connection = await StreamConnection.open(self._settings, credential)
        except UnavailableError as error:
            raise TryAgainError(error.detail) from None
        except NotAServerError as error:
            if self._connected_before:  # a proxy may answer while the server is down
                raise TryAgainError(error.detail) from None
            raise
        if self.problem:
            _log.warning("connected to %s again", self._settings.url)
        self._connection, self._connected_before, self.problem = connection, True, None
        self._opened.set()
        since = asyncio.get_running_loop().time()
        try:
            for state in self._subscriptions.values():
                self._send_request(state)
            await self._serve(connection)
        finally:
            if asyncio.get_running_loop().time() - since > _LONGEST_PAUSE_S:
                self._failures = 0
            self._connection = None
            for state in list(self._subscriptions.values()):
                state.disconnected()
            self._forget_ended()
            await connection.close()

    async def _serve(self, connection: StreamConnection) -> None:
        closing: Message = {}
        while True:
            await self._backlog.room()
            try:
                message, size = await connection.receive()
            except TryAgainError as error:
                raise TryAgainError(
                    closing.get("detail") or error.reason,
                    float(closing.get("retry_after_s") or 0),
                ) from None
            if isinstance(message, Frame):
                self._take(message, size)
            elif message["op"] == "closing":
                closing = message
                self._take_closing(message)
            else:
                self._answer(message)

    def _take(self, frame: Frame, size: int) -> None:
        self._failures = 0
        # A frame without a name belongs to the oldest active subscription: the only one when it was
        # sent.
        state = (
            self._subscriptions.get(frame.subscription)
            if frame.subscription
            else next((state for state in self._subscriptions.values() if state.active), None)
        )
        if state is not None and not state.ended:
            state.take(frame, size)

    def _take_closing(self, message: Message) -> None:
        for subscription_id, positions in message.get("cursors", {}).items():
            if state := self._subscriptions.get(subscription_id):
                state.take_final_cursor(Cursor.of(positions, message.get("log")))

    def _answer(self, message: dict[str, Any]) -> None:
        state = self._subscriptions.get(message.get("id") or "")
        if state is None:
            if message["op"] == "error" and not message.get("id"):
                _log.warning("%s", message.get("detail"))  # the reason for the close that follows
            return
        again_s = state.answer(message)
        if again_s:
            again_s *= random.uniform(1, 2)  # noqa: S311 - not a secret
            _log.warning("%s; asking again in %.1f s", message.get("detail"), again_s)
        if again_s is not None:
            asyncio.get_running_loop().call_later(again_s, self._send_request, state)
        self._forget_ended()

    def _pause(self, retry_after_s: float) -> float:
        """Return how long to wait, with jitter: clients must not reconnect all at once."""
        longest = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** min(self._failures, 10))
        self._failures += 1
        return min(retry_after_s, _LONGEST_RETRY_AFTER_S) + random.uniform(0, longest)  # noqa: S311

    def _forget_ended(self) -> None:
        for state in [state for state in self._subscriptions.values() if state.ended]:
            del self._subscriptions[state.id]

    def _finish(self, error: MevError | None) -> None:
        self._closed, self._end = True, error
        for state in self._subscriptions.values():
            state.end(error)
        self._subscriptions.clear()
        self._opened.set()


def _strings(values: Iterable[str], name: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"{name} is a list of strings, for instance [{values!r}]")
    return tuple(values)
