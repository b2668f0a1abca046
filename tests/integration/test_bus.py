"""Publishing, following and consuming in a group: on the embedded broker and on a real one."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from prometheus_client import REGISTRY

from mev.bus import tail as tail_module
from mev.bus.batch import PartitionBatch
from mev.bus.group import GroupConsumer, all_group_offsets
from mev.bus.kafka import (
    Brokers,
    BrokerUnavailableError,
    KafkaCluster,
    Position,
    PublishError,
    QueueFullError,
)
from mev.bus.publisher import Publisher
from mev.bus.tail import Tail
from mev.wire.registry import KafkaRecord
from tests.integration.brokers import (
    BOTH,
    TIMEOUT_S,
    new_topic,
    opened,
    read_all,
    real,
    records,
    values,
)
from tests.services.embedded import TemporaryBroker
from tests.services.kafka import RealKafka
from tests.services.service import free_port
from tests.services.waits import until


@pytest.fixture(params=BOTH)
def brokers(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    with opened(request) as found:
        yield found


@pytest.fixture
def topic(brokers: Brokers) -> str:
    return new_topic(brokers)


@pytest.fixture
def publisher(brokers: Brokers) -> Iterator[Publisher]:
    with closing(open_publisher(brokers)) as opened_publisher:
        yield opened_publisher


def open_publisher(
    brokers: Brokers,
    *,
    queue_messages: int = 100_000,
    queue_kbytes: int = 65_536,
    linger_ms: float = 1,
    timeout_s: float = 30,
) -> Publisher:
    return Publisher(
        brokers,
        queue_messages=queue_messages,
        queue_kbytes=queue_kbytes,
        linger_ms=linger_ms,
        timeout_s=timeout_s,
    )


class Follower:
    """A tail that keeps what it is given."""

    def __init__(self, brokers: Brokers, topic: str) -> None:
        self.batches: list[PartitionBatch] = []
        self._tail = Tail(brokers, [topic], self.batches.extend, timeout_s=TIMEOUT_S)
        self._tail.start()

    def close(self) -> None:
        self._tail.close()

    @property
    def values(self) -> list[bytes]:
        return [value for batch in list(self.batches) for value in batch.values]

    def by_partition(self) -> dict[int, list[tuple[int, bytes]]]:
        found: dict[int, list[tuple[int, bytes]]] = {}
        for batch in self.batches:
            found.setdefault(batch.partition, []).extend(
                zip(batch.offsets, batch.values, strict=True)
            )
        return found


def in_order_of_keys(messages: list[bytes], sent: list[KafkaRecord]) -> bool:
    """Return whether `messages` of one partition are those of its keys, in order."""
    keys = {record["key"] for record in sent if record["value"] in set(messages)}
    return messages == [record["value"] for record in sent if record["key"] in keys]


async def test_what_is_published_is_followed_from_the_start_on(
    brokers: Brokers, topic: str, publisher: Publisher
) -> None:
    await publisher.publish(topic, records(50, prefix="before-"))
    sent = records(3000, prefix="after-")
    with closing(await asyncio.to_thread(Follower, brokers, topic)) as follower:
        for start in range(0, len(sent), 500):
            await publisher.publish(topic, sent[start : start + 500])
        await asyncio.to_thread(until, lambda: len(follower.values) >= len(sent))
    assert sorted(follower.values) == [record["value"] for record in sent]
    stored = read_all(brokers, topic)
    for partition, messages in follower.by_partition().items():
        assert messages == [
            message for message in stored[partition] if message[1].startswith(b"after-")
        ]
        assert in_order_of_keys([value for _, value in messages], sent)


async def test_nothing_is_published_by_nothing(
    topic: str, publisher: Publisher, brokers: Brokers
) -> None:
    await publisher.publish(topic, [])
    publisher.publish_and_wait(topic, [])
    assert values(read_all(brokers, topic)) == []


async def test_the_queue_refuses_what_it_cannot_hold_and_takes_it_later(
    brokers: Brokers, topic: str
) -> None:
    sent = records(150)
    with closing(open_publisher(brokers, queue_messages=100, linger_ms=200)) as publisher:
        waiting = asyncio.create_task(publisher.publish(topic, sent[:100]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as caught:
            await publisher.publish(topic, sent[100:])
        assert caught.value.retry_after_s
        await waiting
        await publisher.publish(topic, sent[100:])
    assert sorted(values(read_all(brokers, topic))) == [record["value"] for record in sent]


async def test_a_queue_full_of_bytes_takes_the_same_records_later(
    brokers: Brokers, topic: str
) -> None:
    sent = records(2000, size=1000)
    with closing(open_publisher(brokers, queue_kbytes=1024, linger_ms=100)) as publisher:
        with pytest.raises(QueueFullError):
            await publisher.publish(topic, sent)
        await asyncio.to_thread(publisher.publish_and_wait, topic, sent[:500])
        for start in range(500, 2000, 500):
            await asyncio.to_thread(publisher.publish_and_wait, topic, sent[start : start + 500])
    assert set(values(read_all(brokers, topic))) == {record["value"] for record in sent}


async def test_a_publish_that_nobody_waits_for_any_more_disturbs_no_other(
    brokers: Brokers, topic: str, publisher: Publisher
) -> None:
    abandoned = asyncio.create_task(publisher.publish(topic, records(10, prefix="abandoned-")))
    await asyncio.sleep(0)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    for number in range(3):
        await publisher.publish(topic, records(10, prefix=f"{number}-"))
    assert len(values(read_all(brokers, topic))) == 40


async def test_closing_sends_what_is_queued(brokers: Brokers, topic: str) -> None:
    publisher = open_publisher(brokers, linger_ms=500)
    waiting = asyncio.create_task(publisher.publish(topic, records(10)))
    await asyncio.sleep(0)
    await asyncio.to_thread(publisher.close)
    await waiting
    assert len(values(read_all(brokers, topic))) == 10


class Member:
    """A member of a group that keeps what it reads."""

    def __init__(self, brokers: Brokers, group: str, topic: str) -> None:
        self.values: list[bytes] = []
        self.was_expelled = False
        self.next_offsets: dict[Position, int] = {}
        self.revoked: list[Position] = []
        self._consumer = GroupConsumer(
            brokers, group, [topic], on_revoked=self._give_up, timeout_s=TIMEOUT_S
        )
        self.pause, self.resume, self.lag, self.close = (
            self._consumer.pause,
            self._consumer.resume,
            self._consumer.lag,
            self._consumer.close,
        )

    def read(self) -> list[PartitionBatch]:
        found = self._consumer.read(0.05)
        for batch in found:
            at = batch.topic, batch.partition
            assert batch.offsets[0] >= self.next_offsets.get(at, 0)
            assert batch.offsets == sorted(set(batch.offsets))
            self.next_offsets[at] = batch.offsets[-1] + 1
            self.values += batch.values
        return found

    def commit(self) -> bool:
        return self._consumer.commit(self.next_offsets)

    def _give_up(self, positions: list[Position]) -> None:
        self.revoked += positions
        if leaving := {
            at: self.next_offsets.pop(at) for at in positions if at in self.next_offsets
        }:
            # A member that the group has expelled, as on a starved machine, cannot commit.
            self.was_expelled |= not self._consumer.commit(leaving)


def read_until(done: Callable[[], bool], *members: Member) -> None:
    """Let `members` read in turn until `done`."""

    def step() -> bool:
        for member in members:
            member.read()
        return done()

    until(step)


def test_a_member_reads_on_from_what_another_committed(real_kafka: RealKafka) -> None:
    brokers = real(real_kafka)
    group, topic = uuid.uuid4().hex, new_topic(brokers)
    with closing(open_publisher(brokers)) as publisher:
        publisher.publish_and_wait(topic, records(400, prefix="a-"))
        with closing(Member(brokers, group, topic)) as first:
            read_until(lambda: len(first.values) == 400, first)
            assert first.commit()
        publisher.publish_and_wait(topic, records(100, prefix="b-"))
    with closing(Member(brokers, group, topic)) as second:
        read_until(lambda: len(second.values) == 100, second)
        assert sorted(second.lag().values()) == [0] * 4
    assert sorted(first.values) == [record["value"] for record in records(400, prefix="a-")]
    assert sorted(second.values) == [record["value"] for record in records(100, prefix="b-")]


def test_what_was_not_committed_is_read_again(real_kafka: RealKafka) -> None:
    brokers = real(real_kafka)
    group, topic = uuid.uuid4().hex, new_topic(brokers)
    with closing(open_publisher(brokers)) as publisher:
        publisher.publish_and_wait(topic, records(100))
    with closing(Member(brokers, group, topic)) as first:
        read_until(lambda: len(first.values) == 100, first)
        first.next_offsets.clear()
    with closing(Member(brokers, group, topic)) as second:
        read_until(lambda: len(second.values) == 100, second)
    assert sorted(first.values) == sorted(second.values)


def test_a_second_member_shares_and_takes_over_without_loss(real_kafka: RealKafka) -> None:
    brokers = real(real_kafka)
    group, topic = uuid.uuid4().hex, new_topic(brokers)
    with closing(open_publisher(brokers)) as publisher:
        first = Member(brokers, group, topic)
        publisher.publish_and_wait(topic, records(200, prefix="a-"))
        read_until(lambda: len(first.values) == 200, first)
        with closing(Member(brokers, group, topic)) as second:
            read_until(lambda: len(first.revoked) == 2, first, second)
            publisher.publish_and_wait(topic, records(200, prefix="b-"))
            read_until(lambda: len(first.values) + len(second.values) == 400, first, second)
            assert set(second.next_offsets) == set(first.revoked)
            first.close()
            publisher.publish_and_wait(topic, records(200, prefix="c-"))
            read_until(lambda: len({*first.values, *second.values}) == 600, second)
    sent = [
        record["value"] for prefix in ("a-", "b-", "c-") for record in records(200, prefix=prefix)
    ]
    read = first.values + second.values
    assert set(read) == set(sent)
    if not first.was_expelled:  # else its successor repeats what it could not commit
        assert sorted(read) == sorted(sent)


def test_a_paused_partition_is_read_when_it_is_resumed(
    brokers: Brokers, topic: str, publisher: Publisher
) -> None:
    with closing(Member(brokers, uuid.uuid4().hex, topic)) as member:
        publisher.publish_and_wait(topic, records(100, keys=1, prefix="a-"))
        read_until(lambda: len(member.values) == 100, member)
        (busy,) = member.next_offsets
        member.pause([busy])
        publisher.publish_and_wait(topic, records(5000, keys=1, prefix="b-"))
        publisher.publish_and_wait(
            topic, [record for record in records(40, keys=40) if record["key"] != b"key-0"]
        )
        read_until(lambda: len(member.next_offsets) == 4, member)
        assert not [value for value in member.values if value.startswith(b"b-")]
        member.resume([busy])
        read_until(lambda: sum(value.startswith(b"b-") for value in member.values) == 5000, member)


async def test_a_tail_finds_partitions_added_later(
    real_kafka: RealKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "_REFRESH_S", 0.1)
    brokers = real(real_kafka)
    topic = new_topic(brokers)
    with closing(await asyncio.to_thread(Follower, brokers, topic)) as follower:
        admin = AdminClient(brokers.config())
        admin.create_partitions([NewPartitions(topic, 8)])[topic].result(TIMEOUT_S)
        sent = records(400, keys=100)
        with closing(open_publisher(brokers)) as publisher:
            await publisher.publish(topic, sent)
        await asyncio.to_thread(until, lambda: len(follower.values) >= 400)
    assert sorted(follower.values) == [record["value"] for record in sent]
    assert {batch.partition for batch in follower.batches} == set(range(8))


def test_a_tail_whose_client_gets_no_answer_any_more_goes_on_with_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tail_module, "_REFRESH_S", 0.1)

    def stalls() -> float:
        return REGISTRY.get_sample_value("mev_tail_stalls_total") or 0.0

    before, batches, topic = stalls(), list[PartitionBatch](), uuid.uuid4().hex
    with closing(TemporaryBroker(timeout_s=TIMEOUT_S)) as gone:
        options = dict(gone.brokers.options)
        tail = Tail(
            Brokers(servers=gone.brokers.servers, options=options),
            [topic],
            batches.extend,
            timeout_s=1,
            deaf_s=0.5,
        )
        tail.start()
    with (
        closing(tail),
        closing(TemporaryBroker(timeout_s=TIMEOUT_S)) as moved,
    ):  # the old address answers nobody any more
        with closing(open_publisher(moved.brokers)) as publisher:
            publisher.publish_and_wait(topic, records(100))
        options.update(
            {**moved.brokers.options, "bootstrap.servers": moved.brokers.servers}
        )  # for the clients to come
        until(lambda: sum(len(batch.values) for batch in batches) >= 100)
        assert stalls() == before + 1
    assert sorted(value for batch in batches for value in batch.values) == [
        record["value"] for record in records(100)
    ]


@pytest.mark.slow
async def test_what_was_acknowledged_outlives_a_broker_that_is_killed(
    real_kafka: RealKafka,
) -> None:
    brokers = real(real_kafka)
    topic = new_topic(brokers)
    acknowledged: list[bytes] = []

    async def publish(publisher: Publisher, prefix: str) -> None:
        batch = records(200, prefix=prefix)
        await publisher.publish(topic, batch)
        acknowledged.extend(record["value"] for record in batch)

    patient, hasty = open_publisher(brokers), open_publisher(brokers, timeout_s=1)
    with closing(patient), closing(hasty):
        for number in range(20):
            await publish(patient, f"before-{number}-")
        under_way = [
            asyncio.create_task(publish(patient, f"under-way-{number}-")) for number in range(20)
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(real_kafka.kill)
        with pytest.raises(PublishError) as caught:
            await publish(hasty, "refused-")
        assert caught.value.status == 503
        await asyncio.to_thread(real_kafka.start)
        outcomes = await asyncio.gather(*under_way, return_exceptions=True)
        assert not [
            outcome
            for outcome in outcomes
            if outcome is not None and not isinstance(outcome, PublishError)
        ]
        await publish(patient, "after-")
        await publish(hasty, "after-hasty-")
    found = values(await asyncio.to_thread(read_all, brokers, topic))
    assert len(acknowledged) >= 4400
    assert set(acknowledged) <= set(found)


@pytest.mark.slow
async def test_a_tail_goes_on_when_a_killed_broker_is_back(real_kafka: RealKafka) -> None:
    brokers = real(real_kafka)
    topic = new_topic(brokers)
    with (
        closing(await asyncio.to_thread(Follower, brokers, topic)) as follower,
        closing(open_publisher(brokers)) as publisher,
    ):
        await publisher.publish(topic, records(100, prefix="a-"))
        await asyncio.to_thread(until, lambda: len(follower.values) == 100)
        await asyncio.to_thread(real_kafka.kill)
        await asyncio.to_thread(real_kafka.start)
        await publisher.publish(topic, records(100, prefix="b-"))
        await asyncio.to_thread(until, lambda: len(follower.values) == 200)
    assert len(set(follower.values)) == 200


def test_a_cluster_answers(brokers: Brokers, topic: str) -> None:
    cluster = KafkaCluster(brokers, timeout_s=TIMEOUT_S)
    assert cluster.ping() == 1
    cluster.ensure_topics([topic])
    assert len(all_group_offsets(brokers, "nobody", [topic], timeout_s=TIMEOUT_S)) == 4
    assert cluster.id()
    assert cluster.id() == KafkaCluster(brokers, timeout_s=TIMEOUT_S).id()


def test_brokers_that_do_not_answer_are_named() -> None:
    nobody = Brokers(servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(
        BrokerUnavailableError,
        match=f"no Kafka broker answered at {nobody.servers} within 0.2 s .*KAFKA_BROKERS",
    ):
        KafkaCluster(nobody, timeout_s=0.2).ping()
    with pytest.raises(BrokerUnavailableError):
        all_group_offsets(nobody, "nobody", ["topic"], timeout_s=0.2)
    with (
        closing(Tail(nobody, ["topic"], lambda _: None, timeout_s=0.2)) as tail,
        pytest.raises(BrokerUnavailableError),
    ):
        tail.start()
