"""Tests of `mev up` with API workers on real services: one system, of which a process may die."""

import os
import secrets
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from mev.sink.block import join
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import DEAD_LETTER, SINK_GROUP
from tests.integration.brokers import real, renew
from tests.services.clickhouse import ClickHouseHttp
from tests.services.kafka import RealKafka
from tests.services.redis import RealRedis
from tests.services.system import RunningSystem
from tests.services.waits import until

PROTOBUF = {"Content-Type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    real_kafka: RealKafka,
    real_redis: RealRedis,
    clickhouse_http: ClickHouseHttp,
) -> Iterator[RunningSystem]:
    renew(real(real_kafka), SINK_GROUP, [*BY_TOPIC, DEAD_LETTER])
    with redis.Redis.from_url(real_redis.url) as client:
        client.flushdb()
    system = RunningSystem(
        tmp_path_factory.mktemp("w") / "data",
        API_WORKERS="2",
        DRAIN_S="1",
        APPROVALS_REQUIRED="1",
        KAFKA_BROKERS=real_kafka.brokers,
        REDIS_URL=real_redis.url,
        CLICKHOUSE_DATABASE=f"workers_{uuid.uuid4().hex}",
        CTRL_SIGN_SK_HEX=secrets.token_hex(32),
        **clickhouse_http.environment,
    )
    try:
        system.start()
        yield system
        assert system.stop() == 0, system.log.read_text()
    finally:
        system.kill()


def readiness(system: RunningSystem) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{system.url}/api/health/ready", timeout=30).json()
    return found


def pids(system: RunningSystem) -> dict[str, int]:
    """Return the process ids of the processes, by name."""
    return {name: each["pid"] for name, each in readiness(system)["processes"].items()}


def published(system: RunningSystem) -> dict[str, float]:
    """Return the tick requests that each worker has accepted."""
    with system.client() as client:
        text = client.get("/metrics").raise_for_status().text
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "mev_http_requests_total"
        and sample.labels["route"] == "/api/events/{type}"
        and sample.labels["status"] == "202"
    }


def post_tick(client: httpx.Client, name: str) -> None:
    body = join([Tick(market_id=name, timestamp_ns=1).SerializeToString()])
    answer = client.post("/api/events/tick", content=body, headers=PROTOBUF)
    assert answer.status_code == 202, answer.text


@contextmanager
def workers(system: RunningSystem, wanted: int = 2) -> Iterator[dict[str, httpx.Client]]:
    """Yield clients whose connections belong to different workers, by the worker's name."""
    clients: dict[str, httpx.Client] = {}
    try:
        while len(clients) < wanted:
            client = system.client()
            before = published(system)
            post_tick(client, "which")
            after = published(system)
            name = next(name for name in after if after[name] > before.get(name, 0))
            if name in clients:
                client.close()
            else:
                clients[name] = client
        yield clients
    finally:
        for client in clients.values():
            client.close()


class Load:
    """Requests of all kinds on new and on kept connections; every answer that is not a success."""

    def __init__(self, system: RunningSystem) -> None:
        self._system = system
        self._stop = threading.Event()
        self.done = 0
        self.wrong: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(3) as executor:
            loads = [
                executor.submit(self._send, kept, path)
                for kept, path in [(True, None), (False, None), (True, "/api/control/policies")]
            ]
            try:
                yield
            finally:
                self._stop.set()
                for load in loads:
                    load.result()

    def _send(self, kept: bool, path: str | None) -> None:
        client = self._system.client()
        while not self._stop.is_set():
            if not kept:
                client.close()
                client = self._system.client()
            try:
                if path:
                    client.get(path).raise_for_status()
                else:
                    post_tick(client, uuid.uuid4().hex)
                self.done += 1
            except (httpx.HTTPError, AssertionError) as error:
                self.wrong.append(f"{time.monotonic():.3f} {path} kept={kept} {error!r}")
            time.sleep(0.005)
        client.close()


