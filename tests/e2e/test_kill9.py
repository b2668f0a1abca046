"""Tests of a system killed under load: no acknowledged event is lost or stored twice."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mev.sink.block import join
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import DEAD_LETTER, SINK_GROUP
from tests.integration.brokers import real, renew
from tests.services.kafka import RealKafka
from tests.services.system import RunningSystem
from tests.services.waits import until

pytestmark = pytest.mark.slow
BODIES, EVENTS_A_BODY, THREADS = 200, 1000, 3
# In a process of its own: this one may open no other folder while the engine is in it.
READ_IDS = """\
import sys
from pathlib import Path
from mev.store.clickhouse import Address, ClickHouse

store = ClickHouse(Address(database="mev", path=Path(sys.argv[1])))
sys.stdout.writelines(f"{id}\\n" for (id,) in store.rows("SELECT id FROM mev.opportunity FINAL"))
store.close()
"""


def event_id(body: int, number: int) -> str:
    return f"event-{body}-{number}"


def encode(body: int) -> bytes:
    """Return a body of events, all different."""
    return join(
        [
            Opportunity(id=event_id(body, n), slot=body, kind="arbitrage").SerializeToString()
            for n in range(EVENTS_A_BODY)
        ]
    )


class Load:
    """Sends bodies from a few threads, and knows which were acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: set[int] = set()
        self._bodies = [encode(number) for number in range(BODIES)]

    @property
    def missing(self) -> list[int]:
        return [number for number in range(BODIES) if number not in self.acknowledged]

    @contextlib.contextmanager
    def running(self, system: RunningSystem) -> Iterator[None]:
        """Send what is not acknowledged; each thread ends with its share, or with the system."""
        shares = [self.missing[start::THREADS] for start in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as executor:
            sending = [executor.submit(self._send, system, share) for share in shares]
            yield
        for share in sending:
            share.result()

    def _send(self, system: RunningSystem, share: list[int]) -> None:
        with system.client() as client, contextlib.suppress(httpx.TransportError):
            for number in share:
                self._send_body(client, number)

    def _send_body(self, client: httpx.Client, number: int) -> None:
        headers = {"Content-Type": "application/x-protobuf"}
        answer = client.post(
            "/api/events/opportunity", content=self._bodies[number], headers=headers
        )
        assert answer.status_code == 202, answer.text
        assert answer.json()["accepted"] == EVENTS_A_BODY
        self.acknowledged.add(number)


@contextlib.contextmanager
def frozen(kafka: RealKafka) -> Iterator[None]:
    """Suspend the broker meanwhile, so that work piles up in the system."""
    assert kafka.pid is not None
    os.kill(kafka.pid, signal.SIGSTOP)
    time.sleep(0.3)
    try:
        yield
    finally:
        os.kill(kafka.pid, signal.SIGCONT)


def valkeys(data_dir: Path) -> set[int]:
    """Return the process ids of the Valkey servers of a data folder, read from /proc."""
    socket = str(data_dir / "valkey" / "valkey.sock").encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended since the listing
            if socket in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


def is_all_stored(client: httpx.Client) -> bool:
    """Say whether the system can prove that all of Kafka is stored."""
    answer = client.get("/api/sink/reconcile").raise_for_status().json()
    return answer["complete"] and all(
        partition["committed"] == partition["latest"] for partition in answer["items"]
    )


def stored_ids(data_dir: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", READ_IDS, str(data_dir / "clickhouse")],
        cwd=data_dir,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_what_was_acknowledged_is_stored_once_through_a_kill(
    real_kafka: RealKafka, tmp_path: Path
) -> None:
    renew(real(real_kafka), SINK_GROUP, [*BY_TOPIC, DEAD_LETTER])
    # Blocks fill slowly, so at the kill the sink holds rows that it has read and not stored.
    system = RunningSystem(
        tmp_path / "data",
        KAFKA_BROKERS=real_kafka.brokers,
        SINK_BLOCK_ROWS="5000",
        SINK_BLOCK_AGE_S="1",
    )
    load = Load()
    system.start()
    with load.running(system):
        until(lambda: len(load.acknowledged) >= BODIES // 3)
        with frozen(real_kafka):
            system.kill()
    assert BODIES // 3 <= len(load.acknowledged) < BODIES
    until(lambda: not valkeys(system.data_dir))

    system.start()
    try:
        assert len(valkeys(system.data_dir)) == 1
        with load.running(system):
            pass
        assert load.missing == []
        with system.client() as client:
            until(lambda: is_all_stored(client), what=system.log.read_text())
    finally:
        code = system.stop()
    assert code == 0
    assert valkeys(system.data_dir) == set()
    assert sorted(stored_ids(system.data_dir)) == sorted(
        event_id(body, n) for body in range(BODIES) for n in range(EVENTS_A_BODY)
    )


def test_a_data_folder_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data")
    system.start()
    try:
        second = system.run("up", check=False)
        assert second.returncode != 0
        assert second.stdout == ""
        assert second.stderr.splitlines() == [
            (
                f"mev: another mev runs on {system.data_dir}; stop it, or choose another folder"
                " with MEV_DATA_DIR"
            )
        ]
        with system.client() as client:
            assert client.get("/api/health/ready").is_success
        assert len(valkeys(system.data_dir)) == 1
    finally:
        code = system.stop()
    assert code == 0
