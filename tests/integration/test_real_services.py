"""Tests of `mev up` on external Kafka, Redis and ClickHouse, each failing under load."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from mev.store.clickhouse import Address, ClickHouse
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import DEAD_LETTER, SINK_GROUP
from tests.integration.brokers import real, renew
from tests.integration.traffic import Poster, Subscriber
from tests.services.clickhouse import ClickHouseHttp
from tests.services.kafka import RealKafka
from tests.services.redis import RealRedis
from tests.services.service import Service
from tests.services.system import RunningSystem
from tests.services.waits import until

pytestmark = pytest.mark.slow

IMPATIENT = {
    "SERVICE_TIMEOUT_S": "2",
    "QUERY_TIMEOUT_S": "2",
    "PUBLISH_TIMEOUT_S": "3",
    "SINK_INSERT_TIMEOUT_S": "2",
    "SINK_RETRY_MAX_S": "1",
    "SINK_STALL_S": "12",
}
BLOCK = "block-254170887.json.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A running system, the services under it by name, and a look into its database beside it."""

    system: RunningSystem
    services: dict[str, Service]
    store: ClickHouse

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Return the status and body of readiness."""
        answer = httpx.get(f"{self.system.url}/api/health/ready", timeout=30)
        return answer.status_code, answer.json()

    def failing(self) -> set[str]:
        return {
            name
            for name, dependency in self.ready()[1]["dependencies"].items()
            if not dependency["ok"]
        }

    def stored(self, run: str) -> list[int]:
        """Return the times of the ticks of `run`, repeats collapsed."""
        sql = (
            f"SELECT timestamp_ns FROM `{self.store.database}`.tick FINAL WHERE"
            " startsWith(market_id, {run:String}) ORDER BY 1"
        )
        return [number for (number,) in self.store.rows(sql, {"run": run})]

    def coverage(self) -> dict[str, Any]:
        with self.system.client() as client:
            found: dict[str, Any] = client.get("/api/sink/reconcile").raise_for_status().json()
            return found


@contextmanager
def running_on(
    kafka: RealKafka, redis_server: RealRedis, clickhouse: ClickHouseHttp, folder: Path
) -> Iterator[Site]:
    """Run the system on three services that know nothing of it yet, in a database of its own."""
    renew(real(kafka), SINK_GROUP, [*BY_TOPIC, DEAD_LETTER])
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    database = f"site_{uuid.uuid4().hex}"
    environment = {
        "KAFKA_BROKERS": kafka.brokers,
        "REDIS_URL": redis_server.url,
        "CLICKHOUSE_DATABASE": database,
    }
    system = RunningSystem(folder, **environment, **clickhouse.environment, **IMPATIENT)
    address = Address(
        database=database,
        host=clickhouse.host,
        port=clickhouse.port,
        user=clickhouse.user,
        password=clickhouse.password,
    )
    system.start()
    services: dict[str, Service] = {"kafka": kafka, "redis": redis_server, "clickhouse": clickhouse}
    try:
        with closing(ClickHouse(address)) as store:
            yield Site(system=system, services=services, store=store)
        assert system.stop() == 0, system.log.read_text()
    finally:
        system.kill()


@pytest.fixture
def new_site(
    tmp_path: Path, real_kafka: RealKafka, real_redis: RealRedis, clickhouse_http: ClickHouseHttp
) -> Iterator[Site]:
    """Run a system for one test, which may restart it; another would share its consumer group."""
    with running_on(real_kafka, real_redis, clickhouse_http, tmp_path / "data") as found:
        yield found


def test_events_arrive_everywhere_and_outlive_a_restart(new_site: Site) -> None:
    site = new_site
    with Poster(site.system) as poster, Subscriber(site.system, poster.run) as subscriber:
        until(lambda: len(poster.acknowledged) > 200, what="nothing was acknowledged")
        poster.stop()
        until(
            lambda: subscriber.received == poster.acknowledged,
            what="the subscriber did not get everything",
        )
    assert poster.refused == []
    until(
        lambda: site.stored(poster.run) == sorted(poster.acknowledged),
        what="not everything was stored",
    )

    assert site.system.stop() == 0, site.system.log.read_text()
    site.system.start()
    with site.system.client() as client:
        newest = client.get(f"/api/events/tick?limit=1&market_id={poster.run}-0").json()["items"]
    assert [event["timestamp_ns"] for event in newest] == [
        max(number for number in poster.acknowledged if number % 8 == 0)
    ]
    assert site.stored(poster.run) == sorted(poster.acknowledged)
    until(lambda: site.coverage()["complete"], what="a range is missing")


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    real_kafka: RealKafka,
    real_redis: RealRedis,
    clickhouse_http: ClickHouseHttp,
) -> Iterator[Site]:
    """Run the system for all further tests; no service failure requires a restart."""
    with running_on(
        real_kafka, real_redis, clickhouse_http, tmp_path_factory.mktemp("site") / "data"
    ) as found:
        yield found


def test_nothing_is_embedded_and_every_service_is_named(site: Site) -> None:
    status, body = site.ready()
    assert status == 200
    assert body["ready"]
    assert not any(dependency["embedded"] for dependency in body["dependencies"].values())
    assert {"kafka", "redis", "clickhouse"} <= set(body["dependencies"])
    assert not any((site.system.data_dir / name).exists() for name in ("clickhouse", "valkey"))


def test_real_blocks_are_captured_into_the_services(site: Site, shared_data: Path) -> None:
    site.system.run("capture", "--file", str(shared_data / BLOCK))
    with site.system.client() as client:
        until(
            lambda: client.get("/api/events/arbitrage").json()["items"],
            what="no arbitrage was stored",
        )
    until(
        lambda: all(item["committed"] == item["latest"] for item in site.coverage()["items"]),
        what="the sink did not commit everything",
    )
    assert site.coverage()["complete"]


def kill(service: Service) -> None:
    service.kill()


def hang(service: Service) -> None:
    """Let `service` take connections and never answer."""
    assert service.pid is not None
    os.kill(service.pid, signal.SIGSTOP)


def bring_back(service: Service) -> None:
    if service.pid is not None:
        os.kill(service.pid, signal.SIGCONT)
    service.start()


def refusal(client: httpx.Client, path: str) -> tuple[int, str]:
    """Return the status and code of a problem, which says when to ask again."""
    answer = client.get(path)
    assert int(answer.headers["retry-after"]) > 0
    return answer.status_code, answer.json()["code"]


def check_without_kafka(
    site: Site, client: httpx.Client, poster: Poster, subscriber: Subscriber
) -> None:
    before = len(poster.refused)
    assert client.get("/api/events/tick?limit=5").status_code == 200
    until(lambda: len(poster.refused) > before, what="nothing was refused")
    answer = poster.refused[-1]
    assert (answer.status_code, answer.json()["code"]) == (503, "publish_failed")
    assert "publish the same records again" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0
    assert refusal(client, "/api/sink/reconcile") == (503, "kafka_unavailable")
    assert site.ready()[0] == 503


def check_without_clickhouse(
    site: Site, client: httpx.Client, poster: Poster, subscriber: Subscriber
) -> None:
    refused, acknowledged = len(poster.refused), set(poster.acknowledged)
    for path in ("/api/events/tick?limit=5", "/api/sink/reconcile"):
        assert refusal(client, path) == (503, "clickhouse_unavailable")
    until(lambda: len(poster.acknowledged) > len(acknowledged) + 200, what="publishing stopped")
    now = set(poster.acknowledged)
    until(lambda: now <= subscriber.received, what="the stream stopped")
    assert len(poster.refused) == refused
    assert site.ready()[0] == 503


def check_without_redis(
    site: Site, client: httpx.Client, poster: Poster, subscriber: Subscriber
) -> None:
    refused, acknowledged = len(poster.refused), set(poster.acknowledged)
    assert client.get("/api/events/tick?limit=5").status_code == 200
    assert refusal(client, "/api/auth/users") == (503, "redis_unavailable")
    until(lambda: len(poster.acknowledged) > len(acknowledged) + 200, what="publishing stopped")
    now = set(poster.acknowledged)
    until(lambda: now <= subscriber.received, what="the stream stopped")
    until(lambda: now <= set(site.stored(poster.run)), what="storing stopped")
    assert len(poster.refused) == refused
    status, body = site.ready()
    assert (status, body["ready"], body["degraded"]) == (200, True, ["redis"])


CHECKS = {
    "kafka": check_without_kafka,
    "clickhouse": check_without_clickhouse,
    "redis": check_without_redis,
}


@pytest.mark.parametrize("fail", [kill, hang])
@pytest.mark.parametrize("name", CHECKS)
def test_a_service_fails_under_load_and_comes_back(
    site: Site, name: str, fail: Callable[[Service], None]
) -> None:
    service, pid = site.services[name], site.system.pid
    with (
        Poster(site.system) as poster,
        Subscriber(site.system, poster.run) as subscriber,
        site.system.client() as client,
    ):
        until(lambda: len(poster.acknowledged) > 100, what="nothing was acknowledged")
        fail(service)
        try:
            until(lambda: site.failing() == {name}, what=f"readiness does not name {name} alone")
            CHECKS[name](site, client, poster, subscriber)
            assert client.get("/api/health/").status_code == 200
        finally:
            bring_back(service)
        until(
            lambda: site.ready()[0] == 200 and not site.failing(),
            what="readiness did not come back",
        )
        before = len(poster.acknowledged)
        until(lambda: len(poster.acknowledged) > before + 200, what="publishing did not come back")
        poster.stop()
        until(
            lambda: subscriber.received >= poster.acknowledged,
            what="the subscriber did not get everything",
        )
        assert subscriber.is_open
        assert subscriber.dropped == 0
        until(
            lambda: site.stored(poster.run) == sorted(poster.acknowledged),
            what="what is stored is not what was acknowledged",
        )
    until(lambda: site.coverage()["complete"], what="a range is missing")
    assert site.system.pid == pid