def test_both_workers_serve_and_one_scrape_shows_all_processes(site: RunningSystem) -> None:
    with workers(site) as clients:
        assert set(clients) == {"api-0", "api-1"}
        before = published(site)
        for client in clients.values():
            for _ in range(5):
                post_tick(client, "counted")
        after = published(site)
    assert {name: after[name] - before[name] for name in after} == {"api-0": 5, "api-1": 5}
    found = readiness(site)
    assert found["ready"]
    assert found["degraded"] == []
    assert set(found["processes"]) == {"api-0", "api-1", "control"}
    assert set(found["dependencies"]) == {"kafka", "redis", "clickhouse", "sink"}
    with site.client() as client:
        text = client.get("/metrics").text
    assert 'mev_process_up{process="api-1",worker="supervisor"} 1.0' in text
    assert "mev_sink_lag_messages{" in text
    for worker in ("api-0", "api-1", "control"):
        labels = f'dependency="kafka",required="true",worker="{worker}"'
        assert f"mev_dependency_up{{{labels}}} 1.0" in text


def test_load_and_performance_are_those_of_all_processes(site: RunningSystem) -> None:
    with workers(site) as clients:
        accepted = sum(published(site).values())
        for client in clients.values():
            found = client.get("/api/health/metrics/performance").raise_for_status().json()
            assert found["routes"]["/api/events/{type}"]["count"] == accepted
            assert found["stages"]["insert"]["count"] > 0  # in the control process only
            load = client.get("/api/health/metrics/system").raise_for_status().json()
            processes = {name: each["pid"] for name, each in load["processes"].items()}
            assert processes.pop("supervisor") == site.pid
            assert processes == pids(site)


def test_a_kill_switch_through_one_worker_is_seen_through_the_other(site: RunningSystem) -> None:
    with workers(site) as clients:
        for name, client in clients.items():
            order = {"scope": "all", "level": "HALTED", "reason": name}
            answer = client.post("/api/control/kill-switch", json=order)
            assert answer.status_code == 202, answer.text
            for other in clients.values():
                path = f"/api/control/commands/{answer.json()['id']}"
                assert other.get(path).json()["body"]["reason"] == name


def test_runtime_configuration_reaches_every_process_also_after_a_restart(
    site: RunningSystem,
) -> None:
    def lines(name: str) -> list[str]:
        found = site.log.read_text().splitlines()
        return [line for line in found if line.startswith(f"{name} ") and "ms is now 12" in line]

    with site.client() as client:
        body = {"config_key": "batch_window_ms", "config_value": 12}
        client.post("/api/control/config", json=body).raise_for_status()
    for name in ("control", "api-0", "api-1"):
        until(lambda: len(lines(name)) == 1, what=f"{name} does not apply it")
    os.kill(pids(site)["api-0"], signal.SIGKILL)
    until(lambda: len(lines("api-0")) == 2, what="the successor does not apply it")


@pytest.mark.slow
def test_a_killed_process_is_replaced(site: RunningSystem) -> None:
    for name in ("api-0", "control"):
        before = pids(site)
        os.kill(before[name], signal.SIGKILL)
        until(
            lambda: (
                pids(site)[name] not in {before[name], None} and readiness(site)["degraded"] == []
            ),
            what=f"{name} was not replaced",
        )
        after = readiness(site)["processes"]
        assert after[name]["restarts"] >= 1
        assert after["api-1"]["pid"] == before["api-1"]
        assert f"{name} ended with signal SIGKILL" in site.log.read_text()
        with site.client() as client:
            restarts = f'mev_child_restarts_total{{child="{name}",worker="supervisor"}} '
            text = client.get("/metrics").text
            assert restarts in text
            assert f"{restarts}0.0" not in text
            client.get("/api/control/policies").raise_for_status()


@pytest.mark.slow
def test_reload_fails_no_request(site: RunningSystem) -> None:
    before, load = pids(site), Load(site)
    with load.running():
        until(lambda: load.done > 100, what="no load")
        report = site.run("reload").stdout
        os.kill(site.pid, signal.SIGHUP)
        replaced = site.log.read_text().count("control was replaced") + 1
        until(
            lambda: site.log.read_text().count("control was replaced") >= replaced,
            what="SIGHUP does not reload",
        )
    assert [line.split(":")[0] for line in report.splitlines()] == ["api-0", "api-1", "control"]
    after = pids(site)
    assert not set(before.values()) & set(after.values())
    assert load.wrong == []
    assert load.done > 300
