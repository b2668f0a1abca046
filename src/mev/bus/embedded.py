"""The embedded broker: librdkafka's own, inside this process, speaking the real protocol on the loopback interface.

It keeps what it has in memory, about 5 MB a partition, four partitions a topic, and drops the oldest beyond that. :class:`Backlog`
keeps publishers from outrunning the sink, so that nothing is dropped before it is stored.
"""

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from mev.bus.kafka import PARTITIONS, Brokers
from mev.bus.offsets import group_offsets
from mev.wire.topics import DEAD_LETTER

# Together less than the 5 MB a partition keeps, should all of it go to one: what is not stored, what is not yet counted, and one part.
_UNSTORED_BYTES = 1_500_000
_UNCOUNTED_BYTES = 2_000_000
PART_BYTES = 1 << 20
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

    Publishers report what they send, in batches of at most ``PART_BYTES``, and when it is acknowledged; a thread of its own asks the
    broker how far the group has come. Dead letters, which nobody stores, are let through: the newest are kept. Thread-safe, and
    :meth:`is_full` never waits.
    """

    def __init__(self, brokers: Brokers, group: str, *, timeout_s: float) -> None:
        self._consumer = Consumer(brokers.config(group_id=group, enable_auto_commit=False))
        self._timeout_s = timeout_s
        self._topics: dict[str, _Published] = defaultdict(_Published)
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="embedded-backlog", daemon=True)
        self._thread.start()

    def is_full(self, topic: str) -> bool:
        """Say whether a partition of `topic` may hold more unstored bytes than the broker can safely keep."""
        if topic == DEAD_LETTER:
            return False
        published = self._topics[topic]
        return published.full or published.uncounted_bytes > _UNCOUNTED_BYTES

    def sent(self, topic: str, messages: int, size_bytes: int) -> None:
        """Count what was handed to the producer for `topic`."""
        with self._lock:
            published = self._topics[topic]
            published.add(messages, size_bytes)
        if published.uncounted_bytes > _CHECK_EVERY_BYTES:
            self._due.set()

    def settled(self, topic: str, size_bytes: int) -> None:
        """Count what the broker has acknowledged, or never will."""
        with self._lock:
            self._topics[topic].settled_bytes += size_bytes

    def close(self) -> None:
        """Stop asking."""
        self._closing = True
        self._due.set()
        self._thread.join()
        self._consumer.close()

    def _watch(self) -> None:
        while not self._closing:
            self._due.clear()
            with self._lock:
                topics = {topic: published for topic, published in self._topics.items() if topic != DEAD_LETTER}
            for topic, published in topics.items():
                if published.full or published.uncounted_bytes > _CHECK_EVERY_BYTES:
                    self._check(topic, published)
            waiting = any(published.full or published.uncounted_bytes > _UNCOUNTED_BYTES for published in topics.values())
            self._due.wait(_CHECK_EVERY_S if waiting else None)

    def _check(self, topic: str, published: "_Published") -> None:
        settled = published.settled_bytes  # read first: all of it is among what the broker reports
        try:
            lags = self._lags(topic)
        except KafkaException:  # the broker is gone or busy: what is known stays, the next round asks again
            published.full = True
            return
        with self._lock:
            published.full = max(lags) * published.mean_bytes(sum(lags)) > _UNSTORED_BYTES
            published.counted_bytes = settled

    def _lags(self, topic: str) -> list[int]:
        offsets = group_offsets(self._consumer, [TopicPartition(topic, number) for number in range(PARTITIONS)], timeout_s=self._timeout_s)
        return [latest - committed for _, latest, committed in offsets.values()]


@dataclass(slots=True)
class _Published:
    """What was published to one topic; `counted_bytes` of it are among the offsets that the broker last reported."""

    sent_messages: int = 0
    sent_bytes: int = 0
    settled_bytes: int = 0
    counted_bytes: int = 0
    full: bool = False
    batches: deque[tuple[int, int]] = field(default_factory=deque)  # messages and bytes sent before each

    @property
    def uncounted_bytes(self) -> int:
        return self.sent_bytes - self.counted_bytes

    def add(self, messages: int, size_bytes: int) -> None:
        self.batches.append((self.sent_messages, self.sent_bytes))
        self.sent_messages += messages
        self.sent_bytes += size_bytes

    def mean_bytes(self, last: int) -> float:
        """Return the mean size of about the `last` messages, and forget the batches before them."""
        while len(self.batches) > 1 and self.batches[1][0] <= self.sent_messages - last:
            self.batches.popleft()
        messages, size_bytes = self.batches[0]
        return (self.sent_bytes - size_bytes) / (self.sent_messages - messages)
