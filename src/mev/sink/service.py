"""The sink: a consumer group that inserts blocks per partition and commits offsets afterwards.

A crash repeats blocks, and a repeat adds nothing. While ClickHouse is unavailable, blocks wait,
then reading pauses; nothing is dropped and no restart is needed. If reading stalls although Kafka
has more, the Kafka client is replaced.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from prometheus_client import Counter, Gauge

from mev.bus.group import GroupConsumer, Offsets, all_group_offsets, without_messages
from mev.bus.kafka import Brokers, Position, PublishError, QueueFullError
from mev.core.errors import MevError
from mev.sink.block import InsertBlock
from mev.sink.partition import LOST, BlockLimits, Partition
from mev.sink.stall_detector import StallDetector
from mev.sink.writer import DEAD_LETTERS, Writer
from mev.store.clickhouse import ClickHouseAwayError, ClickHouseUnavailableError
from mev.wire.topics import SINK_GROUP

LOG = logging.getLogger(__name__)

LAG = Gauge("mev_sink_lag_messages", "Messages in Kafka that are not stored yet.", ["topic"])
STALLS = Counter(
    "mev_sink_stalls_total", "Times reading stalled and the Kafka client was replaced."
)
RETRYING = Gauge("mev_sink_retrying_blocks", "Blocks that ClickHouse refused and that are retried.")
OLDEST = Gauge(
    "mev_sink_oldest_seconds", "Age of the oldest record that is read and not stored yet."
)
_POLL_S = 0.02
_IDLE_POLL_S = 0.4
_LAG_EVERY_S = 1.0
_FIRST_PAUSE_S = 0.2
_CLOSE_S = 10.0
_LEAVE_S = 1.0  # for a stalled client


def partition_names(positions: Iterable[Position]) -> str:
    """Return the partitions as text."""
    return ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(positions))


class StoppedError(Exception):
    """The sink stopped, or lost the partition, before the block was stored."""


class Sink:
    """Consumes `topics` and stores them through `writer`, in its own thread.

    `buffer_bytes` limits the memory for records, `retry_max_s` the delay between retries,
    `timeout_s` the wait for brokers, and `stall_s` the time without progress before the client is
    replaced.
    """

    def __init__(
        self,
        brokers: Brokers,
        topics: Iterable[str],
        writer: Writer,
        *,
        limits: BlockLimits,
        buffer_bytes: int,
        insert_threads: int,
        retry_max_s: float,
        timeout_s: float,
        stall_s: float = 30.0,
    ) -> None:
        self._brokers = brokers
        self._topics = list(topics)
        for topic in self._topics:  # an alert needs the value before the first one
            LOST.labels(topic)
            DEAD_LETTERS.labels(topic)
        self._writer = writer
        self._limits = limits
        self._buffer_bytes = buffer_bytes
        self._retry_max_s = retry_max_s
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(insert_threads, thread_name_prefix="sink-insert")
        self._partitions: dict[Position, Partition] = {}
        self._paused: set[Position] = set()
        self._to_commit: dict[Position, int] = {}
        self._commit: tuple[dict[Position, int], Future[bool]] | None = None
        self._watch = StallDetector(
            self._offsets,
            partial(without_messages, brokers, timeout_s=timeout_s),
            stall_s=stall_s,
        )
        self._closing = threading.Event()
        self._joined = False
        self._refusals: dict[Position, str] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def start(self) -> None:
        """Create the tables and start reading; block until the tables exist."""
        self._writer.prepare()
        self._thread.start()
        self._watch.start()

    def close(self, timeout_s: float) -> None:
        """Store the buffered records, commit and leave the group, within `timeout_s`.

        Records not stored by then are read again after the next start.
        """
        self._closing.set()
        self._watch.close()
        self._thread.join(timeout_s)
        for partition in self._partitions.values():
            partition.cancelled.set()
        self._thread.join(self._timeout_s)
        self._executor.shutdown(wait=False)

    @property
    def has_joined(self) -> bool:
        """True once the group has assigned partitions, some seconds after the start."""
        return self._joined

    @property
    def failure(self) -> BaseException | None:
        """The error that ended the sink's thread, None while it runs."""
        return self._failure

    @property
    def refusal(self) -> str | None:
        """Why ClickHouse refuses a block; None if it does not, or does not answer."""
        return next(iter(list(self._refusals.values())), None)

    @property
    def stalled(self) -> frozenset[Position]:
        """Partitions of this member that are not read although the client was replaced."""
        stuck = self._watch.stuck
        return stuck & self._consumer.assigned if stuck and self._consumer.assigned else stuck

    def _run(self) -> None:
        try:
            self._loop()
        except StoppedError:
            LOG.warning(
                "stopped before everything was stored; it is read again at the next start",
                extra={"action": "sink_stopped"},
            )
        except Exception as error:  # reported by the health check
            self._failure = error
            LOG.exception("the sink stopped", extra={"action": "sink_failed"})

    def _loop(self) -> None:
        while not self._closing.is_set():
            consumer = self._consumer = GroupConsumer(
                self._brokers,
                SINK_GROUP,
                self._topics,
                on_revoked=self._give_up,
                timeout_s=self._timeout_s,
            )
            patience_s = _CLOSE_S
            try:
                self._read(consumer)
                if self._closing.is_set():
                    self._drain()
                else:
                    patience_s = _LEAVE_S
                    self._give_up(list(self._partitions))
            finally:
                consumer.close(patience_s)  # another member can take over at once
            self._to_commit, self._commit = {}, None  # an old client's commit may never finish

    def _read(self, consumer: GroupConsumer) -> None:
        """Read until the sink is closed or reading stalls."""
        lag_at = 0.0
        while not self._closing.is_set() and not self._stands_still(consumer):
            is_busy = self._commit or any(
                partition.blocks for partition in self._partitions.values()
            )
            for batch in consumer.read(_POLL_S if is_busy else _IDLE_POLL_S):
                self._partition((batch.topic, batch.partition)).extend(
                    batch.offsets, batch.keys, batch.values
                )
            self._joined = consumer.has_joined
            self._settle()
            self._throttle(consumer)
            if time.monotonic() > lag_at:
                lag_at = time.monotonic() + _LAG_EVERY_S
                self._report_lag(consumer)

    def _stands_still(self, consumer: GroupConsumer) -> bool:
        """Return whether reading stalls although the brokers have more.

        Partitions with blocks that wait for ClickHouse, or of another member, do not count.
        """
        idle = {
            at
            for at in self._watch.still
            if at not in self._partitions or not self._partitions[at].blocks
        }
        found = idle & consumer.assigned if consumer.assigned else idle
        if found:
            named = partition_names(found)
            LOG.error(
                "reading stalls; the Kafka client is replaced: %s",
                named,
                extra={"action": "sink_stalled"},
            )
            STALLS.inc()
            self._watch.forget(frozenset(found))
        return bool(found)

    def _offsets(self) -> Offsets:
        return all_group_offsets(self._brokers, SINK_GROUP, self._topics, timeout_s=self._timeout_s)

    def _partition(self, at: Position) -> Partition:
        partition = self._partitions.get(at)
        if partition is None:
            # It starts at the assigned offset, so that a gap before the first message is noticed.
            partition = self._partitions[at] = Partition(
                at, self._limits, next_offset=self._consumer.start(at)
            )
        return partition

    def _settle(self, *, all_now: bool = False) -> None:
        """Collect finished inserts, start to commit them, and start inserts that are due."""
        for at, partition in self._partitions.items():
            if (offset := partition.finish()) is not None:
                self._to_commit[at] = offset
            partition.start_due(self._executor, self._store, all_now=all_now)
        self._take_commit()
        if self._to_commit and not self._commit:
            offsets = dict(self._to_commit)
            self._commit = offsets, self._consumer.begin_commit(offsets)

    def _take_commit(self) -> None:
        """Collect the result of the running commit; offsets that failed are committed again."""
        if self._commit and self._commit[1].done():
            offsets, outcome = self._commit
            self._commit = None
            if outcome.result():
                self._to_commit = {
                    at: offset
                    for at, offset in self._to_commit.items()
                    if offsets.get(at) != offset
                }

    def _throttle(self, consumer: GroupConsumer) -> None:
        held = sum(partition.held_bytes for partition in self._partitions.values())
        over = held > self._buffer_bytes
        wanted = {
            at
            for at, partition in self._partitions.items()
            if partition.blocks and (over or partition.is_behind)
        }
        if wanted != self._paused:
            consumer.pause(wanted - self._paused)
            consumer.resume(self._paused - wanted)
            self._paused = wanted

    def _drain(self) -> None:
        while any(partition.blocks for partition in self._partitions.values()):
            self._settle(all_now=True)
            wait([p.insert for p in self._partitions.values() if p.insert], timeout=_POLL_S)
            if any(partition.cancelled.is_set() for partition in self._partitions.values()):
                return
        if self._to_commit:
            self._consumer.begin_commit(self._to_commit)  # closing waits for it

    def _give_up(self, positions: list[Position]) -> None:
        """Finish running inserts of revoked partitions; discard other blocks."""
        leaving = [self._partitions.pop(at) for at in positions if at in self._partitions]
        self._paused -= set(positions)
        if not leaving:
            return
        wait([p.insert for p in leaving if p.insert], timeout=self._timeout_s)
        stored = {at: self._to_commit.pop(at) for at in positions if at in self._to_commit}
        for partition in leaving:
            partition.cancelled.set()
            if partition.insert and partition.insert.done() and not partition.insert.exception():
                stored[partition.at] = partition.blocks[0].next_offset
        if stored:
            self._consumer.begin_commit(stored)

    def _store(self, block: InsertBlock, cancelled: threading.Event) -> None:
        """Insert `block` in an insert thread; retry while ClickHouse or Kafka refuses it."""
        try:
            self._store_or_retry(block, cancelled)
        finally:
            self._refusals.pop(block.at, None)

    def _store_or_retry(self, block: InsertBlock, cancelled: threading.Event) -> None:
        pause_s = _FIRST_PAUSE_S
        while not cancelled.is_set():
            try:
                self._writer.write(block)
            except (ClickHouseUnavailableError, PublishError, QueueFullError) as error:
                self._note_refusal(block, error)
                LOG.warning(
                    "%s[%d] waits %.1f s: %s",
                    *block.at,
                    pause_s,
                    error,
                    extra={"action": "sink_retry"},
                )
                with RETRYING.track_inprogress():
                    cancelled.wait(pause_s)
                pause_s = min(pause_s * 2, self._retry_max_s)
            else:
                return
        raise StoppedError

    def _note_refusal(self, block: InsertBlock, error: MevError) -> None:
        """Record why ClickHouse refused `block`; time-outs are reported by its own check."""
        if isinstance(error, ClickHouseUnavailableError) and not isinstance(
            error, ClickHouseAwayError
        ):
            self._refusals[block.at] = error.detail
        else:
            self._refusals.pop(block.at, None)

    def _report_lag(self, consumer: GroupConsumer) -> None:
        lags: dict[str, int] = defaultdict(int)
        for (topic, _), messages in consumer.lag().items():
            lags[topic] += messages
        for partition in self._partitions.values():
            lags[partition.at[0]] += sum(len(block.values) for block in partition.blocks)
        for topic, messages in lags.items():
            LAG.labels(topic).set(messages)
        opened = [p.blocks[0].opened_at for p in self._partitions.values() if p.blocks]
        OLDEST.set(time.monotonic() - min(opened) if opened else 0.0)
