"""Tests of the service fixtures: real servers, lossless restarts, no leftover process."""

import asyncio
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, Producer

from tests import services
from tests.services import processes, waits
from tests.services.kafka import RealKafka
from tests.services.redis import RealRedis
from tests.services.service import Service, ServiceError, free_port
from tests.services.waits import until


class Sleeper(Service):
    """A server that only exists, and is ready at once."""

    def __init__(self, folder: Path, *, ready: bool = True) -> None:
        super().__init__("sleeper", folder)
        self._ready = ready

    def command(self) -> list[str]:
        return ["sleep", "1000"]

    def is_ready(self) -> bool:
        return self._ready


def produce(brokers: str, topic: str, values: list[bytes]) -> None:
    """Publish and wait until the broker has acknowledged every record."""
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": brokers, "acks": "all", "linger.ms": 1})
    for value in values:
        producer.produce(
            topic, value, on_delivery=lambda error, _: refused.append(error) if error else None
        )
    assert producer.flush(20) == 0
    assert not refused


def consume(brokers: str, topic: str, count: int) -> set[bytes]:
    """Read a topic from its start through a new consumer group until `count` records have come."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    values: set[bytes] = set()

    def read() -> int:
        for message in consumer.consume(count, 0.2):
            assert message.error() is None
            values.add(message.value() or b"")
        return len(values)

    try:
        until(read, lambda number: number >= count)
    finally:
        consumer.close()
    return values


@pytest.mark.slow
def test_kafka_keeps_acknowledged_records_through_a_kill(real_kafka: RealKafka) -> None:
    topic = f"services-{uuid.uuid4().hex}"
    first = [f"first-{i}".encode() for i in range(100)]
    produce(real_kafka.brokers, topic, first)
    assert consume(real_kafka.brokers, topic, 100) == set(first)

    real_kafka.kill()
    assert not real_kafka.is_ready()
    real_kafka.start()

    second = [f"second-{i}".encode() for i in range(100)]
    produce(real_kafka.brokers, topic, second)
    assert consume(real_kafka.brokers, topic, 200) == {*first, *second}


def test_kafka_creates_topics_with_four_partitions(real_kafka: RealKafka) -> None:
    topic = f"services-{uuid.uuid4().hex}"
    producer = Producer({"bootstrap.servers": real_kafka.brokers})
    producer.produce(topic, b"one")
    assert producer.flush(20) == 0
    assert len(producer.list_topics(topic, timeout=5).topics[topic].partitions) == 4


def test_kafka_stops_in_order_and_restarts(real_kafka: RealKafka) -> None:
    real_kafka.stop()
    assert real_kafka.pid is None
    real_kafka.start()
    assert real_kafka.is_ready()


def test_redis_keeps_acknowledged_writes_through_a_kill(real_redis: RealRedis) -> None:
    with redis.Redis.from_url(real_redis.url) as client:
        client.set("services", "kept")
    real_redis.kill()
    assert not real_redis.is_ready()
    real_redis.start()
    with redis.Redis.from_url(real_redis.url) as client:
        assert client.get("services") == b"kept"


async def test_a_restart_from_another_thread_outlives_that_thread(real_redis: RealRedis) -> None:
    await asyncio.to_thread(real_redis.stop)
    await asyncio.to_thread(real_redis.start)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert real_redis.is_ready()


def test_a_server_left_down_is_handed_on_running(real_redis: RealRedis) -> None:
    real_redis.kill()


def test_the_server_left_down_by_the_test_before_runs(real_redis: RealRedis) -> None:
    assert real_redis.is_ready()


def test_a_server_dies_with_killed_tests(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from tests.integration.test_services import Sleeper\n"
        f"sleeper = Sleeper(pathlib.Path({str(tmp_path)!r}))\n"
        "sleeper.start()\n"
        "print(sleeper.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert processes.command_line(pid)
        tests.send_signal(signal.SIGKILL)
    until(lambda: not processes.command_line(pid))


def test_a_server_that_never_gets_ready_is_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "LIMIT_S", 0.3)
    before = processes.children()
    with (
        pytest.raises(ServiceError, match=r"sleeper was not ready in time; log .*sleeper\.log"),
        Sleeper(tmp_path, ready=False),
    ):
        pass
    assert processes.children() == before


def test_left_over_children_are_found_and_killed() -> None:
    before = processes.children()
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert processes.left_over(before, patience_s=0) == {child.pid}
        assert processes.command_line(child.pid) == "sleep 1000"
        processes.kill({child.pid})
    assert child.returncode == -signal.SIGKILL
    assert processes.left_over(before) == set()


def test_require_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEV_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such server"):
        services.require("no such server")


def test_require_fails_where_everything_must_be_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEV_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="no such server"):
        services.require("no such server")


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    lowest = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not lowest.exists():
        pytest.skip("no /proc here")
    assert free_port() < int(lowest.read_text().split()[0])


def test_shared_data_holds_real_blocks(shared_data: Path) -> None:
    assert any(entry.name.startswith("block-") for entry in shared_data.iterdir())
