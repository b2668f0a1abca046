"""Consumer group member that reads raw messages in batches; the caller controls commits.

A client can lose all brokers after they were suspended, and then never answers: only
:meth:`GroupConsumer.commit` waits without a limit.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from mev.bus.batch import PartitionBatch, by_partition
from mev.bus.kafka import POLL_S, Brokers, BrokerUnavailableError, Position

LOG = logging.getLogger(__name__)
_MAX_MESSAGES = 1000
_RETRY_PAUSE_S = 0.2
Offsets = dict[Position, tuple[int, int, int]]


class GroupConsumer:
    """A member of consumer group `group` over `topics`; belongs to one thread.

    `on_revoked` is called inside :meth:`read` and :meth:`close` with the partitions that move to
    another member or were lost: it must finish and commit their messages, or drop them, before it
    returns. `timeout_s` limits each wait for the brokers.
    """

    def __init__(
        self,
        brokers: Brokers,
        group: str,
        topics: Iterable[str],
        *,
        on_revoked: Callable[[list[Position]], None],
        timeout_s: float,
    ) -> None:
        self._consumer = Consumer(
            {
                **brokers.config(
                    group_id=group,
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    partition_assignment_strategy="cooperative-sticky",
                    session_timeout_ms=10_000,
                    max_poll_interval_ms=60_000,  # also the time until a hanging member is removed
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
        self._consumer.subscribe(
            list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    @property
    def assigned(self) -> frozenset[Position]:
        """Partitions assigned to this member."""
        return frozenset(self._starts)

    def start(self, at: Position) -> int | None:
        """Return the committed offset of `at` at its assignment, or None if there is none."""
        return self._starts.get(at)

    def read(self, timeout_s: float) -> list[PartitionBatch]:
        """Return the next messages: at once if available, else after at most `timeout_s`."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        self._just_revoked.clear()
        messages = self._consumer.consume(_MAX_MESSAGES - 1, 0)
        # The client drops buffered messages of a revoked partition, but not the one already
        # returned.
        if (first.topic(), first.partition()) not in self._just_revoked:
            messages.insert(0, first)
        return by_partition(messages)

    def begin_commit(self, next_offsets: Mapping[Position, int]) -> Future[bool]:
        """Start to commit `next_offsets` without waiting.

        The result arrives during :meth:`read` or :meth:`close`, or never. A commit started in
        `on_revoked` ends before another member receives the partition.
        """
        outcome = self._commits[frozenset(next_offsets.items())] = Future[bool]()
        try:
            self._consumer.commit(
                offsets=[TopicPartition(*at, offset) for at, offset in next_offsets.items()],
                asynchronous=True,
            )
        except KafkaException as error:
            self._committed(
                error.args[0], [TopicPartition(*at, offset) for at, offset in next_offsets.items()]
            )
        return outcome

    def commit(self, next_offsets: Mapping[Position, int]) -> bool:
        """Commit `next_offsets`; return whether it succeeded.

        Blocks until the brokers answer. A later commit includes a failed one.
        """
        try:
            done = self._consumer.commit(
                offsets=[TopicPartition(*at, offset) for at, offset in next_offsets.items()],
                asynchronous=False,
            )
        except KafkaException as error:
            return _is_committed(error.args[0], [])
        return _is_committed(None, done or [])

    def pause(self, positions: Iterable[Position]) -> None:
        """Stop reading `positions` until :meth:`resume` or until they are revoked."""
        wanted = set(positions)
        self._consumer.pause([TopicPartition(*at) for at in wanted])
        self._paused |= wanted

    def resume(self, positions: Iterable[Position]) -> None:
        """Read `positions` again."""
        wanted = set(positions)
        self._consumer.resume([TopicPartition(*at) for at in wanted])
        self._paused -= wanted

    def lag(self) -> dict[Position, int]:
        """Return the lag of each assigned partition as known to the client."""
        lags = {}
        for at in self._consumer.position([TopicPartition(*at) for at in self._starts]):
            try:
                high = self._consumer.get_watermark_offsets(at, cached=True)[1]
            except KafkaException:  # the client does not know the partition any more
                continue
            lags[at.topic, at.partition] = max(0, high - max(at.offset, 0))
        return lags

    def close(self, wait_s: float = 10.0) -> None:
        """Leave the group; a client that does not close within `wait_s` is abandoned."""
        closing = threading.Thread(target=self._consumer.close, name="group-close", daemon=True)
        closing.start()
        closing.join(wait_s)
        self._left_behind = closing.is_alive()
        if self._left_behind:
            LOG.warning(
                "the client did not close within %g s",
                wait_s,
                extra={"action": "consumer_left_behind"},
            )

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.has_joined = True
        starts = self._find_starts(partitions)
        self._starts.update(
            {(at.topic, at.partition): starts.get((at.topic, at.partition)) for at in partitions}
        )
        # The client requests the offsets once only, and never reads a partition where that fails.
        known = [
            TopicPartition(*at, OFFSET_BEGINNING if offset is None else offset)
            for at, offset in starts.items()
        ]
        try:
            consumer.incremental_assign(known or partitions)
        except KafkaException as error:
            LOG.warning(
                "partitions not taken: %s",
                error.args[0].str(),
                extra={"action": "assignment_failed"},
            )

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        positions = [(at.topic, at.partition) for at in partitions]
        self._just_revoked.update(positions)
        for at in positions:
            self._starts.pop(at, None)
        if self._left_behind:
            return
        # A paused partition would still be paused when it returns to this member.
        if paused := self._paused.intersection(positions):
            consumer.resume([TopicPartition(*at) for at in paused])
            self._paused -= paused
        self._on_revoked(positions)

    def _find_starts(self, partitions: list[TopicPartition]) -> dict[Position, int | None]:
        """Return the committed offset of each of `partitions`.

        Without an answer of the brokers the result is empty.
        """
        deadline = time.monotonic() + self._timeout_s
        while partitions:
            error, found = self._ask_committed(partitions, deadline - time.monotonic())
            if error is None:
                return found
            if time.monotonic() + _RETRY_PAUSE_S > deadline:
                LOG.warning(
                    "a gap before the first messages would not be seen: %s",
                    error.str(),
                    extra={"action": "no_start"},
                )
                break
            time.sleep(_RETRY_PAUSE_S)
        return {}

    def _ask_committed(
        self, partitions: list[TopicPartition], timeout_s: float
    ) -> tuple[KafkaError | None, dict[Position, int | None]]:
        try:
            found = self._consumer.committed(partitions, timeout=timeout_s)
        except KafkaException as error:
            return error.args[0], {}
        failed = next((at.error for at in found if at.error is not None), None)
        return failed, {
            (at.topic, at.partition): at.offset if at.offset >= 0 else None for at in found
        }

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        outcome = self._commits.pop(
            frozenset(((at.topic, at.partition), at.offset) for at in partitions), None
        )
        is_committed = _is_committed(error, partitions)
        if outcome is not None:
            outcome.set_result(is_committed)


