"""Events, batches and terms for tests of the streams."""

from collections.abc import Sequence
from typing import Any

from mev.bus.batch import PartitionBatch
from mev.realtime.options import SubscriptionOptions
from mev.wire import filters
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import EVENT_TYPES


def options(*topics: str, conditions: Sequence[str] = (), **more: Any) -> SubscriptionOptions:
    """Return terms for `topics`, with what is usual."""
    return SubscriptionOptions(
        topics=frozenset(topics),
        filter=filters.parse(list(conditions), [EVENT_TYPES[name] for name in topics]),
        **more,
    )


def tick(number: int, market: str = "m") -> bytes:
    """Return a tick that is known by its time."""
    return Tick(market_id=market, timestamp_ns=number).SerializeToString()


def ticks(offsets: Sequence[int], partition: int = 0, market: str = "m") -> PartitionBatch:
    """Return ticks as they come from the broker, each timed by its offset."""
    return batch(
        "tick",
        partition,
        offsets,
        [tick(offset, market) for offset in offsets],
        [market.encode()] * len(offsets),
    )


def batch(
    name: str,
    partition: int,
    offsets: Sequence[int],
    values: Sequence[bytes],
    keys: Sequence[bytes] | None = None,
) -> PartitionBatch:
    """Return messages of event type `name` as they come from the broker."""
    return PartitionBatch(
        EVENT_TYPES[name].topic,
        partition,
        list(offsets),
        list(keys or [b"key"] * len(values)),
        list(values),
    )
