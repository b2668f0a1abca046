"""Lag of a consumer group in messages and in seconds, read from the brokers alone.

The group need not run: a stopped group is late too.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition

from mev.bus.group import all_group_offsets
from mev.bus.kafka import POLL_S, Brokers, Position
from mev.core.clock import now_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """Uncommitted messages of a group in one partition.

    `seconds` is the age of the oldest such message, by its timestamp in Kafka; 0 without one, None
    if it could not be read in time.
    """

    topic: str
    partition: int
    committed: int
    latest: int
    seconds: float | None

    @property
    def messages(self) -> int:
        """Return the number of offsets that are not committed."""
        return self.latest - self.committed


def group_lag(
    brokers: Brokers, group: str, topics: Iterable[str], *, timeout_s: float
) -> list[PartitionLag]:
    """Return the lag of every partition of `topics`, in order; blocks.

    :raises BrokerUnavailableError: when the brokers do not answer.
    """
    offsets = {
        at: (max(committed, earliest), latest)
        for at, (earliest, latest, committed) in all_group_offsets(
            brokers, group, topics, timeout_s=timeout_s
        ).items()
    }
    behind = {at: first for at, (first, latest) in offsets.items() if first < latest}
    times_ms = _times_ms(brokers, behind, timeout_s=timeout_s)
    now_ms = now_ns() // 1_000_000
    return [
        PartitionLag(
            topic=at[0],
            partition=at[1],
            committed=first,
            latest=latest,
            seconds=_age_s(times_ms.get(at), now_ms) if at in behind else 0.0,
        )
        for at, (first, latest) in sorted(offsets.items())
    ]


def _age_s(time_ms: int | None, now_ms: int) -> float | None:
    return None if time_ms is None else max(0.0, (now_ms - time_ms) / 1000)


def _times_ms(
    brokers: Brokers, positions: dict[Position, int], *, timeout_s: float
) -> dict[Position, int]:
    """Return the time of the first message at or after each position."""
    found: dict[Position, int] = {}
    if not positions:
        return found
    reader = Consumer(brokers.config(group_id="mev-lag", enable_auto_commit=False))
    try:
        reader.assign([TopicPartition(*at, offset) for at, offset in positions.items()])
        deadline = time.monotonic() + timeout_s
        while len(found) < len(positions) and time.monotonic() < deadline:
            message = reader.poll(POLL_S)
            if message is None or message.error():
                continue
            at = str(message.topic()), int(message.partition() or 0)
            if at not in found:
                found[at] = message.timestamp()[1]
                reader.pause([TopicPartition(*at)])
    finally:
        reader.close()
    return found
