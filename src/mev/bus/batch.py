"""Messages of one partition as a batch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Message

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class PartitionBatch:
    """Messages of one partition in offset order: offsets, keys and values.

    `timestamp_ms` is the publishing time of the first one, `published_ms` of each, if requested.
    """

    topic: str
    partition: int
    offsets: list[int]
    keys: list[bytes]
    values: list[bytes]
    timestamp_ms: int = 0
    published_ms: Sequence[int] = ()


def by_partition(messages: list[Message], *, timed: bool = False) -> list[PartitionBatch]:
    """Return `messages` by partition; errors are logged.

    With `timed`, the batches contain the publishing time of each message.
    """
    found: dict[tuple[str | None, int | None], list[Message]] = {}
    for message in messages:
        if (error := message.error()) is not None:
            LOG.warning("reading: %s", error.str(), extra={"action": "consumer_error"})
            continue
        at = message.topic(), message.partition()
        if (of_partition := found.get(at)) is None:
            of_partition = found[at] = []
        of_partition.append(message)
    return [_batch(of_partition, timed=timed) for of_partition in found.values()]


def _batch(messages: list[Message], *, timed: bool) -> PartitionBatch:
    topic, partition = cast("tuple[str, int]", (messages[0].topic(), messages[0].partition()))
    offsets = cast("list[int]", [message.offset() for message in messages])
    return PartitionBatch(
        topic,
        partition,
        offsets,
        [message.key() or b"" for message in messages],
        [message.value() or b"" for message in messages],
        messages[0].timestamp()[1],
        [message.timestamp()[1] for message in messages] if timed else (),
    )
