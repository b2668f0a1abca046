"""The newest event of each key, for subscriptions with a snapshot.

An event type is followed from its first snapshot: the end of its log is read back once, by a reader
of the replay pool, and then every batch of the hub is merged. Everything except that read runs in
the event-loop thread.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from mev.bus import batch as bus
from mev.bus.kafka import Position
from mev.core.tasks import cancel
from mev.realtime.errors import UnsupportedError
from mev.realtime.positions import Positions
from mev.realtime.replay_pool import ReplayPool, ReplayReader

Key = tuple[int, bytes]
"""The partition is included because offsets of different partitions cannot be compared."""
_QUIET_READS = 20  # reads without messages after which the rest of a range counts as deleted


class NewestEvent(NamedTuple):
    """The newest event of a key, and its offset."""

    partition: int
    offset: int
    value: bytes
    key: bytes
    published_ms: int


@dataclass(slots=True)
class _FollowedTopic:
    """The newest events of a Kafka topic, ordered by time of writing."""

    newest: dict[Key, NewestEvent] = field(default_factory=dict)
    filling: "asyncio.Task[None] | None" = None


class Snapshots:
    """Stores the newest event of up to `keys` keys of each followed topic.

    `positions` are the hub's next offsets; up to `scan_events` before them are read back at first.
    """

    def __init__(
        self, positions: Positions, pool: ReplayPool | None, *, keys: int, scan_events: int
    ) -> None:
        self._positions = positions
        self._pool = pool
        self._keys = keys
        self._scan_events = scan_events
        self._topics: dict[str, _FollowedTopic] = {}

    def take(self, batch: bus.PartitionBatch) -> None:
        """Merge a batch of the hub; batches of other topics are ignored at the cost of a lookup."""
        followed = self._topics.get(batch.topic)
        if followed is not None:
            _fold(followed.newest, batch, len(batch.offsets))
            _trim(followed.newest, self._keys)

    async def follow(self, kafka_topics: Iterable[str]) -> None:
        """Return once the newest events of `kafka_topics` are known.

        :raises TooManyReplaysError: if no reader is available.
        :raises BrokerUnavailableError: if the brokers do not answer.
        """
        for topic in kafka_topics:
            followed = self._topics.get(topic)
            if followed is None:
                followed = self._begin(topic)
            if followed.filling is not None:
                await asyncio.shield(followed.filling)

    def newest(self, kafka_topic: str) -> Sequence[NewestEvent]:
        """Return the newest event of each key of a followed topic, by partition and offset."""
        return sorted(self._topics[kafka_topic].newest.values())

    async def close(self) -> None:
        """Cancel running reads."""
        await cancel(*(one.filling for one in self._topics.values() if one.filling is not None))

    def _begin(self, topic: str) -> _FollowedTopic:
        if self._pool is None:
            raise UnsupportedError(
                "this server has no history; leave snapshot out", field="snapshot"
            )
        reader = self._pool.reader()
        upto = {at: offset for at, offset in self._positions.items() if at[0] == topic}
        followed = self._topics[topic] = _FollowedTopic()
        task = asyncio.get_running_loop().create_task(self._fill(topic, followed, reader, upto))
        followed.filling = task
        task.add_done_callback(lambda task: self._filled(topic, followed, task))
        return followed

    def _filled(self, topic: str, followed: _FollowedTopic, task: "asyncio.Task[None]") -> None:
        followed.filling = None
        if task.cancelled() or task.exception() is not None:
            del self._topics[topic]  # the next snapshot retries

    async def _fill(
        self, topic: str, followed: _FollowedTopic, reader: ReplayReader, upto: Positions
    ) -> None:
        """Read the events before `upto`; those received meanwhile are newer."""
        try:
            before = await self._read_back(topic, reader, upto)
        finally:
            reader.close()
        live = followed.newest
        for key in live:
            before.pop(key, None)
        followed.newest = before | live
        _trim(followed.newest, self._keys)

    async def _read_back(
        self, topic: str, reader: ReplayReader, upto: Positions
    ) -> dict[Key, NewestEvent]:
        bounds = await reader.bounds([topic])
        share = max(1, self._scan_events // max(1, len(bounds)))
        at: dict[Position, int] = {
            place: max(bound.earliest, upto.get(place, 0) - share)
            for place, bound in bounds.items()
        }
        await reader.seek(at)
        found: dict[Key, NewestEvent] = {}
        quiet = 0
        while quiet < _QUIET_READS and any(at[place] < upto.get(place, 0) for place in at):
            batches = await reader.read()
            quiet = 0 if batches else quiet + 1
            for batch in batches:
                place = batch.topic, batch.partition
                end = upto.get(place, 0)
                _fold(found, batch, sum(offset < end for offset in batch.offsets))
                at[place] = batch.offsets[-1] + 1
            _trim(found, self._keys)
        return found


def _fold(newest: dict[Key, NewestEvent], batch: bus.PartitionBatch, count: int) -> None:
    partition = batch.partition
    times_ms = batch.published_ms or [0] * len(batch.offsets)
    columns = (batch.keys, batch.offsets, batch.values, times_ms)
    for key, offset, value, time_ms in islice(zip(*columns, strict=True), count):
        if key:
            newest.pop((partition, key), None)  # keeps the order of writing
            newest[partition, key] = NewestEvent(partition, offset, value, key, time_ms)


def _trim(newest: dict[Key, NewestEvent], keys: int) -> None:
    for key in list(islice(newest, max(0, len(newest) - keys))):
        del newest[key]
