"""Consuming in a group, a batch of raw messages at a time, with commits under the caller's control.

After its brokers were frozen, a client may be left without any and never answer again: only :meth:`GroupConsumer.commit` waits for
it without a limit.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from mev.bus.batch import Batch, by_partition
from mev.bus.kafka import Brokers, Position

LOG = logging.getLogger(__name__)
_MAX_MESSAGES = 1000
_RETRY_PAUSE_S = 0.2


class GroupConsumer:
    """A member of consumer group `group` over `topics`. Belongs to one thread.

    `on_revoked` is called, inside :meth:`read` and :meth:`close`, with the partitions that go to another member or were lost: what is
    held of them must be finished and committed, or forgotten, before it returns. `timeout_s` bounds each wait for the brokers.
    """

    def __init__(
        self, brokers: Brokers, group: str, topics: Iterable[str], *, on_revoked: Callable[[list[Position]], None], timeout_s: float
    ) -> None:
        self._consumer = Consumer(
            {
                **brokers.config(
                    group_id=group,
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    partition_assignment_strategy="cooperative-sticky",
                    session_timeout_ms=10_000,
                    max_poll_interval_ms=60_000,  # also how long a group waits for a member that is gone but seems alive
                ),
                "on_commit": self._committed,
            }
        )
        self._on_revoked = on_revoked
        self._timeout_s = timeout_s
        self._starts: dict[Position, int | None] = {}
        self._paused: set[Position] = set()
        self._just_revoked: set[Position] = set()
        self._commits: dict[frozenset[tuple[Position, int]], Future[bool]] = {}
        self._left_behind = False
        self.has_joined = False
        self._consumer.subscribe(list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    @property
    def assigned(self) -> frozenset[Position]:
        """The partitions that are this member's."""
        return frozenset(self._starts)

    def start(self, at: Position) -> int | None:
        """Return the group's offset of `at` when it was assigned, None when it had none or it is not known."""
        return self._starts.get(at)

    def read(self, timeout_s: float) -> list[Batch]:
        """Return the next messages: at once when there are some, else after at most `timeout_s`."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        self._just_revoked.clear()
        messages = self._consumer.consume(_MAX_MESSAGES - 1, 0)
        # The client drops what it held of a partition that goes, but not the message it gave out already.
        if (first.topic(), first.partition()) not in self._just_revoked:
            messages.insert(0, first)
        return by_partition(messages)

    def begin_commit(self, next_offsets: Mapping[Position, int]) -> Future[bool]:
        """Begin to commit `next_offsets`. Whether it worked comes within :meth:`read` or :meth:`close`, or never; this does not wait.

        A partition is not another member's before what was begun in `on_revoked` has ended.
        """
        outcome = self._commits[frozenset(next_offsets.items())] = Future[bool]()
        try:
            self._consumer.commit(offsets=[TopicPartition(*at, offset) for at, offset in next_offsets.items()], asynchronous=True)
        except KafkaException as error:
            self._committed(error.args[0], [TopicPartition(*at, offset) for at, offset in next_offsets.items()])
        return outcome

    def commit(self, next_offsets: Mapping[Position, int]) -> bool:
        """Commit `next_offsets`; say whether it worked. A failed commit is repeated by the next one. Blocks until the brokers answer."""
        try:
            done = self._consumer.commit(offsets=[TopicPartition(*at, offset) for at, offset in next_offsets.items()], asynchronous=False)
        except KafkaException as error:
            return _is_committed(error.args[0], [])
        return _is_committed(None, done or [])

    def pause(self, positions: Iterable[Position]) -> None:
        """Read no more of `positions` until :meth:`resume`, or until they are another member's."""
        wanted = set(positions)
        self._consumer.pause([TopicPartition(*at) for at in wanted])
        self._paused |= wanted

    def resume(self, positions: Iterable[Position]) -> None:
        """Read `positions` again."""
        wanted = set(positions)
        self._consumer.resume([TopicPartition(*at) for at in wanted])
        self._paused -= wanted

    def lag(self) -> dict[Position, int]:
        """Return how many messages of each assigned partition have not been read, as far as the client knows without asking."""
        lags = {}
        for at in self._consumer.position([TopicPartition(*at) for at in self._starts]):
            try:
                high = self._consumer.get_watermark_offsets(at, cached=True)[1]
            except KafkaException:  # the client does not know the partition any more
                continue
            lags[at.topic, at.partition] = max(0, high - max(at.offset, 0))
        return lags

    def close(self, wait_s: float = 10.0) -> None:
        """Leave the group. A client that has not come to an end within `wait_s` is left behind."""
        closing = threading.Thread(target=self._consumer.close, name="group-close", daemon=True)
        closing.start()
        closing.join(wait_s)
        self._left_behind = closing.is_alive()
        if self._left_behind:
            LOG.warning("the client did not close within %g s", wait_s, extra={"action": "consumer_left_behind"})

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.has_joined = True
        starts = self._find_starts(partitions)
        self._starts.update({(at.topic, at.partition): starts.get((at.topic, at.partition)) for at in partitions})
        # Left to itself, the client asks for the offsets only once, and where that fails it never reads the partition.
        known = [TopicPartition(*at, OFFSET_BEGINNING if offset is None else offset) for at, offset in starts.items()]
        try:
            consumer.incremental_assign(known or partitions)
        except KafkaException as error:
            LOG.warning("partitions not taken: %s", error.args[0].str(), extra={"action": "assignment_failed"})

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        positions = [(at.topic, at.partition) for at in partitions]
        self._just_revoked.update(positions)
        for at in positions:
            self._starts.pop(at, None)
        if self._left_behind:
            return
        # The client would still hold a partition back when it returns to this member.
        if paused := self._paused.intersection(positions):
            consumer.resume([TopicPartition(*at) for at in paused])
            self._paused -= paused
        self._on_revoked(positions)

    def _find_starts(self, partitions: list[TopicPartition]) -> dict[Position, int | None]:
        """Return the group's offset of each of `partitions`, or nothing when the brokers do not tell them."""
        deadline = time.monotonic() + self._timeout_s
        while partitions:
            error, found = self._ask_committed(partitions, deadline - time.monotonic())
            if error is None:
                return found
            if time.monotonic() + _RETRY_PAUSE_S > deadline:
                LOG.warning("a gap before the first messages would not be seen: %s", error.str(), extra={"action": "no_start"})
                break
            time.sleep(_RETRY_PAUSE_S)
        return {}

    def _ask_committed(self, partitions: list[TopicPartition], timeout_s: float) -> tuple[KafkaError | None, dict[Position, int | None]]:
        try:
            found = self._consumer.committed(partitions, timeout=timeout_s)
        except KafkaException as error:
            return error.args[0], {}
        failed = next((at.error for at in found if at.error is not None), None)
        return failed, {(at.topic, at.partition): at.offset if at.offset >= 0 else None for at in found}

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        outcome = self._commits.pop(frozenset(((at.topic, at.partition), at.offset) for at in partitions), None)
        is_committed = _is_committed(error, partitions)
        if outcome is not None:
            outcome.set_result(is_committed)


def _is_committed(error: KafkaError | None, partitions: list[TopicPartition]) -> bool:
    error = error or next((at.error for at in partitions if at.error is not None), None)
    if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001 - the client's name for it
        LOG.warning("offsets not committed: %s", error.str(), extra={"action": "commit_failed"})
    return error is None
