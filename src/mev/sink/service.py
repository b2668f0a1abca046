"""The sink: one consumer group, blocks per partition, offsets committed after the insert.

A crash at any point repeats blocks, and a repeat adds nothing. While ClickHouse is away, blocks wait, then reading stops; nothing
is dropped and nothing needs a restart. Where reading stands still although Kafka has more, the client is replaced by a new one.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from prometheus_client import Counter, Gauge

from mev.bus.errors import PublishError, QueueFullError
from mev.bus.group import GroupConsumer
from mev.bus.kafka import Brokers, Position
from mev.bus.offsets import Offsets, all_group_offsets
from mev.sink.block import Block
from mev.sink.partition import BlockLimits, Partition
from mev.sink.watch import Watch
from mev.sink.writer import Writer
from mev.store.clickhouse import ClickHouseUnavailableError
from mev.wiring import SINK_GROUP

LOG = logging.getLogger(__name__)

LAG = Gauge("mev_sink_lag_messages", "Messages in Kafka that are not stored yet.", ["topic"])
STALLS = Counter("mev_sink_stalls_total", "Times reading stood still and was begun anew.")
RETRYING = Gauge("mev_sink_retrying_blocks", "Blocks that ClickHouse did not take and that are tried again.")
_POLL_S = 0.02
_LAG_EVERY_S = 1.0
_FIRST_PAUSE_S = 0.2
_CLOSE_S = 10.0
_LEAVE_S = 1.0  # of a client that stands still


class StoppedError(Exception):
    """The sink stopped, or lost the partition, before the block was stored."""


class Sink:
    """Reads `topics` and stores them through `writer`, in a thread of its own.

    `buffer_bytes` bounds what is held in memory, `retry_max_s` the pause between tries, `timeout_s` the wait for brokers, `stall_s`
    how long reading may stand still.
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
        self._watch = Watch(self._offsets, stall_s=stall_s)
        self._closing = threading.Event()
        self._joined = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def start(self) -> None:
        """Create the tables and start reading. Blocks until the tables exist."""
        self._writer.prepare()
        self._thread.start()
        self._watch.start()

    def close(self, timeout_s: float) -> None:
        """Store what is held, commit and leave the group, within `timeout_s`; what is not stored by then is read again next time."""
        self._closing.set()
        self._watch.close()
        self._thread.join(timeout_s)
        for partition in self._partitions.values():
            partition.cancelled.set()
        self._thread.join(self._timeout_s)
        self._executor.shutdown(wait=False)

    @property
    def has_joined(self) -> bool:
        """Whether the group has given this member its share, which takes some seconds after the start."""
        return self._joined

    @property
    def failure(self) -> BaseException | None:
        """Why the sink's thread ended, when it should not have."""
        return self._failure

    def _run(self) -> None:
        try:
            self._loop()
        except StoppedError:
            LOG.warning("stopped before everything was stored; it is read again at the next start", extra={"action": "sink_stopped"})
        except Exception as error:  # the thread's last word: health reports it
            self._failure = error
            LOG.exception("the sink stopped", extra={"action": "sink_failed"})

    def _loop(self) -> None:
        while not self._closing.is_set():
            consumer = self._consumer = GroupConsumer(
                self._brokers, SINK_GROUP, self._topics, on_revoked=self._give_up, timeout_s=self._timeout_s
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
                consumer.close(patience_s)  # however it ended: another member can go on at once
            self._to_commit, self._commit = {}, None  # an old client's commit may never end

    def _read(self, consumer: GroupConsumer) -> None:
        """Read until the sink is closed, or stands still."""
        lag_at = 0.0
        while not self._closing.is_set() and not self._stands_still(consumer):
            for batch in consumer.read(_POLL_S):
                self._partition((batch.topic, batch.partition)).extend(batch.offsets, batch.keys, batch.values)
            self._joined = consumer.has_joined
            self._settle()
            self._throttle(consumer)
            if time.monotonic() > lag_at:
                lag_at = time.monotonic() + _LAG_EVERY_S
                self._report_lag(consumer)

    def _stands_still(self, consumer: GroupConsumer) -> bool:
        """Say whether the brokers have more than is read, and neither ClickHouse nor another member is why it stays there."""
        idle = {at for at in self._watch.still if at not in self._partitions or not self._partitions[at].blocks}
        found = idle & consumer.assigned if consumer.assigned else idle
        if found:
            named = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(found))
            LOG.error("reading stands still and is begun anew: %s", named, extra={"action": "sink_stalled"})
            STALLS.inc()
            self._watch.forget()
        return bool(found)

    def _offsets(self) -> Offsets:
        return all_group_offsets(self._brokers, SINK_GROUP, self._topics, timeout_s=self._timeout_s)

    def _partition(self, at: Position) -> Partition:
        partition = self._partitions.get(at)
        if partition is None:  # beginning where it was assigned, so that a gap before the first message is seen too
            partition = self._partitions[at] = Partition(at, self._limits, next_offset=self._consumer.start(at))
        return partition

    def _settle(self, *, all_now: bool = False) -> None:
        """Take what was stored, begin to commit it, and start the inserts that are due."""
        for at, partition in self._partitions.items():
            if (offset := partition.finish()) is not None:
                self._to_commit[at] = offset
            partition.start_due(self._executor, self._store, all_now=all_now)
        self._take_commit()
        if self._to_commit and not self._commit:
            offsets = dict(self._to_commit)
            self._commit = offsets, self._consumer.begin_commit(offsets)

    def _take_commit(self) -> None:
        """Take what became of the commit under way, if that is known; what failed is committed again."""
        if self._commit and self._commit[1].done():
            offsets, outcome = self._commit
            self._commit = None
            if outcome.result():
                self._to_commit = {at: offset for at, offset in self._to_commit.items() if offsets.get(at) != offset}

    def _throttle(self, consumer: GroupConsumer) -> None:
        held = sum(partition.held_bytes for partition in self._partitions.values())
        over = held > self._buffer_bytes
        wanted = {at for at, partition in self._partitions.items() if partition.blocks and (over or partition.is_behind)}
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
        """Finish what is under way of partitions that go to another member; forget the rest, which is read again there."""
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

    def _store(self, block: Block, cancelled: threading.Event) -> None:
        """Store `block`, again and again while ClickHouse or Kafka does not take it. Runs in an insert thread."""
        pause_s = _FIRST_PAUSE_S
        while not cancelled.is_set():
            try:
                self._writer.write(block)
            except (ClickHouseUnavailableError, PublishError, QueueFullError) as error:
                LOG.warning("%s[%d] waits %.1f s: %s", *block.at, pause_s, error, extra={"action": "sink_retry"})
                with RETRYING.track_inprogress():
                    cancelled.wait(pause_s)
                pause_s = min(pause_s * 2, self._retry_max_s)
            else:
                return
        raise StoppedError

    def _report_lag(self, consumer: GroupConsumer) -> None:
        lags: dict[str, int] = defaultdict(int)
        for (topic, _), messages in consumer.lag().items():
            lags[topic] += messages
        for partition in self._partitions.values():
            lags[partition.at[0]] += sum(len(block.values) for block in partition.blocks)
        for topic, messages in lags.items():
            LAG.labels(topic).set(messages)
