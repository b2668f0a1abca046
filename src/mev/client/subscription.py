"""The subscription as its user sees it: an asynchronous iterator of batches."""

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Any, Literal

from mev.client.batch import Batch
from mev.client.cursor import Cursor
from mev.client.subscription_state import Backlog, OnSlow, SubscriptionState


class _Unset(Enum):
    UNSET = "unset"


class Subscription:
    """Batches of events; made by :meth:`mev.client.Stream.subscribe`.

    Iteration continues over reconnects. It ends with :meth:`unsubscribe` or when the stream is
    closed, and raises an error that the server returned as final. As a context manager it
    unsubscribes at the end.
    """

    def __init__(
        self,
        state: SubscriptionState,
        backlog: Backlog,
        send_request: Callable[[SubscriptionState], None],
        send_unsubscribe: Callable[[SubscriptionState], None],
    ) -> None:
        self._state = state
        self._backlog = backlog
        self._send_request = send_request
        self._send_unsubscribe = send_unsubscribe
        self._updating = asyncio.Lock()

    @property
    def id(self) -> str:
        """Id of the subscription on the connection."""
        return self._state.id

    @property
    def topics(self) -> tuple[str, ...]:
        """Event types, with patterns expanded; empty before the server has confirmed."""
        return self._state.topics

    @property
    def cursor(self) -> Cursor:
        """Cursor after the last batch read.

        Use it as `from_` to continue without loss or repetition.
        """
        return self._state.given

    @property
    def resume(self) -> str:
        """The same position as the server's token, for `from_=Resume(token)`.

        It is empty before the server has confirmed the subscription.
        """
        return self._state.token

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Batch:
        batch = await self._state.next()
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def __aenter__(self) -> "Subscription":
        await self.started()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.unsubscribe()

    async def started(self) -> None:
        """Wait until the server has confirmed the subscription.

        All events from :attr:`cursor` will arrive.

        :raises RefusedError: when the server refuses it.
        """
        with self._backlog.answer_awaited():
            await asyncio.shield(self._state.started)

    async def update(
        self,
        *,
        topics: Iterable[str] | None = None,
        filter: Iterable[str] | None = None,  # noqa: A002 - the protocol's name
        on_slow: OnSlow | None = None,
        max_rate: int | Literal[_Unset.UNSET] | None = _Unset.UNSET,
    ) -> None:
        """Change the subscription and wait until the change is active.

        Each event is delivered under either the old or the new options.

        :raises RefusedError: when the server refuses the change; the old options stay active.
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
                done = self._state.change(changes)
                self._send_request(self._state)
                await done

    async def unsubscribe(self) -> int:
        """End the subscription and return the number of unreported lost events.

        Received batches that were not read are discarded.
        """
        if self._state.ended:
            return 0
        with self._backlog.answer_awaited():
            left = self._state.leave()
            self._send_unsubscribe(self._state)
            return await asyncio.shield(left)
