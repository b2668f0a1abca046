"""Tests of several replicas on one Kafka, Redis and ClickHouse: consistent, and one may die."""

import hashlib
import secrets
import signal
import subprocess
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from mev.crypto.keys import SigningKey
from mev.sink.block import join
from mev.store.clickhouse import Address, ClickHouse
from mev.wire.pb.envelope_pb2 import Envelope
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import DEAD_LETTER, SINK_GROUP
from tests.integration.brokers import real, renew
from tests.services.clickhouse import ClickHouseHttp
from tests.services.kafka import RealKafka
from tests.services.redis import RealRedis
from tests.services.reporting import enrol
from tests.services.s3 import RealS3
from tests.services.system import MEV, RunningSystem
from tests.services.waits import until, until_document

pytestmark = pytest.mark.slow
PROMPT = {
    "LEASE_RENEW_S": "0.5",
    "LEASE_TTL_S": "3",
    "REPORT_INTERVAL_S": "0.3",
    "AUDIT_CHECKPOINT_S": "1",
    "APPROVALS_REQUIRED": "1",
    "ACCESS_CACHE_S": "1",
}
ORDER = {"module": "arbitrage", "action": "set_min_profit", "params": {"lamports": 1000}}


@dataclass(frozen=True, slots=True)
class Site:
    """Running replicas, and what it takes to run more of them."""

    folder: Path
    environment: dict[str, str]
    replicas: list[RunningSystem]
    store: ClickHouse

    def describe(self) -> RunningSystem:
        """Add a replica that does not run yet."""
        self.replicas.append(
            RunningSystem(self.folder / f"replica-{len(self.replicas)}", **self.environment)
        )
        return self.replicas[-1]

    def client(self, number: int) -> httpx.Client:
        """Return a client of one replica that may do everything."""
        headers = {"X-API-Key": self.environment["MASTER_API_KEY"]}
        return httpx.Client(base_url=self.replicas[number].url, headers=headers, timeout=30)


@contextmanager
def running(
    kafka: RealKafka,
    redis_server: RealRedis,
    clickhouse: ClickHouseHttp,
    s3: RealS3,
    folder: Path,
) -> Iterator[Site]:
    """Run two replicas that start at the same moment, on services that know nothing of them."""
    renew(real(kafka), SINK_GROUP, [*BY_TOPIC, DEAD_LETTER])
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    database = f"replicas_{uuid.uuid4().hex}"
    environment = {
        "KAFKA_BROKERS": kafka.brokers,
        "REDIS_URL": redis_server.url,
        "CLICKHOUSE_DATABASE": database,
        "CTRL_SIGN_SK_HEX": secrets.token_hex(32),
        "JWT_SECRET_KEY": secrets.token_urlsafe(48),
        "MASTER_API_KEY": secrets.token_urlsafe(32),
        **clickhouse.environment,
        **s3.environment(database),
        **PROMPT,
    }
    address = Address(
        database=database,
        host=clickhouse.host,
        port=clickhouse.port,
        user=clickhouse.user,
        password=clickhouse.password,
    )
    site = Site(folder, environment, [], ClickHouse(address))
    with closing(site.store):
        try:
            with ThreadPoolExecutor(2) as executor:
                list(executor.map(RunningSystem.start, [site.describe(), site.describe()]))
            yield site
        finally:
            for replica in site.replicas:
                replica.kill()


class Load:
    """Poster of ticks to one replica until stopped; records which were acknowledged."""

    def __init__(self, client: httpx.Client, run: str) -> None:
        self.acknowledged: list[str] = []
        self.stop = False
        self._client = client
        self._run = run

    def send(self) -> None:
        number = 0
        with suppress(httpx.TransportError):
            while not self.stop:
                names = [f"{self._run}-{number + n}" for n in range(50)]
                body = join(
                    [
                        Tick(market_id=name, timestamp_ns=n + 1).SerializeToString()
                        for n, name in enumerate(names)
                    ]
                )
                answer = self._client.post(
                    "/api/events/tick",
                    content=body,
                    headers={"Content-Type": "application/x-protobuf"},
                )
                if answer.status_code == 202:
                    self.acknowledged += names
                number += 50


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    real_kafka: RealKafka,
    real_redis: RealRedis,
    clickhouse_http: ClickHouseHttp,
    real_s3: RealS3,
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with running(real_kafka, real_redis, clickhouse_http, real_s3, folder) as found:
        yield found


