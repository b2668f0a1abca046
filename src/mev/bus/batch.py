"""What was read, by partition: one batch instead of many messages."""

import logging
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Message

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """Messages of one partition in offset order: their offsets, keys and values. `timestamp_ms` is when the first one was published."""

    topic: str
    partition: int
    offsets: list[int]
    keys: list[bytes]
    values: list[bytes]
    timestamp_ms: int = 0


def by_partition(messages: list[Message]) -> list[Batch]:
    """Return the good ones of `messages`, partition by partition; errors are logged."""
    found: dict[tuple[str | None, int | None], list[Message]] = {}
    for message in messages:
        if (error := message.error()) is not None:
            LOG.warning("reading: %s", error.str(), extra={"action": "consumer_error"})
            continue
        at = message.topic(), message.partition()
        if (of_partition := found.get(at)) is None:
            of_partition = found[at] = []
        of_partition.append(message)
    return [_batch(of_partition) for of_partition in found.values()]


def _batch(messages: list[Message]) -> Batch:
    topic, partition = cast("tuple[str, int]", (messages[0].topic(), messages[0].partition()))
    offsets = cast("list[int]", [message.offset() for message in messages])
    return Batch(
        topic,
        partition,
        offsets,
        [message.key() or b"" for message in messages],
        [message.value() or b"" for message in messages],
        messages[0].timestamp()[1],
    )
