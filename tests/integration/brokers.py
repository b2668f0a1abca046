"""Both kinds of brokers, and what the tests ask of them beside the code under test."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from mev.bus.kafka import Brokers, KafkaCluster
from mev.wire.registry import KafkaRecord
from tests.services.embedded import TemporaryBroker
from tests.services.kafka import RealKafka
from tests.services.waits import until

TIMEOUT_S = 10.0
BOTH = ["embedded", pytest.param("real", marks=pytest.mark.real_kafka)]


@contextmanager
def opened(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    """Open the brokers named by a fixture's parameter: new embedded ones, or the real ones."""
    if request.param == "real":
        yield real(request.getfixturevalue("real_kafka"))
        return
    with closing(TemporaryBroker(timeout_s=TIMEOUT_S)) as broker:
        yield broker.brokers


def real(server: RealKafka) -> Brokers:
    """Give the address of `server`."""
    return Brokers(servers=server.brokers)


def new_topic(brokers: Brokers) -> str:
    """Make a topic that no other test knows."""
    topic = f"test-{uuid.uuid4().hex}"
    KafkaCluster(brokers, timeout_s=TIMEOUT_S).ensure_topics([topic])
    return topic


def renew(brokers: Brokers, group: str, topics: Iterable[str]) -> None:
    """Make `topics` empty, and `group` know nothing of them."""
    if not brokers.embedded:
        admin = AdminClient(brokers.config())
        until(
            lambda: _gone(admin.delete_consumer_groups([group]), KafkaError.GROUP_ID_NOT_FOUND),
            what=f"{group} was not deleted",
        )
        until(
            lambda: _gone(admin.delete_topics(list(topics)), KafkaError.UNKNOWN_TOPIC_OR_PART),
            what="topics were not deleted",
        )
    KafkaCluster(brokers, timeout_s=TIMEOUT_S).ensure_topics(topics)


def _gone(futures: Mapping[str, Future[Any]], unknown: int) -> bool:
    """Say whether nothing is left to delete; a broker that is still starting says to come again."""
    errors = [
        error.args[0]
        for future in futures.values()
        if isinstance(error := future.exception(TIMEOUT_S), KafkaException)
    ]
    return all(error.code() == unknown for error in errors)


def records(count: int, *, keys: int = 10, size: int = 0, prefix: str = "") -> list[KafkaRecord]:
    """Make records with different values, `size` bytes or as long as they are, on `keys` keys."""
    return [
        {"key": f"key-{n % keys}".encode(), "value": f"{prefix}{n:06d}".encode().ljust(size, b".")}
        for n in range(count)
    ]


def read_all(brokers: Brokers, topic: str) -> dict[int, list[tuple[int, bytes]]]:
    """Return (offset, value) of everything a topic holds, by partition."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    with closing(
        Consumer(brokers.config(group_id=uuid.uuid4().hex, enable_auto_commit=False))
    ) as consumer:
        ends = {}
        for number in consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions:
            low, ends[number] = _watermarks(consumer, TopicPartition(topic, number))
            consumer.incremental_assign([TopicPartition(topic, number, low)])
            found[number] = []
            if low == ends[number]:
                del ends[number]

        def read() -> int:
            for message in consumer.consume(1000, 0.1):
                assert message.error() is None
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                found[partition].append((offset, message.value() or b""))
                if offset + 1 == ends.get(partition):
                    del ends[partition]
            return sum(map(len, found.values()))

        until(read, lambda _: not ends)
    return found


def _watermarks(consumer: Consumer, at: TopicPartition) -> tuple[int, int]:
    """Return where a partition begins and ends; a new one may have no leader for a moment."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            low, high = consumer.get_watermark_offsets(at, timeout=TIMEOUT_S)
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return low, high


def values(found: dict[int, list[tuple[int, bytes]]]) -> list[bytes]:
    """Return all values of :func:`read_all`."""
    return [value for messages in found.values() for _, value in messages]