@pytest.fixture
def both(site: Site) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    with site.client(0) as first, site.client(1) as second:
        yield first, second


@pytest.fixture
def agent(site: Site) -> Iterator[str]:
    with trading(site) as name:
        yield name


@contextmanager
def trading(site: Site, *numbers: int) -> Iterator[str]:
    """Run an agent that may trade and found its control plane at the first of these replicas.

    They are the first two unless others are named.
    """
    numbers = numbers or (0, 1)
    name = f"agent-{uuid.uuid4().hex[:8]}"
    environment = {
        **site.environment,
        "PATH": site.replicas[0].environment["PATH"],
        "MEV_DATA_DIR": str(site.folder / name),
    }
    with (site.folder / f"{name}.log").open("ab") as log:
        command = [
            str(MEV),
            "agent",
            "run",
            "--module",
            "arbitrage",
            "--id",
            name,
            "--api",
            site.replicas[numbers[0]].url,
        ]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with ExitStack() as stack:
            clients = [stack.enter_context(site.client(number)) for number in numbers]
            until(
                lambda: all(seen(client, name) for client in clients),
                what="the agent is not known everywhere",
            )
            raised = ordered(
                clients[0], "kill-switch", {"scope": "all", "level": "ACTIVE", "reason": "start"}
            )
            for client in clients:
                until(
                    lambda: seen(client, name).get("level") == "ACTIVE",
                    what="the agent may not trade",
                )
                until(
                    lambda: states(client, raised).get(name) == "SYNCED",
                    what="the agent did not say so everywhere",
                )
        yield name
        with site.client(numbers[0]) as first:
            first.delete(f"/api/control/agents/{name}").raise_for_status()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def seen(client: httpx.Client, name: str) -> dict[str, Any]:
    """Return what a replica knows of an agent, nothing while it is not enrolled there."""
    items = client.get("/api/control/agents?limit=1000").raise_for_status().json()["items"]
    return next((item for item in items if item["agent_id"] == name), {})


def replicas(client: httpx.Client) -> set[str]:
    """Return the replicas that a replica knows to be there."""
    items = client.get("/api/control/agents?limit=1000").raise_for_status().json()["items"]
    return {
        item["agent_id"] for item in items if item["module"] == "control-plane" and item["online"]
    }


