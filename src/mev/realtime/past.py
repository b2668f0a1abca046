"""A bounded pool of readers of the past: so many subscriptions may catch up at once, each with a consumer and a thread of the pool."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mev.bus.batch import Batch
from mev.bus.kafka import Brokers, Position
from mev.bus.replay import Bounds, Replay
from mev.realtime import start as starts
from mev.realtime.errors import TooManyReplaysError
from mev.realtime.start import Beginning
from mev.wire.registry import EventType

_T = TypeVar("_T")
_RETRY_AFTER_S = 2
_READ_S = 0.1


class PastReader:
    """A replay, its blocking calls made in the pool's threads. Close it when it is done with, whatever happened."""

    def __init__(self, replay: Replay, pool: ThreadPoolExecutor, closed: Callable[[], None]) -> None:
        self._replay = replay
        self._pool = pool
        self._closed = closed

    async def begin(self, start: starts.Past, types: Iterable[EventType], log: str) -> Beginning:
        """Find where `start` is, and be ready to read from there."""
        return await self._call(self._begin, start, list(types), log)

    async def read(self) -> list[Batch]:
        """Return the next messages, nothing when none come for a moment."""
        return await self._call(self._replay.read, _READ_S)

    async def seek(self, positions: Mapping[Position, int]) -> None:
        """Read on from `positions`, and nothing else."""
        await self._call(self._replay.seek, dict(positions))

    async def bounds(self, topics: Iterable[str]) -> dict[Position, Bounds]:
        """Return what every partition of `topics` holds now."""
        return await self._call(self._replay.bounds, list(topics))

    def ignore(self, partitions: Iterable[Position]) -> None:
        """Read no more of `partitions`."""
        asyncio.get_running_loop().run_in_executor(self._pool, self._replay.ignore, list(partitions))

    def close(self) -> None:
        """Give the place in the pool back."""
        asyncio.get_running_loop().run_in_executor(self._pool, self._replay.close).add_done_callback(lambda _: self._closed())

    def _begin(self, start: starts.Past, types: list[EventType], log: str) -> Beginning:
        beginning = starts.find(start, types, self._replay, log)
        self._replay.seek(beginning.positions)
        return beginning

    async def _call(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


class Pool:
    """At most `limit` readers at once."""

    def __init__(self, brokers: Brokers, *, limit: int, timeout_s: float) -> None:
        self._brokers = brokers
        self._limit = limit
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="replay")
        self._left = asyncio.Event()
        self.open = 0

    def reader(self) -> PastReader:
        """Return a new reader.

        :raises TooManyReplaysError: when there are as many as may be.
        """
        if self.open >= self._limit:
            raise TooManyReplaysError(
                f"{self._limit} subscriptions are catching up already; try again in {_RETRY_AFTER_S} s, or start live",
                retry_after_s=_RETRY_AFTER_S,
            )
        reader = PastReader(Replay(self._brokers, timeout_s=self._timeout_s), self._threads, self._leave)
        self.open += 1
        return reader

    async def wait_for_reader(self) -> PastReader:
        """Return a new reader as soon as there may be one more."""
        while self.open >= self._limit:
            self._left.clear()
            await self._left.wait()
        return self.reader()

    async def close(self) -> None:
        """Wait until every reader is closed; nobody may ask for another."""
        while self.open:
            self._left.clear()
            await self._left.wait()
        await asyncio.to_thread(self._threads.shutdown)

    def _leave(self) -> None:
        self.open -= 1
        self._left.set()
