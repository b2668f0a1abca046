"""Consuming in a group, a batch of raw messages at a time, with commits under the caller's control."""

import logging
from collections.abc import Callable, Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from mev.bus.batch import Batch, by_partition
from mev.bus.errors import BrokerUnavailableError
from mev.bus.kafka import Brokers, Position

LOG = logging.getLogger(__name__)
_MAX_MESSAGES = 1000


class GroupConsumer:
    """A member of consumer group `group` over `topics`. Belongs to one thread.

    `on_revoked` is called, inside :meth:`read`, with the partitions that go to another member or were lost: what is held of them
    must be finished and committed, or forgotten, before it returns.
    """

    def __init__(
        self, brokers: Brokers, group: str, topics: Iterable[str], *, on_revoked: Callable[[list[Position]], None], timeout_s: float
    ) -> None:
        self._consumer = Consumer(
            brokers.config(
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                partition_assignment_strategy="cooperative-sticky",
                session_timeout_ms=10_000,
            )
        )
        self._timeout_s = timeout_s
        self._just_revoked: set[Position] = set()

        def revoked(_consumer: Consumer, partitions: list[TopicPartition]) -> None:
            positions = [(at.topic, at.partition) for at in partitions]
            self._just_revoked.update(positions)
            on_revoked(positions)

        def assigned(_consumer: Consumer, _partitions: list[TopicPartition]) -> None:
            self.has_joined = True

        self.has_joined = False
        self._consumer.subscribe(list(topics), on_assign=assigned, on_revoke=revoked, on_lost=revoked)

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

    def committed(self, at: Position) -> int | None:
        """Return the group's offset of `at`, None when it has none. Blocks.

        :raises BrokerUnavailableError: when the brokers do not answer.
        """
        try:
            (found,) = self._consumer.committed([TopicPartition(*at)], timeout=self._timeout_s)
        except KafkaException as error:
            raise BrokerUnavailableError(f"offsets cannot be read: {error.args[0].str()}", retry_after_s=5) from None
        return int(found.offset) if found.offset >= 0 else None

    def commit(self, next_offsets: dict[Position, int]) -> bool:
        """Commit `next_offsets`; say whether it worked. A failed commit is repeated by the next one."""
        try:
            self._consumer.commit(offsets=[TopicPartition(*at, offset) for at, offset in next_offsets.items()], asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._NO_OFFSET:  # noqa: SLF001 - the client's name for it
                LOG.warning("offsets not committed: %s", error.args[0].str(), extra={"action": "commit_failed"})
            return False
        return True

    def pause(self, positions: Iterable[Position]) -> None:
        """Read no more of `positions` until :meth:`resume`."""
        self._consumer.pause([TopicPartition(*at) for at in positions])

    def resume(self, positions: Iterable[Position]) -> None:
        """Read `positions` again."""
        self._consumer.resume([TopicPartition(*at) for at in positions])

    def lag(self) -> dict[Position, int]:
        """Return how many messages of each assigned partition have not been read, as far as the client knows without asking."""
        lags = {}
        for at in self._consumer.position(self._consumer.assignment()):
            high = self._consumer.get_watermark_offsets(at, cached=True)[1]
            lags[at.topic, at.partition] = max(0, high - max(at.offset, 0))
        return lags

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
