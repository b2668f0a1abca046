"""What the user holds of one subscription: an asynchronous iterator of batches."""

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Any, Literal

from mev.client.batch import Batch
from mev.client.cursor import Cursor
from mev.client.feed import Backlog, Feed, OnSlow


class _Unset(Enum):
    UNSET = "unset"


class Subscription:
    """Batches of events; made by :meth:`mev.client.Stream.subscribe`.

    Iteration goes on over any number of connections. It ends with :meth:`unsubscribe` or when the stream is closed, and raises what the
    server refused for good. As a context manager it unsubscribes at the end.
    """

    def __init__(self, feed: Feed, backlog: Backlog, ask: Callable[[Feed], None], dismiss: Callable[[Feed], None]) -> None:
        self._feed = feed
        self._backlog = backlog
        self._ask = ask
        self._dismiss = dismiss
        self._updating = asyncio.Lock()

    @property
    def id(self) -> str:
        """Its name in the connection."""
        return self._feed.id

    @property
    def topics(self) -> tuple[str, ...]:
        """The event types it is of, patterns expanded; empty before the server confirmed it."""
        return self._feed.topics

    @property
    def cursor(self) -> Cursor:
        """Where the user is: after the last batch that was taken. Give it to `from_`, and nothing is missing or repeated."""
        return self._feed.given

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Batch:
        batch = await self._feed.next()
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def __aenter__(self) -> "Subscription":
        await self.started()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.unsubscribe()

    async def started(self) -> None:
        """Wait until the server confirmed it: every event from :attr:`cursor` on will come.

        :raises RefusedError: when the server refuses it.
        """
        with self._backlog.answer_awaited():
            await asyncio.shield(self._feed.started)

    async def update(
        self,
        *,
        topics: Iterable[str] | None = None,
        filter: Iterable[str] | None = None,  # noqa: A002 - as the protocol calls it
        on_slow: OnSlow | None = None,
        max_rate: int | Literal[_Unset.UNSET] | None = _Unset.UNSET,
    ) -> None:
        """Change what is given, and wait until it is so: each event goes under the old terms or under the new ones.

        :raises RefusedError: when the server refuses; the old terms stay.
        """
        changes: dict[str, Any] = {}
        if topics is not None:
            changes["topics"] = tuple(topics)
        if filter is not None:
            changes["filter"] = tuple(filter)
        if on_slow is not None:
            changes["on_slow"] = on_slow
        if max_rate is not _Unset.UNSET:
            changes["max_rate"] = max_rate
        async with self._updating:
            await self.started()
            with self._backlog.answer_awaited():
                done = self._feed.change(changes)
                self._ask(self._feed)
                await done

    async def unsubscribe(self) -> int:
        """End it; return how many events were lost and not told of. What was received and not taken is discarded."""
        if self._feed.ended:
            return 0
        with self._backlog.answer_awaited():
            left = self._feed.leave()
            self._dismiss(self._feed)
            return await asyncio.shield(left)
