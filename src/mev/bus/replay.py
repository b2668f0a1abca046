"""Reading of stored messages from given offsets, independent of other consumers."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from mev.bus.batch import PartitionBatch, by_partition
from mev.bus.kafka import Brokers, BrokerUnavailableError, Position

_MAX_MESSAGES = 1000


class OffsetRange(NamedTuple):
    """Offsets of a partition, from `earliest` (inclusive) to `latest` (exclusive)."""

    earliest: int
    latest: int


class Replay:
    """A consumer without a group; methods block, and one thread at a time may run them.

    :raises BrokerUnavailableError: when the brokers do not answer within `timeout_s`.
    """

    def __init__(self, brokers: Brokers, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._consumer = Consumer(
            brokers.config(
                group_id="mev-replay",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                queued_max_messages_kbytes=4096,
            )
        )

    def bounds(self, topics: Iterable[str]) -> dict[Position, OffsetRange]:
        """Return the offset range of every partition of `topics`."""
        with self._lock, _explained():
            found = {}
            for topic in topics:
                for number in (
                    self._consumer.list_topics(topic, timeout=self._timeout_s)
                    .topics[topic]
                    .partitions
                ):
                    at = TopicPartition(topic, number)
                    found[topic, number] = OffsetRange(
                        *self._consumer.get_watermark_offsets(at, timeout=self._timeout_s)
                    )
            return found

    def first_since(
        self, time_ms: int, bounds: Mapping[Position, OffsetRange]
    ) -> dict[Position, int]:
        """Return the first offset of each partition that was published at `time_ms` or later."""
        times = [TopicPartition(*at, time_ms) for at in bounds]
        with self._lock, _explained():
            found = self._consumer.offsets_for_times(times, timeout=self._timeout_s)
        offsets = {(each.topic, each.partition): each.offset for each in found}
        return {
            at: min(max(offsets[at], bound.earliest), bound.latest)
            if offsets[at] >= 0
            else bound.latest
            for at, bound in bounds.items()
        }

    def first_where(
        self, at: Position, bounds: OffsetRange, late_enough: Callable[[bytes], bool]
    ) -> int:
        """Return the first offset whose value is `late_enough`, by bisection.

        The result is exact if the messages are in order.
        """
        low, high = bounds
        with self._lock, _explained():
            while low < high:
                middle = (low + high) // 2
                offset, value = self._one(at, middle)
                if offset >= high or late_enough(value):
                    high = middle
                else:
                    low = offset + 1
        return low

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Read from `positions`."""
        with self._lock, _explained():
            self._consumer.assign([TopicPartition(*at, offset) for at, offset in positions.items()])

    def read(self, timeout_s: float) -> list[PartitionBatch]:
        """Return the next messages, at once if available."""
        with self._lock:
            first = self._consumer.poll(timeout_s)
            return (
                by_partition([first, *self._consumer.consume(_MAX_MESSAGES - 1, 0)], timed=True)
                if first is not None
                else []
            )

    def ignore(self, partitions: Iterable[Position]) -> None:
        """Stop reading `partitions`."""
        with self._lock, _explained():
            self._consumer.pause([TopicPartition(*at) for at in partitions])

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            self._consumer.close()

    def _one(self, at: Position, offset: int) -> tuple[int, bytes]:
        self._consumer.assign([TopicPartition(*at, offset)])
        message = self._consumer.poll(self._timeout_s)
        if message is None:
            raise BrokerUnavailableError(
                f"{at[0]}[{at[1]}] cannot be read within {self._timeout_s:g} s", retry_after_s=5
            )
        if (error := message.error()) is not None:
            raise KafkaException(error)
        found = message.offset()
        return (offset if found is None else found), message.value() or b""


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Convert Kafka errors to BrokerUnavailableError."""
    try:
        yield
    except KafkaException as error:
        raise BrokerUnavailableError(
            f"the past cannot be read: {error.args[0].str()}", retry_after_s=5
        ) from None
