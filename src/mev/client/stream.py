"""The stream: a connection that comes back, and the subscriptions that live on it."""

import asyncio
import logging
import random
import ssl as ssl_module
from collections.abc import Callable, Iterable
from itertools import count
from types import TracebackType
from typing import Any

from mev.client.connection import Connection, Settings, TryAgainError, stream_url
from mev.client.cursor import Cursor, Start, wire_start
from mev.client.errors import NotAServerError, StreamError, UnreachableError
from mev.client.feed import Backlog, Feed, Message, OnSlow, Terms
from mev.client.subscription import Subscription
from mev.core.errors import MevError, UnavailableError
from mev.wire.pb.stream_pb2 import Frame

_log = logging.getLogger("mev.client")
_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
_LONGEST_WISH_S = 300.0  # a server that asks for more is not taken at its word


class Stream:
    """Live events of a control plane at `url`, which may be the address of its API.

    `api_key` is an API key or an access token, or a function that returns one: it is called in a thread before each connection. Entering
    the stream connects, and fails after `connect_timeout_s`; from then on a connection that ends is replaced, for as long as it takes.

    What waits for the user is bounded by `buffer_bytes` over all subscriptions: above it the socket is not read. Subscriptions of one
    stream therefore wait for each other; one that may lag behind belongs on a stream of its own.
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
        self._settings = Settings(
            url=stream_url(url),
            ssl=ssl,
            open_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_message_bytes=max_message_bytes,
            renewable=callable(api_key),
        )
        self._backlog = Backlog(buffer_bytes)
        self._feeds: dict[str, Feed] = {}
        self._ids = count(1)
        self._connection: Connection | None = None
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
            raise UnreachableError(f"{self.problem or f'{self._settings.url} does not answer'}; is the system running there?") from None
        except BaseException:
            await self.close()
            raise
        if self._end is not None:
            raise self._end
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    def subscribe(
        self,
        topics: Iterable[str],
        *,
        filter: Iterable[str] = (),  # noqa: A002 - as the protocol calls it
        from_: Start = "live",
        on_slow: OnSlow = "drop_oldest",
        max_rate: int | None = None,
    ) -> Subscription:
        """Subscribe to event types or patterns of them, such as `agent_*`.

        All conditions of `filter` hold for what is given. `from_` is `"live"`, `"earliest"`, an aware `datetime`, a :class:`Slot` or a
        :class:`Cursor`. When the reader is slower than the events, `on_slow` drops the oldest, keeps the newest of each key, or makes
        everything wait; `max_rate` is in events a second.
        """
        wire_start(from_)  # what cannot be said is refused here
        terms = Terms(topics=_strings(topics, "topics"), filter=_strings(filter, "filter"), on_slow=on_slow, max_rate=max_rate)
        feed = Feed(f"s{next(self._ids)}", terms, from_, self._backlog)
        if self._closed or self._task is None:
            feed.end(self._end or StreamError("the stream is not open; use it inside `async with Stream(...)`"))
        else:
            self._feeds[feed.id] = feed
            self._ask(feed)
        return Subscription(feed, self._backlog, self._ask, self._dismiss)

    async def close(self) -> None:
        """Close the connection; what was received can still be taken, then the subscriptions end."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._finish(self._end)

    def _ask(self, feed: Feed) -> None:
        """Send what is due for a feed; without a connection that is done with the next one."""
        if self._connection is not None and (message := feed.request()) is not None:
            self._connection.send(message)

    def _dismiss(self, feed: Feed) -> None:
        if self._connection is not None:
            self._connection.send({"op": "unsubscribe", "id": feed.id})
        else:
            feed.disconnected()

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
            credential = await asyncio.to_thread(self._credential) if callable(self._credential) else self._credential
            connection = await Connection.open(self._settings, credential)
        except UnavailableError as error:
            raise TryAgainError(error.detail) from None
        except NotAServerError as error:
            if self._connected_before:  # it was one: something in between answers while it is away
                raise TryAgainError(error.detail) from None
            raise
        if self.problem:
            _log.warning("connected to %s again", self._settings.url)
        self._connection, self._connected_before, self.problem = connection, True, None
        self._opened.set()
        since = asyncio.get_running_loop().time()
        try:
            for feed in self._feeds.values():
                self._ask(feed)
            await self._serve(connection)
        finally:
            if asyncio.get_running_loop().time() - since > _LONGEST_PAUSE_S:
                self._failures = 0
            self._connection = None
            for feed in list(self._feeds.values()):
                feed.disconnected()
            self._forget_ended()
            await connection.close()

    async def _serve(self, connection: Connection) -> None:
        farewell: Message = {}
        while True:
            await self._backlog.room()
            try:
                message, size = await connection.receive()
            except TryAgainError as error:
                raise TryAgainError(farewell.get("detail") or error.reason, float(farewell.get("retry_after_s") or 0)) from None
            if isinstance(message, Frame):
                self._take(message, size)
            elif message["op"] == "closing":
                farewell = message
                self._farewell(message)
            else:
                self._answer(message)

    def _take(self, frame: Frame, size: int) -> None:
        self._failures = 0
        if frame.subscription:
            feed = self._feeds.get(frame.subscription)
        else:
            # A frame without a name is of the only subscription there was when it was made: the oldest that is left.
            feed = next((feed for feed in self._feeds.values() if feed.active), None)
        if feed is not None and not feed.ended:
            feed.take(frame, size)

    def _farewell(self, message: Message) -> None:
        for feed_id, positions in message.get("cursors", {}).items():
            if feed := self._feeds.get(feed_id):
                feed.farewell(Cursor.of(positions, message.get("log")))

    def _answer(self, message: dict[str, Any]) -> None:
        feed = self._feeds.get(message.get("id") or "")
        if feed is None:
            if message["op"] == "error" and not message.get("id"):
                _log.warning("%s", message.get("detail"))  # why the connection is closed next
            return
        again_s = feed.answer(message)
        if again_s:
            again_s *= random.uniform(1, 2)  # noqa: S311 - no secret
            _log.warning("%s; asking again in %.1f s", message.get("detail"), again_s)
        if again_s is not None:
            asyncio.get_running_loop().call_later(again_s, self._ask, feed)
        self._forget_ended()

    def _pause(self, wish_s: float) -> float:
        """Return how long to wait: at random, so that the clients of a server that comes back do not come all at once."""
        longest = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** min(self._failures, 10))
        self._failures += 1
        return min(wish_s, _LONGEST_WISH_S) + random.uniform(0, longest)  # noqa: S311 - no secret

    def _forget_ended(self) -> None:
        for feed_id in [feed_id for feed_id, feed in self._feeds.items() if feed.ended]:
            del self._feeds[feed_id]

    def _finish(self, error: MevError | None) -> None:
        self._closed, self._end = True, error
        for feed in self._feeds.values():
            feed.end(error)
        self._feeds.clear()
        self._opened.set()


def _strings(values: Iterable[str], name: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"{name} is a list of strings, for instance [{values!r}]")
    return tuple(values)