def ordered(client: httpx.Client, call: str, body: dict[str, Any]) -> str:
    answer = client.post(f"/api/control/{call}", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def states(client: httpx.Client, command: str) -> dict[str, str]:
    """Return the delivery states of a command on a replica, empty until it has read it."""
    answer = client.get(f"/api/control/commands/{command}")
    return (
        {one["agent_id"]: one["state"] for one in answer.json()["deliveries"]}
        if answer.is_success
        else {}
    )


def key_set(client: httpx.Client) -> bytes:
    """Return the key set that agents are given, without its signatures."""
    return Envelope.FromString(
        b64decode(client.get("/api/control/snapshot").raise_for_status().json()["key_set"])
    ).payload


def levels(client: httpx.Client) -> list[tuple[Any, ...]]:
    """Return every level command a replica knows, in the order of their versions."""
    items = client.get("/api/control/commands?limit=1000").raise_for_status().json()["items"]
    return sorted(
        (one["version"]["counter"], one["id"], one["body"]["level"])
        for one in items
        if one["kind"] == "level"
    )


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as executor:
        return [one.result() for one in [executor.submit(call) for call in calls]]


@pytest.fixture
def new_site(
    tmp_path: Path,
    real_kafka: RealKafka,
    real_redis: RealRedis,
    clickhouse_http: ClickHouseHttp,
    real_s3: RealS3,
) -> Iterator[Site]:
    """Run replicas for one test, which may restart them; others would share a consumer group."""
    with running(real_kafka, real_redis, clickhouse_http, real_s3, tmp_path) as found:
        yield found


def test_one_is_killed_and_comes_back_and_a_third_joins(new_site: Site) -> None:
    site, run = new_site, uuid.uuid4().hex
    with trading(site) as agent, site.client(0) as first:
        acknowledged = check_that_a_kill_costs_nothing(site, first, agent, run)
        ordered(first, "kill-switch", {"scope": "all", "level": "ACTIVE", "reason": "go on"})
        until(lambda: seen(first, agent)["ordered_level"] == "ACTIVE", what="not raised again")
        check_that_a_third_joins_without_stopping_anybody(site, first, agent)
    sql = (
        f"SELECT market_id FROM `{site.store.database}`.tick FINAL WHERE startsWith(market_id,"
        " {run:String})"
    )

    def stored() -> list[str]:
        return [name for (name,) in site.store.rows(sql, {"run": run})]

    until(
        lambda: acknowledged <= set(stored()), what="not everything that was acknowledged is stored"
    )
    assert len(stored()) == len(set(stored()))
    for replica in site.replicas:
        assert "DAMAGED" not in replica.run("audit", "verify", "--against-copies").stdout
    for replica in site.replicas:
        assert replica.stop() == 0, replica.log.read_text()
        assert "sound" in replica.run("audit", "verify").stdout


def check_that_a_kill_costs_nothing(
    site: Site, first: httpx.Client, agent: str, run: str
) -> set[str]:
    """Kill one of two replicas under load and start it again; return what was acknowledged."""
    with site.client(1) as second:
        loads = [Load(first, f"{run}-a"), Load(second, f"{run}-b")]
        with ThreadPoolExecutor(2) as executor:
            sending = [executor.submit(load.send) for load in loads]
            until(
                lambda: min(len(load.acknowledged) for load in loads) > 500,
                what="nothing was acknowledged",
            )
            site.replicas[1].kill()
            before = len(loads[0].acknowledged)
            missed = ordered(
                first,
                "kill-switch",
                {"scope": "all", "level": "REDUCING", "reason": "while one is away"},
            )
            until(
                lambda: states(first, missed).get(agent) == "SYNCED", what="the agent does not obey"
            )
            until(
                lambda: len(loads[0].acknowledged) > before + 500,
                what="the other replica does not go on",
            )
            site.replicas[1].start()
            for load in loads:
                load.stop = True
            for one in sending:
                one.result()
    with site.client(1) as restarted:
        until(
            lambda: states(restarted, missed).get(agent) == "SYNCED",
            what="it did not learn what the agent answered",
        )
        assert levels(restarted) == levels(first)
        assert key_set(restarted) == key_set(first)
    return {name for load in loads for name in load.acknowledged}


def check_that_a_third_joins_without_stopping_anybody(
    site: Site, first: httpx.Client, agent: str
) -> None:
    site.describe().start()
    with site.client(1) as second, site.client(2) as third:
        assert levels(third)[-1] == levels(first)[-1]
        assert key_set(third) == key_set(first)
        assert seen(third, agent)
        everywhere = (first, second, third)
        until(
            lambda: all(len(replicas(client)) == 3 for client in everywhere),
            what="the three do not know each other",
        )
        order = ordered(third, "command", ORDER)
        until(
            lambda: all(states(client, order).get(agent) == "SYNCED" for client in everywhere),
            what="not the same everywhere",
        )
        until(
            lambda: seen(third, agent).get("level") == "ACTIVE",
            what="the third one does not hear the agent",
        )


def test_replicas_that_start_at_once_have_one_key_set(
    both: tuple[httpx.Client, httpx.Client],
) -> None:
    first, second = both
    until(
        lambda: len(replicas(first)) == 2 and replicas(first) == replicas(second),
        what="the replicas do not know each other",
    )
    assert key_set(first) == key_set(second)


def test_configuration_is_applied_and_acknowledged_by_each(
    site: Site, both: tuple[httpx.Client, httpx.Client]
) -> None:
    first, second = both
    until(lambda: len(replicas(first)) == 2, what="the replicas do not know each other")
    order = ordered(first, "config", {"config_key": "batch_window_ms", "config_value": 11})
    for client in both:
        until(
            lambda: states(client, order) == dict.fromkeys(replicas(second), "SYNCED"),
            what="not acknowledged by each",
        )
    assert all(
        "batch_window_ms is now 11" in replica.log.read_text() for replica in site.replicas[:2]
    )


def test_configurations_ordered_at_once_end_the_same_everywhere(
    site: Site, both: tuple[httpx.Client, httpx.Client]
) -> None:
    def change(client: httpx.Client, start: int) -> list[str]:
        bodies = [
            {"config_key": "batch_window_ms", "config_value": start + number}
            for number in range(20)
        ]
        return [ordered(client, "config", body) for body in bodies]

    names = [
        name
        for found in at_once(lambda: change(both[0], 20), lambda: change(both[1], 50))
        for name in found
    ]
    until(
        lambda: all(
            "STALE" not in states(client, one).values() for client in both for one in names
        ),
        what="not all are answered",
    )
    found = [both[0].get(f"/api/control/commands/{name}").json() for name in names]
    counters = [(one["version"]["epoch"], one["version"]["counter"]) for one in found]
    assert len(set(counters)) == len(counters)
    newest = max(found, key=lambda one: one["version"]["counter"])
    assert newest["superseded_by"] is None
    assert [one["id"] for one in found if one["superseded_by"] is None] == [newest["id"]]
    value = newest["body"]["config_value_json"]
    for replica in site.replicas[:2]:
        applied = [
            line
            for line in replica.log.read_text().splitlines()
            if "batch_window_ms is now" in line
        ]
        assert f"batch_window_ms is now {value}" in applied[-1]


def test_a_key_made_on_one_works_on_the_other_until_it_is_revoked(
    both: tuple[httpx.Client, httpx.Client],
) -> None:
    first, second = both
    made = first.post("/api/auth/keys", json={"name": "shared", "scopes": ["events:read"]})
    assert made.status_code == 201, made.text

    def ask() -> int:
        return second.get(
            "/api/events/tick?limit=1", headers={"X-API-Key": made.json()["key"]}
        ).status_code

    assert ask() == 200
    first.delete(f"/api/auth/keys/{made.json()['id']}").raise_for_status()
    until(lambda: ask() == 401, what="the revoked key still works on the other replica")


def test_an_agent_of_one_obeys_the_other_and_both_tell_the_same(
    both: tuple[httpx.Client, httpx.Client], agent: str
) -> None:
    first, second = both
    orders = [
        ordered(second, "command", ORDER),
        ordered(first, "kill-switch", {"scope": "all", "level": "HALTED", "reason": "stop"}),
    ]
    for client in both:
        until(
            lambda: [states(client, one).get(agent) for one in orders] == ["SYNCED"] * 2,
            what="not the same everywhere",
        )
        until(
            lambda: seen(client, agent)["level"] == "HALTED", what="the agent does not stand still"
        )
    assert first.get(f"/api/control/commands/{orders[1]}").json()["published"]
    assert second.get(f"/api/control/commands/{orders[1]}").json()["published"]


def test_of_levels_ordered_at_once_the_lowest_stays(
    both: tuple[httpx.Client, httpx.Client], agent: str
) -> None:
    def order(client: httpx.Client, level: str) -> dict[str, Any]:
        answer = client.post(
            "/api/control/kill-switch", json={"scope": "all", "level": level, "reason": "race"}
        )
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    for number in range(12):
        for client in both:
            until(
                lambda: seen(client, agent)["ordered_level"] == "ACTIVE",
                what="not raised everywhere",
            )
        lower, upper = both if number % 2 else both[::-1]
        _, weaker = at_once(lambda: order(lower, "HALTED"), lambda: order(upper, "NO_NEW"))
        wanted = (
            "NO_NEW" if weaker["approvers"] else "HALTED"
        )  # whoever knew of the stop raised in knowledge of it
        for client in both:
            until(
                lambda: levels(client)[-1][2] == wanted,
                what=f"not {wanted} everywhere: {levels(client)[-4:]}",
            )
            until(
                lambda: seen(client, agent)["ordered_level"] == wanted,
                what=f"the agent is not {wanted}",
            )
        until(lambda: levels(both[0]) == levels(both[1]), what="the replicas do not agree")
        ordered(
            both[number % 2], "kill-switch", {"scope": "all", "level": "ACTIVE", "reason": "again"}
        )


def test_one_name_wanted_by_two_keys_at_both_has_one_winner_everywhere(
    both: tuple[httpx.Client, httpx.Client],
) -> None:
    for _ in range(10):
        name = f"wanted-{uuid.uuid4().hex[:8]}"
        body, keys = {"agent_id": name, "module": "race"}, [SigningKey.generate() for _ in both]
        answers = at_once(
            *(
                lambda client=client, key=key, body=body: enrol(client, key, body).status_code
                for client, key in zip(both, keys, strict=True)
            )
        )
        assert sorted(answers) == [201, 409]
        winner = answers.index(201)
        for client in both:
            again = [enrol(client, key, body).status_code for key in keys]
            assert (again[winner], again[1 - winner]) == (201, 409)
        # A newer enrolment than the one that is revoked would stand: both must know the latest.
        until(
            lambda: seen(both[0], name)["enrolled_at"] == seen(both[1], name)["enrolled_at"],
            what="not enrolled alike",
        )
        both[0].delete(f"/api/control/agents/{name}").raise_for_status()
        until(lambda: not seen(both[1], name), what="not let go everywhere")
        taken = enrol(both[1], keys[1 - winner], body)
        assert taken.status_code == 201, "a name that is free can be taken by the other key"
        until(lambda: seen(both[0], name), what="not enrolled everywhere")
        both[0].delete(f"/api/control/agents/{name}").raise_for_status()


def test_who_has_ordered_already_does_not_join_others(site: Site) -> None:
    anonymous = RunningSystem(
        site.folder / "stranger", CTRL_SIGN_SK_HEX=site.environment["CTRL_SIGN_SK_HEX"]
    )
    anonymous.start()
    assert anonymous.stop() == 0
    anonymous.environment |= site.environment
    refused = anonymous.run("up", check=False)
    assert refused.returncode == 1
    assert "belongs to a control plane with another root key" in refused.stderr


def test_a_model_of_one_that_was_killed_is_deployed_by_the_other(
    site: Site, real_s3: RealS3
) -> None:
    site.replicas[0].run("simulate", "--count", "3000", "--seed", "7", "--fast")
    with site.client(0) as first:
        model = trained(first)
        first.put("/api/training/models/aliases/best", json={"model": model}).raise_for_status()
        entry = first.get(f"/api/training/models/{model}").raise_for_status().json()
    site.replicas[0].kill()
    real_s3.kill()
    real_s3.start()
    with site.client(1) as second, trading(site, 1) as agent:
        (listed,) = second.get("/api/training/models").raise_for_status().json()["items"]
        assert (listed["id"], listed["aliases"]) == (model, ["best"])
        card = second.get(f"/api/training/models/{model}/card").raise_for_status().text
        assert "data:image/svg+xml;base64," in card
        digest = listed["forms"]["mevt"]
        served = second.get(f"/api/training/models/best/files/{digest}.mevt").raise_for_status()
        assert hashlib.sha256(served.content).hexdigest() == digest
        check_export(second, entry["lineage"]["export"])
        answer = second.post(
            "/api/training/models/best/deploy", json={"stage": "production", "reason": "test"}
        )
        assert answer.status_code == 202, answer.text
        until(
            lambda: (seen(second, agent)["model"] or {}).get("id") == model,
            what="the agent does not run the model",
        )
        aliases = second.get(f"/api/training/models/{model}").raise_for_status().json()["aliases"]
        assert aliases == ["best", "champion"]
        objects = second.get("/api/health/ready").json()["dependencies"]["objects"]
        assert (objects["ok"], objects["required"]) == (True, False)


def check_export(client: httpx.Client, export: str) -> None:
    """Check that a replica serves an export of another one."""
    shown = client.get(f"/api/datasets/export/{export}").raise_for_status().json()
    assert shown["job"]["state"] == "succeeded"
    (part,) = shown["manifest"]["parts"]
    path = f"/api/datasets/export/{export}/files/{part['file']}"
    answer = client.get(path, headers={"Range": "bytes=0-"}).raise_for_status()
    assert hashlib.sha256(answer.content).hexdigest() == part["sha256"]


def trained(client: httpx.Client) -> str:
    """Train on the simulated market of a replica, and return the model's id."""
    until_document(
        client,
        "/api/datasets",
        lambda page: all(
            item["rows"] >= 3000
            for item in page["items"]
            if item["type"] in {"opportunity", "bundle"}
        ),
    )
    request = {"dataset": "training_examples", "target": "landed", "rounds": 10}
    started = client.post("/api/training/train", json=request)
    assert started.status_code == 202, started.text
    job = until_document(
        client,
        f"/api/jobs/{started.json()['id']}",
        lambda job: job["state"] in {"succeeded", "failed"},
    )
    assert job["state"] == "succeeded", job["error"]
    model: str = client.get(f"/api/training/jobs/{job['id']}").json()["model_id"]
    return model
