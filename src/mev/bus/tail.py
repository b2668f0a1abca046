"""Following topics from their end, without a consumer group: every process sees everything, nothing is rebalanced."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition
from prometheus_client import Counter

from mev.bus.batch import Batch, by_partition
from mev.bus.errors import BrokerUnavailableError
from mev.bus.kafka import Brokers, Position

LOG = logging.getLogger(__name__)
RECEIVED = Counter("mev_tail_messages_total", "Messages read from the end of topics.", ["topic"])
LOST = Counter("mev_tail_lost_total", "Messages that were gone before they could be read.", ["topic"])
_MAX_MESSAGES = 1000
_POLL_S = 0.1
_REFRESH_S = 30.0
_RETRY_PAUSE_S = 0.1


class Tail:
    """A thread that reads `topics` from their end and gives `deliver` a list of batches at a time.

    `deliver` is called in that thread and may block; reading waits for it. Partitions added later are found by themselves. Topics in
    `from_beginning` are compacted ones and read whole.
    """

    def __init__(
        self,
        brokers: Brokers,
        topics: Iterable[str],
        deliver: Callable[[list[Batch]], None],
        *,
        timeout_s: float,
        from_beginning: Iterable[str] = (),
    ) -> None:
        self._topics = list(topics)
        self._from_beginning = set(from_beginning)
        self._deliver = deliver
        self._timeout_s = timeout_s
        self._consumer = Consumer(brokers.config(group_id="mev-tail", enable_auto_commit=False, auto_offset_reset="latest"))
        self._next: dict[Position, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bus-tail", daemon=True)

    def start(self) -> dict[Position, int]:
        """Find where the topics end now, read from there, and return where that is.

        :raises BrokerUnavailableError: when the brokers do not say it in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._assign_new_partitions()
                break
            except KafkaException as error:  # a leader that is being elected is a moment away
                if time.monotonic() > deadline:
                    raise BrokerUnavailableError(f"topics cannot be followed: {error.args[0].str()}", retry_after_s=5) from None
                time.sleep(_RETRY_PAUSE_S)
        starts = dict(self._next)
        self._thread.start()
        return starts

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s)
        self._consumer.close()

    def _run(self) -> None:
        refresh_at = time.monotonic() + _REFRESH_S
        while not self._closing.is_set():
            first = self._consumer.poll(_POLL_S)
            if first is not None:
                batches = by_partition([first, *self._consumer.consume(_MAX_MESSAGES - 1, 0)])
                for batch in batches:
                    self._account(batch)
                self._deliver(batches)
            if time.monotonic() > refresh_at:
                refresh_at = time.monotonic() + _REFRESH_S
                self._refresh()

    def _refresh(self) -> None:
        try:
            self._assign_new_partitions()
        except KafkaException as error:
            LOG.warning("partitions not refreshed: %s", error.args[0].str(), extra={"action": "tail_refresh"})

    def _assign_new_partitions(self) -> None:
        fresh = []
        for topic in self._topics:
            partitions = self._consumer.list_topics(topic, timeout=self._timeout_s).topics[topic].partitions
            fresh += [TopicPartition(topic, number) for number in partitions if (topic, number) not in self._next]
        for at in fresh:
            # A partition found after the start is read from its beginning: all of it is new.
            low, high = self._consumer.get_watermark_offsets(at, timeout=self._timeout_s)
            at.offset = low if self._thread.is_alive() or at.topic in self._from_beginning else high
        if fresh:
            self._consumer.incremental_assign(fresh)
            self._next.update({(at.topic, at.partition): at.offset for at in fresh})

    def _account(self, batch: Batch) -> None:
        at = batch.topic, batch.partition
        lost = batch.offsets[0] - self._next[at]
        if lost > 0 and batch.topic not in self._from_beginning:  # a compacted topic has gaps by design
            LOST.labels(batch.topic).inc(lost)
            LOG.error("%s[%d]: %d messages were gone before they could be read", *at, lost, extra={"action": "tail_lost"})
        self._next[at] = batch.offsets[-1] + 1
        RECEIVED.labels(batch.topic).inc(len(batch.offsets))
