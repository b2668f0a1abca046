"""Measure a Kafka broker as a candidate for the embedded one.

Usage: `measure_broker.py HOST:PORT -- COMMAND...`. Starts COMMAND, waits until it answers at
HOST:PORT, and prints one figure per line: seconds to start, messages per second published and
consumed, milliseconds from publish to consume, CPU time with idle readers, memory, retention of one
partition, and whether it survives two consumers of one group with different assignors. Everything
is stopped at the end.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

MESSAGES = 200_000
VALUE = b"x" * 300
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print the figures of one candidate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers")
    parser.add_argument("--idle-s", type=float, default=15.0)
    parser.add_argument("--fetch-wait-ms", type=int, default=500)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    started = time.monotonic()
    broker = subprocess.Popen(  # noqa: S603 - what the caller named
        given.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(given.servers, broker)
        _print("start_s", time.monotonic() - started)
        _measure(given.servers, broker.pid, given.idle_s, given.fetch_wait_ms)
    finally:
        broker.send_signal(signal.SIGKILL)
        broker.wait()


def _measure(servers: str, pid: int, idle_s: float, wait_ms: int) -> None:
    _create(servers, "load", "latency", "kept", "abuse")
    _print("publish_per_s", MESSAGES / _publish(servers, "load", MESSAGES))
    _print("consume_per_s", MESSAGES / _consume(servers, wait_ms))
    at_rate = _latencies(servers, wait_ms)
    _print("latency_ms_p50", statistics.median(at_rate) * 1000)
    _print("latency_ms_p99", statistics.quantiles(at_rate, n=100)[-1] * 1000)
    with _readers(servers, 6, wait_ms):
        time.sleep(2)
        before, own = _cpu_s(pid), time.process_time()
        time.sleep(idle_s)
        _print("idle_broker_percent_of_core", (_cpu_s(pid) - before) / idle_s * 100)
        _print("idle_clients_percent_of_core", (time.process_time() - own) / idle_s * 100)
    _publish(servers, "kept", 200_000, partition=0)
    _print("kept_mb_of_60", _kept_bytes(servers, "kept") / 1e6)
    _print("memory_mb", int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6)
    _say(f"survives_mixed_assignors {_survives(servers, pid)}")


def _print(name: str, value: float) -> None:
    _say(f"{name} {value:.4g}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _wait(servers: str, broker: "subprocess.Popen[bytes]") -> None:
    admin = AdminClient(
        {"bootstrap.servers": servers, "log_level": 0, "reconnect.backoff.max.ms": 100}
    )
    while True:
        if broker.poll() is not None:
            sys.exit("the broker ended")
        with contextlib.suppress(KafkaException):
            if admin.list_topics(timeout=0.5).brokers:
                return


def _create(servers: str, *topics: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    for topic, future in admin.create_topics([NewTopic(topic, 4, 1) for topic in topics]).items():
        try:
            future.result(3)
        except (
            KafkaException,
            TimeoutError,
        ):  # librdkafka's broker makes topics when asked for them
            admin.list_topics(topic, timeout=5)
    time.sleep(1)


def _publish(servers: str, topic: str, messages: int, partition: int = -1) -> float:
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "linger.ms": 1,
            "queue.buffering.max.messages": messages + 1,
            "log_level": 0,
        }
    )
    started = time.monotonic()
    for first in range(0, messages, 1000):
        records = [{"key": b"%d" % (first + n), "value": VALUE} for n in range(1000)]
        producer.produce_batch(topic, records, partition=partition)
        producer.poll(0)
    if left := producer.flush(120):
        _say(f"unpublished_{topic} {left}")
    return time.monotonic() - started


def _consumer(servers: str, group: str, wait_ms: int, **more: str) -> Consumer:
    options = {
        "bootstrap.servers": servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": wait_ms,
        "fetch.queue.backoff.ms": 10,
        "log_level": 0,
    }
    return Consumer({**options, **{name.replace("_", "."): value for name, value in more.items()}})


def _consume(servers: str, wait_ms: int) -> float:
    consumer = _consumer(servers, "load", wait_ms)
    consumer.assign([TopicPartition("load", n, 0) for n in range(4)])
    started, taken, last = time.monotonic(), 0, time.monotonic()
    while taken < MESSAGES and time.monotonic() - last < 10:
        if found := len(consumer.consume(1000, 0.1)):
            taken, last = taken + found, time.monotonic()
    if taken < MESSAGES:
        _say(f"consumed_only {taken} of {MESSAGES}")
    consumer.close()
    return (last - started) * MESSAGES / max(taken, 1)


def _latencies(servers: str, wait_ms: int) -> list[float]:
    consumer = _consumer(servers, "latency", wait_ms)
    consumer.assign([TopicPartition("latency", n, 0) for n in range(4)])
    producer = Producer(
        {"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 0, "log_level": 0}
    )
    times: list[float] = []
    for number in range(110):
        sent = time.monotonic()
        producer.produce("latency", b"%d" % number, b"%d" % number)
        producer.poll(0)
        while (message := consumer.poll(5)) is not None and message.error():
            pass
        times.append(time.monotonic() - sent)
        time.sleep(0.02)
    consumer.close()
    return times[10:]


@contextlib.contextmanager
def _readers(servers: str, count: int, wait_ms: int) -> Iterator[None]:
    """Run `count` readers at the end of all partitions, like idle agents and streams."""
    stop = threading.Event()

    def read() -> None:
        consumer = _consumer(servers, "idle", wait_ms)
        consumer.assign([TopicPartition("latency", n, 110) for n in range(4)])
        while not stop.is_set():
            consumer.poll(0.5)
        consumer.close()

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _kept_bytes(servers: str, topic: str) -> int:
    consumer = _consumer(servers, "kept", 100)
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=5)
    consumer.close()
    return (high - low) * len(VALUE)


def _survives(servers: str, pid: int) -> bool:
    """Join one group with two assignors; say whether the broker still lives and answers."""
    members = [
        _consumer(servers, "abuse", 100, partition_assignment_strategy=name)
        for name in ("range", "cooperative-sticky")
    ]
    for member in members:
        member.subscribe(["abuse"])
    ended = time.monotonic() + 8
    while time.monotonic() < ended:
        for member in members:
            member.poll(0.1)
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if state in "ZX":
        return False
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=5).brokers)
    except KafkaException:
        return False
    finally:
        for member in members:
            threading.Thread(target=member.close, daemon=True).start()


if __name__ == "__main__":
    main()
