"""Test of the main path: real blocks in, events streamed, stored and served after a restart."""

import asyncio
import gzip
import json
import os
import re
import signal
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from mev.core import confine, native
from mev.wire.pb.events_pb2 import Arbitrage
from mev.wire.pb.stream_pb2 import Frame
from tests.services.processes import processes_with
from tests.services.system import RunningSystem
from tests.services.waits import until, until_document

SOL = "So11111111111111111111111111111111111111112"
FILES = ("block-254170887.json.gz", "transactions.jsonl.gz")


@pytest.fixture
def own_system(tmp_path: Path) -> Iterator[RunningSystem]:
    """Give a system that the test starts and stops itself."""
    running = RunningSystem(tmp_path / "data")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def labels(shared_data: Path) -> dict[str, dict[str, Any]]:
    """Return independently computed labels of the arbitrage transactions, by signature."""
    with gzip.open(shared_data / "labels.jsonl.gz") as lines:
        every = map(json.loads, lines)
        return {
            label["signature"]: label
            for label in every
            if label["verdict"].startswith("ATOMIC_ARB")
        }


def stored(system: RunningSystem, type_name: str) -> list[dict[str, Any]]:
    """Return what is stored, once the sink has everything."""
    with system.client() as client:
        until_document(
            client,
            "/api/sink/reconcile",
            lambda page: all(one["committed"] == one["latest"] for one in page["items"]),
        )
        return list(client.get(f"/api/events/{type_name}?limit=1000").json()["items"])


async def subscribe(system: RunningSystem, *protocols: Any) -> ClientConnection:
    """Return a connection that receives arbitrages."""
    url = system.url.replace("http", "ws", 1) + "/api/realtime/ws"
    connection = await connect(
        url, additional_headers={"X-API-Key": system.key}, subprotocols=protocols or None
    )
    await connection.send(json.dumps({"op": "subscribe", "id": "s1", "topics": ["arbitrage"]}))
    assert json.loads(await connection.recv())["op"] == "subscribed"
    return connection


async def test_real_blocks_become_events_everywhere(
    system: RunningSystem, shared_data: Path, labels: dict[str, dict[str, Any]]
) -> None:
    text, binary = await subscribe(system), await subscribe(system, "mev.v1.protobuf")
    for name in FILES:
        await asyncio.to_thread(system.run, "capture", "--file", str(shared_data / name))

    from_text: list[dict[str, Any]] = []
    from_binary: list[Arbitrage] = []
    async with asyncio.timeout(30):
        while len(from_text) < len(labels):
            from_text += json.loads(await text.recv())["events"]
        while len(from_binary) < len(labels):
            frame = Frame.FromString(bytes(await binary.recv(decode=False)))
            from_binary += [
                Arbitrage.FromString(event) for part in frame.slices for event in part.events
            ]
    await text.close()
    await binary.close()

    assert {event["signature"] for event in from_text} == set(labels)
    assert {event.signature for event in from_binary} == set(labels)
    rows = stored(system, "arbitrage")
    assert {row["signature"] for row in rows} == set(labels)
    for row in rows:
        label = labels[row["signature"]]
        mint = row["profit_mint"]
        net = (
            label["signer_sol_net_lamports"]
            if mint == SOL
            else int(label["signer_token_deltas"][mint]["raw"])
        )
        assert row["profit_amount"] == net
        assert (row["slot"], row["signer"]) == (label["slot"], label["signers"][0])
        assert (row["fee_lamports"], row["tip_lamports"]) == (
            label["fee_lamports"],
            label["jito_tip_lamports"],
        )
        # The labels know listed exchanges only.
        unlisted = [venue for venue in row["venues"] if venue in label["other_programs"]]
        assert len(row["pools"]) == label["n_pools"] + len(unlisted)


@pytest.mark.slow
def test_events_outlive_a_restart_and_a_repeat_adds_none(
    own_system: RunningSystem, shared_data: Path, labels: dict[str, dict[str, Any]]
) -> None:
    own_system.start()
    for name in FILES:
        own_system.run("capture", "--file", str(shared_data / name))
    assert len(stored(own_system, "arbitrage")) == len(labels)
    assert own_system.stop() == 0
    assert not (own_system.data_dir / "runtime.json").exists()

    own_system.start()
    assert len(stored(own_system, "arbitrage")) == len(labels)
    for name in FILES:
        own_system.run("capture", "--file", str(shared_data / name))
    assert len(stored(own_system, "arbitrage")) == len(labels)
    assert own_system.stop() == 0


def test_the_demo_shows_simulated_events_only(own_system: RunningSystem) -> None:
    own_system.start("--demo")
    with own_system.client() as client:
        for name in ("opportunity", "bundle", "tick"):
            rows = until_document(client, f"/api/events/{name}", itemgetter("items"))["items"]
            assert all(row["simulated"] for row in rows)
    assert "simulated" in own_system.log.read_text()
    assert own_system.stop() == 0


