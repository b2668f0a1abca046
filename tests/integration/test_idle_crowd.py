"""The kill switch while more idle connections are open than one address may have."""

import os
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.system import MEV, RunningSystem

pytestmark = pytest.mark.slow

CROWD = 1_150
"""More than HTTP_CONNECTIONS_PER_IP."""
LOCAL = "api.sock"
ORDERS = 100


@pytest.fixture
def crowd(system: RunningSystem) -> Iterator[list[socket.socket]]:
    """Open idle connections of one address, none of which sends a byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * CROWD)), hard))
    host, port = system.url.removeprefix("http://").split(":")
    connections: list[socket.socket] = []
    try:
        connections.extend(
            socket.create_connection((host, int(port)), timeout=20) for _ in range(CROWD)
        )
        yield connections
    finally:
        for connection in connections:
            connection.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def kill(system: RunningSystem) -> None:
    """Run `mev kill`."""
    command = [str(MEV), "kill", "--reason", "test"]
    done = subprocess.run(
        command, env=system.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def orders(http: httpx.Client) -> set[str]:
    """Return the ids of all orders."""
    items = http.get("/api/control/commands").raise_for_status().json()["items"]
    return {item["id"] for item in items}


@pytest.mark.usefixtures("crowd")
def test_kill_switch_works_over_unix_socket_during_idle_crowd(
    system: RunningSystem, http: httpx.Client
) -> None:
    before = orders(http)
    kill(system)
    assert len(orders(http) - before) == 1


def test_kill_switch_answers_while_idle_connections_come_and_go(
    system: RunningSystem, crowd: list[socket.socket]
) -> None:
    """Every command is accepted on its own connection while new idle connections evict old ones."""
    order = {"scope": "all", "level": "HALTED", "reason": "test"}
    host, port = system.url.removeprefix("http://").split(":")
    times_s = []
    unused = ssl.create_default_context()  # made once: it takes longer than an order
    for _ in range(ORDERS):
        for _ in range(20):
            crowd.pop(0).close()
            crowd.append(socket.create_connection((host, int(port)), timeout=20))
        started = time.perf_counter()
        answer = httpx.post(
            f"{system.url}/api/control/kill-switch",
            json=order,
            headers={"X-API-Key": system.key},
            timeout=20,
            verify=unused,
        )
        times_s.append(time.perf_counter() - started)
        assert answer.status_code == 202, answer.text
    p99_ms = sorted(times_s)[int(ORDERS * 0.99)] * 1000
    print(f"kill switch during an idle crowd: p99 {p99_ms:.1f} ms of {ORDERS}")  # noqa: T201


@pytest.mark.usefixtures("crowd")
def test_kill_switch_works_over_tcp_during_idle_crowd(
    system: RunningSystem, http: httpx.Client
) -> None:
    before = orders(http)
    local = system.data_dir / LOCAL
    aside = local.rename(local.with_suffix(".aside"))
    try:
        kill(system)
    finally:
        aside.rename(local)
    assert len(orders(http) - before) == 1


def test_commands_prefer_unix_socket(system: RunningSystem) -> None:
    """The socket in the runtime file is used, not the URL."""
    runtime = system.data_dir / "runtime.json"
    text = runtime.read_text()
    runtime.write_text(text.replace(system.url, "http://127.0.0.1:1"))
    try:
        kill(system)
    finally:
        runtime.write_text(text)


def test_unix_socket_is_the_owners_and_asks_for_a_credential(system: RunningSystem) -> None:
    local = system.data_dir / LOCAL
    status = local.stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
    with httpx.Client(
        base_url=system.url, transport=httpx.HTTPTransport(uds=str(local)), timeout=20
    ) as client:
        anonymous = client.get("/api/control/agents")
        assert (anonymous.status_code, anonymous.json()["code"]) == (401, "unauthorized")
        known = client.get("/api/control/agents", headers={"X-API-Key": system.key})
        assert known.is_success


def test_unix_socket_is_made_again_after_a_crash(tmp_path: Path) -> None:
    running = RunningSystem(tmp_path / "data")
    running.start()
    running.kill()
    assert (running.data_dir / LOCAL).exists()
    running.start()
    try:
        kill(running)
    finally:
        assert running.stop() == 0, running.log.read_text()
    assert not (running.data_dir / LOCAL).exists()


def test_flood_of_guesses_keeps_neither_a_login_nor_the_master_key_out(tmp_path: Path) -> None:
    """Both are first seen while the address has had all that strangers may ask."""
    running = RunningSystem(tmp_path / "data", IP_RATE_PER_SECOND="0.01", IP_RATE_BURST="3")
    running.start()
    user = {"name": "op", "password": "correct horse battery"}
    try:
        with running.client() as http:
            http.post("/api/auth/users", json=user | {"role": "operator"}).raise_for_status()
        login = httpx.post(f"{running.url}/api/auth/login", json=user).raise_for_status().json()
        running.kill()
        running.start()
        guesses = [
            httpx.get(f"{running.url}/api/control/agents", headers={"X-API-Key": f"guess-{n}"})
            for n in range(5)
        ]
        assert guesses[-1].status_code == 429
        order = {"scope": "all", "level": "HALTED", "reason": "flood"}
        for shown in (
            {"Authorization": f"Bearer {login['access_token']}"},
            {"X-API-Key": running.key},
        ):
            answer = httpx.post(f"{running.url}/api/control/kill-switch", json=order, headers=shown)
            assert answer.status_code == 202, answer.text
        forged = login["access_token"][:-4] + "AAAA"
        refused = httpx.get(
            f"{running.url}/api/control/agents", headers={"Authorization": f"Bearer {forged}"}
        )
        assert refused.status_code == 429, "a forged one is a guess like others"
    finally:
        running.kill()


def test_flood_with_the_same_key_takes_no_place_of_control(tmp_path: Path) -> None:
    rates = {"RATE_LIMIT_PER_SECOND": "1", "RATE_LIMIT_BURST": "2"}
    rates |= {"IP_RATE_PER_SECOND": "0.01", "IP_RATE_BURST": "3"}
    running = RunningSystem(
        tmp_path / "data", CONTROL_RATE_PER_SECOND="1", CONTROL_RATE_BURST="3", **rates
    )
    running.start()
    try:
        with running.client() as http:
            for path in ("/api/auth/me", "/api/control/agents"):
                while http.get(path).status_code != 429:
                    pass  # each request uses up the bucket
            order = {"scope": "all", "level": "HALTED", "reason": "flood"}
            answer = http.post("/api/control/kill-switch", json=order)
            assert answer.status_code == 202, answer.text
            assert answer.headers["ratelimit-limit"] == "3"
        guesses = [
            httpx.get(f"{running.url}/api/auth/me", headers={"X-API-Key": f"guess-{n}"})
            for n in range(5)
        ]
        assert guesses[-1].status_code == 429
        anonymous = httpx.get(f"{running.url}/api/control/agents", headers={"X-API-Key": "guess"})
        assert anonymous.status_code == 401, "control counts strangers apart"
    finally:
        running.kill()
