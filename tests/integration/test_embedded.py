"""Tests of the embedded broker under abuse: killed, stopped, unknown clients, odd consumers."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from mev.broker.wire import ErrorCode
from mev.bus.embedded import AGENT_USER, EmbeddedBroker, embedded_brokers
from mev.bus.kafka import PARTITIONS, Brokers, BrokerUnavailableError, KafkaCluster, PublishError
from mev.bus.publisher import Publisher
from mev.core.supervisor import RestartPolicy
from mev.wire.registry import EVENT_TYPES
from mev.wire.topics import AUDIT, CONTROL, REPORT
from tests.integration.brokers import TIMEOUT_S, new_topic, read_all, records, values
from tests.services.waits import until
from tests.unit.broker.client import joined, produced
from tests.unit.broker.test_batches import UNREADABLE

OPPORTUNITY = EVENT_TYPES["opportunity"].topic


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    policy = RestartPolicy(probe_s=0.1, hang_s=0.5)
    protected = ("sink", [OPPORTUNITY])
    with closing(
        EmbeddedBroker(tmp_path / "kafka", timeout_s=TIMEOUT_S, policy=policy, protected=protected)
    ) as found:
        yield found


def publish(brokers: Brokers, topic: str, prefix: str) -> None:
    """Publish 100 records, waiting for a broker that is away."""
    publisher = Publisher(
        brokers, queue_messages=1000, queue_kbytes=1024, linger_ms=0, timeout_s=60
    )
    with closing(publisher):
        publisher.publish_and_wait(topic, records(100, prefix=prefix))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_broker_is_started_again_at_its_address_with_what_it_acknowledged(
    broker: EmbeddedBroker, number: signal.Signals
) -> None:
    topic = new_topic(broker.brokers)
    publish(broker.brokers, topic, "before-")
    before = broker.supervisor.pid
    assert before is not None
    os.kill(before, number)
    publish(broker.brokers, topic, "after-")
    until(lambda: broker.supervisor.restarts == 1 and broker.supervisor.problem is None)
    assert broker.supervisor.pid != before
    expected = [
        record["value"]
        for prefix in ("before-", "after-")
        for record in records(100, prefix=prefix)
    ]
    assert sorted(values(read_all(broker.brokers, topic))) == sorted(expected)


def test_consumers_of_one_group_with_different_assignors_do_no_harm(broker: EmbeddedBroker) -> None:
    topic, group = new_topic(broker.brokers), uuid.uuid4().hex
    errors: list[KafkaError] = []

    def told(error: KafkaError) -> None:
        errors.append(error)

    members = [
        Consumer(
            {
                **broker.brokers.config(group_id=group, partition_assignment_strategy=name),
                "error_cb": told,
            }
        )
        for name in ("range", "cooperative-sticky")
    ]
    for member in members:
        member.subscribe([topic])

    def step() -> bool:
        for member in members:
            message = member.poll(0.05)
            if message is not None and (error := message.error()) is not None:
                errors.append(error)
        return any(error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL for error in errors)

    until(step, what="no member was told that their assignors do not fit")
    assert KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ping() == 1
    assert broker.supervisor.restarts == 0
    for member in members:
        member.close()


def test_client_without_the_password_is_refused(broker: EmbeddedBroker) -> None:
    KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ensure_topics([OPPORTUNITY])
    servers = broker.brokers.servers
    wrong = {**broker.brokers.options, "sasl.password": "wrong"}
    unknown = {**broker.brokers.options, "sasl.username": "root"}
    for anonymous in (
        Brokers(servers=servers),
        Brokers(servers=servers, options=wrong),
        Brokers(servers=servers, options=unknown),
    ):
        producer = Producer(anonymous.config(message_timeout_ms=1500))
        with pytest.raises(KafkaException):
            producer.list_topics(timeout=1)
        producer.produce(OPPORTUNITY, b"forged")
        producer.flush(5)
    assert KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ping() == 1
    assert values(read_all(broker.brokers, OPPORTUNITY)) == []


def test_raw_produce_before_authentication_ends_the_connection(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ensure_topics([OPPORTUNITY])
    topic = new_topic(broker.brokers)
    publish(broker.brokers, topic, "")
    segments = (tmp_path / "kafka" / "topics" / topic).glob("*/*.log")
    batch = next(content for segment in segments if (content := segment.read_bytes()))
    name = OPPORTUNITY.encode()
    fields = [
        struct.pack(">hhih", 0, 3, 1, -1),  # Produce, version 3, correlation id, no client id
        struct.pack(">hhi", -1, 0, 1000),  # no transaction, no acknowledgement, time-out
        struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, 0, len(batch)) + batch,
    ]
    request = b"".join(fields)
    host, _, port = broker.brokers.servers.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as anonymous:
        anonymous.sendall(struct.pack(">i", len(request)) + request)
        with contextlib.suppress(ConnectionResetError):
            assert anonymous.recv(1) == b""
    assert values(read_all(broker.brokers, OPPORTUNITY)) == []


def test_agents_password_cannot_forge_an_opportunity(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    closed = [OPPORTUNITY, EVENT_TYPES["job"].topic, CONTROL, AUDIT]
    KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ensure_topics([*closed, REPORT])
    agent = embedded_brokers(tmp_path / "kafka", broker.brokers.servers, user=AGENT_USER)
    with closing(
        Publisher(agent, queue_messages=10, queue_kbytes=1024, linger_ms=0, timeout_s=5)
    ) as publisher:
        publisher.publish_and_wait(REPORT, records(1))
        for topic in closed:
            with pytest.raises(PublishError):
                publisher.publish_and_wait(topic, records(1))
    assert [values(read_all(broker.brokers, topic)) for topic in closed] == [[]] * len(closed)


def test_unreadable_batches_of_agents_stop_no_reader(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ensure_topics([REPORT])
    port = int(broker.brokers.servers.rpartition(":")[2])
    password = str(
        embedded_brokers(tmp_path / "kafka", "", user=AGENT_USER).options["sasl.password"]
    )

    async def attack() -> set[int]:
        streams = await joined(port, AGENT_USER, password)
        codes = {
            await produced(streams, REPORT, data, partition)
            for partition in range(PARTITIONS)
            for data in UNREADABLE.values()
        }
        streams[1].close()
        return codes

    assert asyncio.run(attack()) == {
        ErrorCode.CORRUPT_MESSAGE,
        ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
    }
    publish(broker.brokers, REPORT, "")
    assert len(values(read_all(broker.brokers, REPORT))) == 100


def test_reader_continues_behind_damaged_batches_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "kafka"
    with closing(EmbeddedBroker(folder, timeout_s=TIMEOUT_S)) as broker:
        topic = new_topic(broker.brokers)
        publish(broker.brokers, topic, "before-")
    for segment in (folder / "topics" / topic).glob("*/*.log"):
        with segment.open("ab") as file:
            content = bytearray(UNREADABLE["garbage"])
            content[:8] = struct.pack(">q", 1000)
            file.write(content)
    with closing(EmbeddedBroker(folder, timeout_s=TIMEOUT_S)) as broker:
        publish(broker.brokers, topic, "after-")
        found = values(read_all(broker.brokers, topic))
    assert len(found) == 200


def test_agents_password_makes_no_topic_and_commits_nothing_for_the_sink(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    KafkaCluster(broker.brokers, timeout_s=TIMEOUT_S).ensure_topics([OPPORTUNITY])
    publish(broker.brokers, OPPORTUNITY, "")
    agent = embedded_brokers(tmp_path / "kafka", broker.brokers.servers, user=AGENT_USER)
    with pytest.raises(BrokerUnavailableError):
        KafkaCluster(agent, timeout_s=TIMEOUT_S).ensure_topics(["more"])
    assert "more" not in AdminClient(broker.brokers.config()).list_topics(timeout=TIMEOUT_S).topics
    committed = [TopicPartition(OPPORTUNITY, 0, 1)]
    for group, is_refused in (("sink", True), ("another", False)):
        with closing(Consumer(agent.config(group_id=group, enable_auto_commit=False))) as consumer:
            expected = pytest.raises(KafkaException) if is_refused else contextlib.nullcontext()
            with expected:
                found = consumer.commit(offsets=committed, asynchronous=False)
                assert found is not None
                if (error := found[0].error) is not None:
                    raise KafkaException(error)
    sink = Consumer(broker.brokers.config(group_id="sink", enable_auto_commit=False))
    with closing(sink):
        assert sink.committed(committed, timeout=TIMEOUT_S)[0].offset < 0
    stolen = Consumer(agent.config(group_id="sink", auto_offset_reset="earliest"))
    with closing(stolen):
        stolen.subscribe([OPPORTUNITY])
        message = stolen.poll(TIMEOUT_S)
        assert message is not None
        error = message.error()
        assert error is not None
        assert error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED
