"""Reading of topics from their end without a consumer group: every process reads everything.

A client that asks a restarting broker may receive an empty broker list, and never recovers. If this
client gets no answer for a long time and a new one does, the new client continues at the old
position.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition
from prometheus_client import Counter, Gauge

from mev.bus.batch import PartitionBatch, by_partition
from mev.bus.kafka import LONG_POLL_MS, POLL_S, Brokers, BrokerUnavailableError, Position
from mev.bus.progress import ReadProgress

LOG = logging.getLogger(__name__)
RECEIVED = Counter("mev_tail_messages_total", "Messages read from the end of topics.", ["topic"])
LOST = Counter(
    "mev_tail_lost_total", "Messages that were gone before they could be read.", ["topic"]
)
LAG = Gauge(
    "mev_tail_lag_messages",
    "Messages that are published and not read yet, as far as the client knows.",
    ["topic"],
)
STALLS = Counter(
    "mev_tail_stalls_total", "Times a client that got no answer any more was replaced."
)
_MAX_MESSAGES = 1000
_REFRESH_S = 30.0
_RETRY_PAUSE_S = 0.1
_ASK_AGAIN_S = 5.0
_LAG_S = 1.0


class Tail:
    """A thread that reads `topics` from their end and passes batches to `deliver`.

    `deliver` is called in that thread and may block; reading waits for it. New partitions are found
    automatically. Topics in `from_beginning` are compacted and read from their start; topics in
    `since_ms` are read from that publishing time. A client without an answer for `deaf_s`, while
    other clients get one, is replaced.
    """

    def __init__(
        self,
        brokers: Brokers,
        topics: Iterable[str],
        deliver: Callable[[list[PartitionBatch]], None],
        *,
        timeout_s: float,
        from_beginning: Iterable[str] = (),
        since_ms: Mapping[str, int] | None = None,
        deaf_s: float = 60.0,
    ) -> None:
        self._brokers = brokers
        self._topics = list(topics)
        for topic in self._topics:  # an alert needs the value before the first one
            LOST.labels(topic)
        self._from_beginning = set(from_beginning)
        self._since_ms = dict(since_ms or {})
        self._deliver = deliver
        self._timeout_s = timeout_s
        self._deaf_s = deaf_s
        self._deaf_since: float | None = None
        self._progress = ReadProgress()
        self._consumer = self._new_consumer()
        self._next: dict[Position, int] = {}
        self.ends: dict[Position, int] = {}
        """End offsets of the partitions when they were found."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bus-tail", daemon=True)

    def start(self) -> dict[Position, int]:
        """Find the current end of the topics, start reading there and return the offsets.

        :raises BrokerUnavailableError: when the brokers do not answer in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._assign_new_partitions()
                break
            except KafkaException as error:  # a leader election takes a moment
                if time.monotonic() > deadline:
                    raise BrokerUnavailableError(
                        f"topics cannot be followed: {error.args[0].str()}", retry_after_s=5
                    ) from None
                time.sleep(_RETRY_PAUSE_S)
        starts = dict(self._next)
        self._thread.start()
        return starts

    def close(self) -> None:
        """Stop reading; a client that does not stop in time is abandoned."""
        self._closing.set()
        if self._thread.ident is None:
            self._consumer.close()
        elif self._thread.is_alive():
            self._thread.join(self._timeout_s)

    def _run(self) -> None:
        # Only this thread uses the client, so that it is not closed while in use.
        try:
            self._read()
        finally:
            self._consumer.close()

    def _read(self) -> None:
        refresh_at, lag_at = time.monotonic() + _REFRESH_S, time.monotonic()
        while not self._closing.is_set():
            first = self._consumer.poll(POLL_S)
            if first is not None:
                batches = by_partition(
                    [first, *self._consumer.consume(_MAX_MESSAGES - 1, 0)], timed=True
                )
                for batch in batches:
                    self._account(batch)
                self._deliver(batches)
            if time.monotonic() > lag_at:
                self._show_lag()
                lag_at = time.monotonic() + _LAG_S
            if time.monotonic() > refresh_at:
                self._refresh()
                refresh_at = time.monotonic() + (
                    _REFRESH_S if self._deaf_since is None else min(_ASK_AGAIN_S, self._deaf_s)
                )

    def _show_lag(self) -> None:
        lags = dict.fromkeys(self._topics, 0)
        for (topic, partition), following in self._next.items():
            _, end = self._consumer.get_watermark_offsets(
                TopicPartition(topic, partition), cached=True
            )
            lags[topic] += max(0, end - following)
            self._progress.note((topic, partition), following, end)
        for topic, lag in lags.items():
            LAG.labels(topic).set(lag)

    def _refresh(self) -> None:
        asked = time.monotonic()
        try:
            self._assign_new_partitions()
            self._deaf_since = None
        except KafkaException as error:
            LOG.warning(
                "partitions not refreshed: %s",
                error.args[0].str(),
                extra={"action": "tail_refresh"},
            )
            if self._deaf_since is None:
                self._deaf_since = asked
            elif time.monotonic() - self._deaf_since >= self._deaf_s:
                self._replace()

    def _replace(self) -> None:
        """Replace the client at its position, if a new client gets an answer."""
        fresh = self._new_consumer()
        try:
            fresh.list_topics(self._topics[0], timeout=self._timeout_s)
            fresh.assign([TopicPartition(*at, offset) for at, offset in self._next.items()])
        except KafkaException:  # the brokers are down: a new client does not help
            fresh.close()
            return
        LOG.error(
            "reading stands still: the client gets no answer, and is replaced",
            extra={"action": "tail_stalled"},
        )
        STALLS.inc()
        stuck, self._consumer, self._deaf_since = self._consumer, fresh, None
        # Closing may never end.
        threading.Thread(target=stuck.close, name="bus-tail-close", daemon=True).start()

    def _new_consumer(self) -> Consumer:
        return Consumer(
            self._brokers.config(
                group_id="mev-tail",
                enable_auto_commit=False,
                auto_offset_reset="latest",
                fetch_wait_max_ms=LONG_POLL_MS,
            )
        )

    def _assign_new_partitions(self) -> None:
        fresh = []
        for topic in self._topics:
            partitions = (
                self._consumer.list_topics(topic, timeout=self._timeout_s).topics[topic].partitions
            )
            fresh += [
                TopicPartition(topic, number)
                for number in partitions
                if (topic, number) not in self._next
            ]
        ends = {}
        for at in fresh:
            low, ends[at.topic, at.partition] = self._consumer.get_watermark_offsets(
                at, timeout=self._timeout_s
            )
            at.offset = self._first(at, low, ends[at.topic, at.partition])
        if fresh:
            self._consumer.incremental_assign(fresh)
            self._next.update({(at.topic, at.partition): at.offset for at in fresh})
            self.ends.update(ends)

    def _first(self, at: TopicPartition, low: int, high: int) -> int:
        # A partition found after the start is new: read it from its beginning.
        if self._thread.is_alive() or at.topic in self._from_beginning:
            return low
        if (since_ms := self._since_ms.get(at.topic)) is None:
            return high
        (found,) = self._consumer.offsets_for_times(
            [TopicPartition(at.topic, at.partition, since_ms)], timeout=self._timeout_s
        )
        return found.offset if found.offset >= 0 else high

    def _account(self, batch: PartitionBatch) -> None:
        at = batch.topic, batch.partition
        lost = batch.offsets[0] - self._next[at]
        # Compacted topics have gaps by design.
        if lost > 0 and batch.topic not in self._from_beginning:
            LOST.labels(batch.topic).inc(lost)
            LOG.error(
                "%s[%d]: %d messages were gone before they could be read",
                *at,
                lost,
                extra={"action": "tail_lost"},
            )
        self._next[at] = batch.offsets[-1] + 1
        RECEIVED.labels(batch.topic).inc(len(batch.offsets))
