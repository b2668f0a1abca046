"""A log in memory for tests of replay; the test sets its tail."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from mev.bus.batch import PartitionBatch
from mev.bus.kafka import Position
from mev.bus.replay import OffsetRange
from mev.realtime.hub import Hub
from mev.realtime.options import Past
from mev.realtime.positions import Beginning, find_start
from mev.realtime.replay_pool import Progress
from mev.wire.pb.events_pb2 import Bundle, Tick
from mev.wire.registry import BY_TOPIC, EVENT_TYPES, EventType

TYPES = ("tick", "bundle")
PARTITIONS = 2
PLACES: list[Position] = [
    (EVENT_TYPES[name].topic, partition) for name in TYPES for partition in range(PARTITIONS)
]
MARKETS = ("x", "y", "z")
_OFFSETS = 1_000_000


def number(partition: int, offset: int) -> int:
    """Return by what number an event is known in JSON."""
    return partition * _OFFSETS + offset


def place(known_as: int) -> tuple[int, int]:
    """Return partition and offset of the event of that number."""
    return divmod(known_as, _OFFSETS)


def key_of(offset: int) -> str:
    """Return the key of the event at `offset`."""
    return MARKETS[offset * offset % len(MARKETS)]


class MemoryLog:
    """Partitions of events with their offsets; replays can read what the hub has not read yet."""

    def __init__(self) -> None:
        self.ends = dict.fromkeys(PLACES, 0)
        self._delivered = dict.fromkeys(PLACES, 0)

    def deliver(self, hub: Hub, most: int = 1 << 30) -> None:
        """Give the hub what it has not got, up to `most` events of each partition."""
        for at, end in self.ends.items():
            first = self._delivered[at]
            if first < end:
                self._delivered[at] = min(end, first + most)
                hub.push(self.read(at, first, self._delivered[at]))

    def read(self, at: Position, first: int, end: int) -> PartitionBatch:
        """Return the messages [first, end) of a partition."""
        topic, partition = at
        offsets = list(range(first, end))
        keys = [key_of(offset) for offset in offsets]
        if topic == EVENT_TYPES["tick"].topic:
            values = [
                Tick(
                    market_id=key, timestamp_ns=number(partition, offset), simulated=offset % 2 == 0
                ).SerializeToString()
                for key, offset in zip(keys, offsets, strict=True)
            ]
        else:
            values = [
                Bundle(
                    bundle_id=key, slot=number(partition, offset), simulated=offset % 2 == 0
                ).SerializeToString()
                for key, offset in zip(keys, offsets, strict=True)
            ]
        return PartitionBatch(topic, partition, offsets, [key.encode() for key in keys], values)

    def bounds(self, topics: Iterable[str]) -> dict[Position, OffsetRange]:
        """Return what the partitions of `topics` hold."""
        wanted = set(topics)
        return {at: OffsetRange(0, end) for at, end in self.ends.items() if at[0] in wanted}

    def first_where(
        self, at: Position, bounds: OffsetRange, late_enough: Callable[[bytes], bool]
    ) -> int:
        """Return the first offset whose value is `late_enough`."""
        values = self.read(at, bounds.earliest, bounds.latest).values
        return next(
            (offset for offset, value in enumerate(values) if late_enough(value)), bounds.latest
        )


class MemoryPool:
    """Readers of a memory log; each read gives up to `chunk` messages of every partition."""

    def __init__(self, log: MemoryLog, chunk: int) -> None:
        self.open = 0
        self._log = log
        self._chunk = chunk

    def reader(self) -> "MemoryReader":
        """Return a reader."""
        self.open += 1
        return MemoryReader(self, self._log, self._chunk)

    async def wait_for_reader(self) -> "MemoryReader":
        """Return a reader when there is one."""
        return self.reader()


class MemoryReader:
    """Reads the log; each call takes a turn of the event loop."""

    def __init__(self, pool: MemoryPool, log: MemoryLog, chunk: int) -> None:
        self._pool = pool
        self._log = log
        self._chunk = chunk
        self._next: dict[Position, int] = {}
        self.progress = Progress(0.0)

    async def begin(self, start: Past, types: Iterable[EventType], log: str) -> Beginning:
        """Find where `start` is."""
        beginning = find_start(start, types, self._log, log)  # type: ignore[arg-type]
        await self.seek(beginning.positions)
        return beginning

    async def read(self) -> list[PartitionBatch]:
        """Return the next messages."""
        await asyncio.sleep(0)
        found = []
        for at, first in self._next.items():
            end = min(self._log.ends[at], first + self._chunk)
            if first < end:
                self._next[at] = end
                found.append(self._log.read(at, first, end))
        if not found:
            await asyncio.sleep(0.1)  # as long as a broker waits
        return found

    async def seek(self, positions: Mapping[Position, int]) -> None:
        """Read on from `positions`."""
        await asyncio.sleep(0)
        self._next = dict(positions)

    async def bounds(self, topics: Iterable[str]) -> dict[Position, OffsetRange]:
        """Return what every partition of `topics` holds now."""
        await asyncio.sleep(0)
        return self._log.bounds(topics)

    def ignore(self, partitions: Iterable[Position]) -> None:
        """Read no more of `partitions`."""
        self._next = {at: offset for at, offset in self._next.items() if at not in set(partitions)}

    def close(self) -> None:
        """Give the place back."""
        self._pool.open -= 1


def positions(cursor: Mapping[str, Mapping[str, int]]) -> dict[Position, int]:
    """Return a cursor of the protocol as positions."""
    return {
        (EVENT_TYPES[name].topic, int(partition)): offset
        for name, of_type in cursor.items()
        for partition, offset in of_type.items()
    }


def cursor(of: Mapping[Position, int]) -> dict[str, dict[str, int]]:
    """Return positions as a cursor of the protocol."""
    found: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in of.items():
        found.setdefault(BY_TOPIC[topic].name, {})[str(partition)] = offset
    return found
