"""Bounded pool of readers of history, each with a consumer and a thread."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import TypeVar

from mev.bus.batch import PartitionBatch
from mev.bus.kafka import Brokers, Position
from mev.bus.replay import OffsetRange, Replay
from mev.realtime.errors import TooManyReplaysError
from mev.realtime.options import Past
from mev.realtime.positions import Beginning, find_start
from mev.wire.registry import EventType

_T = TypeVar("_T")
_UNKNOWN_S = 5
_LONGEST_S = 60
_READ_S = 0.1


class Progress:
    """How far a reader has come, and so when its place is likely to be free."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._first: int | None = None
        self._left = 0

    def note(self, left: int) -> None:
        """Note how many offsets are left to read."""
        self._first = left if self._first is None else self._first
        self._left = left

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until the replay is done at its average speed, None if unknown."""
        done = (self._first or 0) - self._left
        return self._left * (now - self._since) / done if done > 0 else None


class ReplayReader:
    """A replay whose blocking calls run in the pool's threads; it must be closed after use."""

    def __init__(
        self, replay: Replay, pool: ThreadPoolExecutor, closed: Callable[[], None]
    ) -> None:
        self._replay = replay
        self._pool = pool
        self._closed = closed
        self.progress = Progress(asyncio.get_running_loop().time())

    async def begin(self, start: Past, types: Iterable[EventType], log: str) -> Beginning:
        """Find the position of `start`, and seek to it."""
        return await self._call(self._begin, start, list(types), log)

    async def read(self) -> list[PartitionBatch]:
        """Return the next messages, none if none arrive for a moment."""
        return await self._call(self._replay.read, _READ_S)

    async def seek(self, positions: Mapping[Position, int]) -> None:
        """Continue at `positions`, with these partitions only."""
        await self._call(self._replay.seek, dict(positions))

    async def bounds(self, topics: Iterable[str]) -> dict[Position, OffsetRange]:
        """Return the current offset range of every partition of `topics`."""
        return await self._call(self._replay.bounds, list(topics))

    def ignore(self, partitions: Iterable[Position]) -> None:
        """Stop reading `partitions`."""
        asyncio.get_running_loop().run_in_executor(
            self._pool, self._replay.ignore, list(partitions)
        )

    def close(self) -> None:
        """Close the reader and free its place in the pool."""
        asyncio.get_running_loop().run_in_executor(
            self._pool, self._replay.close
        ).add_done_callback(lambda _: self._closed())

    def _begin(self, start: Past, types: list[EventType], log: str) -> Beginning:
        beginning = find_start(start, types, self._replay, log)
        self._replay.seek(beginning.positions)
        return beginning

    async def _call(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


class ReplayPool:
    """Limits the number of readers to `limit`."""

    def __init__(self, brokers: Brokers, *, limit: int, timeout_s: float) -> None:
        self._brokers = brokers
        self._limit = limit
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="replay")
        self._left = asyncio.Event()
        self._readers: set[ReplayReader] = set()

    def reader(self) -> ReplayReader:
        """Return a new reader.

        :raises TooManyReplaysError: if the limit is reached.
        """
        if self.open >= self._limit:
            wait_s = self._wait_s()
            raise TooManyReplaysError(
                f"{self._limit} subscriptions are catching up already; "
                f"try again in {wait_s} s, or start live",
                retry_after_s=wait_s,
            )
        reader = ReplayReader(
            Replay(self._brokers, timeout_s=self._timeout_s),
            self._threads,
            lambda: self._leave(reader),
        )
        self._readers.add(reader)
        return reader

    @property
    def open(self) -> int:
        """How many readers there are."""
        return len(self._readers)

    async def wait_for_reader(self) -> ReplayReader:
        """Return a new reader as soon as the limit allows it."""
        while self.open >= self._limit:
            self._left.clear()
            await self._left.wait()
        return self.reader()

    async def close(self) -> None:
        """Wait until every reader is closed; no new one may be requested."""
        while self.open:
            self._left.clear()
            await self._left.wait()
        await asyncio.to_thread(self._threads.shutdown)

    def _leave(self, reader: ReplayReader) -> None:
        self._readers.discard(reader)
        self._left.set()

    def _wait_s(self) -> int:
        """Return the estimated seconds until the first reader is done."""
        now = asyncio.get_running_loop().time()
        known = [
            wait_s
            for reader in self._readers
            if (wait_s := reader.progress.wait_s(now)) is not None
        ]
        return min(_LONGEST_S, max(1, ceil(min(known)))) if known else _UNKNOWN_S
