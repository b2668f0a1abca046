"""The embedded broker: librdkafka's own, inside this process, speaking the real protocol on the loopback interface.

It keeps what it has in memory, about 5 MB a partition, four partitions a topic, and drops the oldest beyond that. :class:`Backlog`
keeps publishers from outrunning the sink, so that nothing is dropped before it is stored.
"""

import threading
from collections import defaultdict
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from mev.bus.kafka import PARTITIONS, Brokers
from mev.bus.offsets import group_offsets

_LIMIT_BYTES = 3 << 20  # of the 5 MB a partition keeps
_CHECK_EVERY_BYTES = 256 << 10
_CHECK_EVERY_S = 0.05


class EmbeddedBroker:
    """A running in-process broker. It stops when :meth:`close` is called or the process ends."""

    def __init__(self, *, timeout_s: float) -> None:
        self._cluster = Producer({"bootstrap.servers": "embedded", "test.mock.num.brokers": 1, "log_level": 3})
        (broker,) = self._cluster.list_topics(timeout=timeout_s).brokers.values()
        self.brokers = Brokers(servers=f"{broker.host}:{broker.port}", embedded=True)

    def close(self) -> None:
        """Stop the broker and forget what it holds."""
        self._cluster.close()


class Backlog:
    """Tells publishers when the embedded broker holds all it safely can, because `group` has not stored it yet.

    Publishers report what they send; a thread of its own asks the broker how far the group has come. Thread-safe, and
    :meth:`is_full` never waits.
    """

    def __init__(self, brokers: Brokers, group: str, *, timeout_s: float) -> None:
        self._consumer = Consumer(brokers.config(group_id=group, enable_auto_commit=False))
        self._timeout_s = timeout_s
        self._topics: dict[str, _Published] = defaultdict(_Published)
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="embedded-backlog", daemon=True)
        self._thread.start()

    def is_full(self, topic: str) -> bool:
        """Say whether a partition of `topic` may hold more unstored bytes than the broker can safely keep."""
        published = self._topics[topic]
        return published.full or published.unchecked_bytes > _LIMIT_BYTES

    def published(self, topic: str, messages: int, size_bytes: int) -> None:
        """Count what was published to `topic`."""
        published = self._topics[topic]
        published.messages += messages
        published.size_bytes += size_bytes
        published.unchecked_bytes += size_bytes
        if published.unchecked_bytes > _CHECK_EVERY_BYTES:
            self._due.set()

    def close(self) -> None:
        """Stop asking."""
        self._closing = True
        self._due.set()
        self._thread.join()
        self._consumer.close()

    def _watch(self) -> None:
        while not self._closing:
            for topic, published in list(self._topics.items()):
                if published.full or published.unchecked_bytes > _CHECK_EVERY_BYTES:
                    self._check(topic, published)
            self._due.clear()
            self._due.wait(_CHECK_EVERY_S if any(p.full for p in self._topics.values()) else None)

    def _check(self, topic: str, published: "_Published") -> None:
        unchecked = published.unchecked_bytes
        mean_bytes = published.size_bytes / published.messages
        try:
            published.full = self._lag(topic) * mean_bytes > _LIMIT_BYTES // 2
            published.unchecked_bytes -= unchecked
        except KafkaException:  # the broker is gone or busy: what is known stays, the next round asks again
            published.full = True

    def _lag(self, topic: str) -> int:
        offsets = group_offsets(self._consumer, [TopicPartition(topic, number) for number in range(PARTITIONS)], timeout_s=self._timeout_s)
        return max(latest - committed for _, latest, committed in offsets.values())


@dataclass(slots=True)
class _Published:
    messages: int = 0
    size_bytes: int = 0
    unchecked_bytes: int = 0
    full: bool = False