def _is_committed(error: KafkaError | None, partitions: list[TopicPartition]) -> bool:
    error = error or next((at.error for at in partitions if at.error is not None), None)
    if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
        LOG.warning("offsets not committed: %s", error.str(), extra={"action": "commit_failed"})
    return error is None


def group_offsets(
    member: Consumer, partitions: list[TopicPartition], *, timeout_s: float
) -> Offsets:
    """Return (earliest, latest, committed) of `partitions` for the group of `member`; blocks.

    Without a commit, the earliest offset counts as committed.
    """
    offsets = {}
    for at in member.committed(partitions, timeout=timeout_s):
        earliest, latest = member.get_watermark_offsets(at, timeout=timeout_s)
        offsets[at.topic, at.partition] = earliest, latest, max(at.offset, earliest)
    return offsets


def without_messages(
    brokers: Brokers, positions: Mapping[Position, int], *, timeout_s: float
) -> frozenset[Position]:
    """Return those of `positions` behind which the partition has only offsets of lost messages.

    Blocks, at most `timeout_s`; a partition that gives no answer is not returned.
    """
    reader = Consumer(
        brokers.config(
            group_id="mev-probe",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            enable_partition_eof=True,
        )
    )
    empty, left = set(), set(positions)
    try:
        reader.assign([TopicPartition(*at, offset) for at, offset in positions.items()])
        deadline = time.monotonic() + timeout_s
        while left and time.monotonic() < deadline:
            message = reader.poll(POLL_S)
            if message is None:
                continue
            at = str(message.topic()), int(message.partition() or 0)
            error = message.error()
            if error is None:
                left.discard(at)
            elif error.code() == KafkaError._PARTITION_EOF and at in left:  # noqa: SLF001
                left.discard(at)
                empty.add(at)
    finally:
        reader.close()
    return frozenset(empty)


def all_group_offsets(
    brokers: Brokers, group: str, topics: Iterable[str], *, timeout_s: float
) -> Offsets:
    """Return :func:`group_offsets` of all partitions of `topics`; blocks.

    :raises BrokerUnavailableError: when the brokers do not answer.
    """
    member = Consumer(brokers.config(group_id=group, enable_auto_commit=False))
    try:
        found = [
            (topic, member.list_topics(topic, timeout=timeout_s).topics[topic].partitions)
            for topic in topics
        ]
        return group_offsets(
            member,
            [TopicPartition(topic, number) for topic, numbers in found for number in numbers],
            timeout_s=timeout_s,
        )
    except KafkaException as error:
        raise BrokerUnavailableError(
            f"offsets cannot be read: {error.args[0].str()}", retry_after_s=5
        ) from None
    finally:
        member.close()
