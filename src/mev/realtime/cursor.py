"""Where a reader stands: the next offset of every partition, and the form in which clients give it back."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from mev.bus.kafka import Position
from mev.wire.registry import BY_TOPIC

_T = TypeVar("_T")
Positions = Mapping[Position, int]
Cursor = dict[str, dict[str, int]]


def cursor(positions: Mapping[Position, _T], kafka_topics: Iterable[str]) -> dict[str, dict[str, _T]]:
    """Return what there is for each partition of `kafka_topics` as event type to partition to it."""
    found: dict[str, dict[str, _T]] = {topic: {} for topic in kafka_topics}
    for (topic, partition), value in positions.items():
        if topic in found:
            found[topic][str(partition)] = value
    return {BY_TOPIC[topic].name: partitions for topic, partitions in found.items()}