@pytest.mark.slow
def test_a_dead_dependency_is_reported_and_the_rest_lives(own_system: RunningSystem) -> None:
    own_system.start()
    os.kill(int(_valkey_pids(own_system)[0]), signal.SIGSTOP)
    with own_system.client() as client:
        ready = until_document(client, "/api/health/ready", itemgetter("degraded"))
        failed = {
            name for name, dependency in ready["dependencies"].items() if not dependency["ok"]
        }
        assert (ready["ready"], ready["degraded"], failed) == (True, ["redis"], {"redis"})
        assert client.get("/api/health/").is_success
        assert client.post("/api/events/bundle", json={"bundle_id": "b"}).status_code == 202
    own_system.stop()


def test_killed_children_are_started_again_with_their_data(own_system: RunningSystem) -> None:
    own_system.start()
    with own_system.client() as client:
        key = (
            client.post(
                "/api/auth/keys", json={"name": "kept", "scopes": ["events:read"], "days": 1}
            )
            .raise_for_status()
            .json()["key"]
        )
        brokers = processes_with(f"{own_system.data_dir.resolve()}/kafka")
        for pid in (int(_valkey_pids(own_system)[0]), *brokers):
            os.kill(pid, signal.SIGKILL)
        until(
            lambda: client.get("/api/health/ready").json()["dependencies"],
            lambda found: all(
                found[name]["ok"] and found[name]["restarts"] == 1 for name in ("redis", "kafka")
            ),
        )
        assert client.get("/api/events/tick", headers={"X-API-Key": key}).is_success
        assert client.post("/api/events/bundle", json={"bundle_id": "b"}).status_code == 202
        restarts = [
            line
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("mev_child_restarts_total{")
        ]
    assert sorted(restarts) == [
        'mev_child_restarts_total{child="kafka"} 1.0',
        'mev_child_restarts_total{child="redis"} 1.0',
    ]
    assert own_system.stop() == 0


def test_wrong_settings_and_missing_services_are_one_line(own_system: RunningSystem) -> None:
    cases = [
        (
            ("config", "check"),
            {"API_PORT": "99999", "REDIS_URL": "http://x"},
            2,
            "API_PORT: .*; REDIS_URL: expected a redis://",
        ),
        (
            ("up",),
            {"KAFKA_BROKERS": "127.0.0.1:1", "SERVICE_TIMEOUT_S": "1"},
            1,
            "no Kafka broker answered at 127.0.0.1:1",
        ),
        (
            ("up",),
            {"REDIS_URL": "redis://127.0.0.1:1", "SERVICE_TIMEOUT_S": "1"},
            1,
            "Redis does not answer",
        ),
        (
            ("up",),
            {"CLICKHOUSE_HOST": "127.0.0.1", "CLICKHOUSE_PORT": "1", "SERVICE_TIMEOUT_S": "1"},
            1,
            "ClickHouse at 127.0.0.1:1",
        ),
        (("sink", "reconcile"), {}, 1, "no system runs on"),
        (("simulate", "--count", "1"), {}, 1, "no system runs on"),
    ]
    clean = own_system.environment
    for arguments, environment, code, message in cases:
        own_system.environment = clean | environment
        done = own_system.run(*arguments, check=False)
        assert done.returncode == code, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("mev: ")]
        assert re.search(message, line)
        assert "Traceback" not in done.stderr


def test_config_check_says_what_confines_trainings(own_system: RunningSystem) -> None:
    _, confined, *missing = own_system.run("config", "check").stdout.splitlines()
    found = confine.strongest(secrets=own_system.data_dir)
    assert confined == f"trainings are confined by: {found}"
    assert [line.strip() for line in missing] == list(found.missing)


def test_secrets_are_not_shown(own_system: RunningSystem) -> None:
    own_system.environment |= {
        "MASTER_API_KEY": "a-very-secret-key-of-mine",
        "JWT_SECRET_KEY": "x" * 40,
    }
    shown = own_system.run("config", "show").stdout
    assert "secret-key-of-mine" not in shown
    assert "x" * 40 not in shown
    assert re.search(r"MASTER_API_KEY +\*{8} +set", shown)
    assert own_system.run("config", "key").stdout == "a-very-secret-key-of-mine\n"


def test_use_of_native_module_is_shown(own_system: RunningSystem) -> None:
    assert f"native module: {native.describe()}\n" in own_system.run("config", "show").stdout
    own_system.environment |= {"MEV_NATIVE": "0"}
    shown = own_system.run("config", "show").stdout
    assert "native module: not used: MEV_NATIVE turns it off; " in shown
    assert re.search(r"MEV_NATIVE +false +set", shown)


def _valkey_pids(system: RunningSystem) -> list[str]:
    socket = str(system.data_dir / "valkey" / "valkey.sock")
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if socket in command.read_text():
                found.append(command.parent.name)
        except OSError:
            continue
    return found
