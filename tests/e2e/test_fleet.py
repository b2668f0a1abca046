"""Three agents under a running control plane: obeyed, stale, refused, and what they do when it dies."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.system import MEV, RunningSystem

pytestmark = pytest.mark.timeout(150)
ORDER = {"module": "arbitrage", "action": "set_min_profit", "params": {"lamports": 1000}}


class Fleet:
    """Agents as child processes of the test."""

    def __init__(self, system: RunningSystem) -> None:
        self._system = system
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.log = system.data_dir.with_name("agents.log")

    def start(self, agent_id: str) -> None:
        """Run an agent of module arbitrage."""
        with self.log.open("ab") as log:
            command = [str(MEV), "agent", "run", "--module", "arbitrage", "--id", agent_id]
            self._processes[agent_id] = subprocess.Popen(command, env=self._system.environment, stdout=log, stderr=log)

    def signal(self, agent_id: str, number: signal.Signals) -> None:
        """Send a signal to an agent."""
        os.kill(self._processes[agent_id].pid, number)

    def close(self) -> None:
        """End every agent."""
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    """Give a running system with simulated opportunities and a short lease."""
    running = RunningSystem(tmp_path / "data", LEASE_TTL_S="3", LEASE_RENEW_S="0.5", REPORT_INTERVAL_S="0.3")
    running.start("--demo")
    yield running
    running.kill()


@pytest.fixture
def fleet(system: RunningSystem) -> Iterator[Fleet]:
    """Give three running agents that may trade."""
    agents = Fleet(system)
    for agent_id in ("a1", "a2", "a3"):
        agents.start(agent_id)
    with system.client() as http:
        eventually(http, "/api/control/agents", lambda page: len(online(page)) == 3)
        raised = http.post("/api/control/kill-switch", json={"scope": "all", "level": "ACTIVE", "reason": "start"}).json()["id"]
        eventually(http, f"/api/control/commands/{raised}", lambda command: command["states"]["SYNCED"] == 3)
    yield agents
    agents.close()


def eventually(http: httpx.Client, path: str, holds: Callable[[Any], bool]) -> Any:
    """Return the document behind `path` once it `holds`."""
    deadline = time.monotonic() + 30
    while not holds(document := http.get(path).raise_for_status().json()):
        assert time.monotonic() < deadline, document
        time.sleep(0.05)
    return document


def online(page: dict[str, Any]) -> list[str]:
    return [agent["agent_id"] for agent in page["items"] if agent["module"] == "arbitrage" and agent["online"]]


def levels(page: dict[str, Any]) -> set[str]:
    return {agent["level"] for agent in page["items"] if agent["module"] == "arbitrage"}


def states(command: dict[str, Any]) -> dict[str, str]:
    return {delivery["agent_id"]: delivery["state"] for delivery in command["deliveries"]}


def issue(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    answer = http.post(path, json=body)
    assert answer.status_code == 202, answer.text
    return f"/api/control/commands/{answer.json()['id']}"


def test_orders_reach_the_fleet_and_silence_is_not_success(system: RunningSystem, fleet: Fleet) -> None:
    with system.client() as http:
        obeyed = eventually(http, issue(http, "/api/control/command", ORDER), lambda command: command["states"]["SYNCED"] == 3)
        assert all(delivery["latency_ms"] > 0 for delivery in obeyed["deliveries"])

        fleet.signal("a2", signal.SIGSTOP)
        halted = issue(http, "/api/control/kill-switch", {"scope": "module", "target": "arbitrage", "level": "HALTED", "reason": "stop"})
        eventually(http, halted, lambda command: command["states"]["SYNCED"] == 2)
        assert states(http.get(halted).json())["a2"] == "STALE"
        fleet.signal("a2", signal.SIGCONT)
        eventually(http, halted, lambda command: command["states"]["SYNCED"] == 3)
        eventually(http, "/api/control/agents", lambda page: levels(page) == {"HALTED"})

        refused = issue(http, "/api/control/model-swap", {"model_id": "m", "model_path": "m/1.so", "version": "1"})
        errors = eventually(http, refused, lambda command: command["states"]["ERROR"] == 3)["deliveries"]
        assert {delivery["reason_code"] for delivery in errors} == {"unsupported"}
        reported = [delivery["reported_at"] for delivery in errors]
        eventually(http, "/api/control/agents", lambda page: len(online(page)) == 3)
        assert [delivery["reported_at"] for delivery in http.get(refused).json()["deliveries"]] == reported  # not pushed again


def test_agents_trade_only_while_they_may_and_nothing_rises_by_itself(system: RunningSystem, fleet: Fleet) -> None:
    with system.client() as http:
        eventually(http, "/api/events/bundle?agent_id=a1", lambda page: page["items"])
    system.kill()
    deadline = time.monotonic() + 30
    while "level NO_NEW" not in fleet.log.read_text():  # all three had the same lease: when one has lost it, all have
        assert time.monotonic() < deadline, fleet.log.read_text()
        time.sleep(0.1)

    system.start("--demo")
    with system.client() as http:
        eventually(http, "/api/control/agents", lambda page: len(online(page)) == 3 and "ACTIVE" not in levels(page))
        page = http.get("/api/control/agents").json()
        assert all(agent["stepped_down"] for agent in page["items"] if agent["module"] == "arbitrage")
        again = issue(http, "/api/control/kill-switch", {"scope": "all", "level": "ACTIVE", "reason": "checked"})
        assert http.get(again).json()["approvers"] == ["master"]
        eventually(http, "/api/control/agents", lambda page: levels(page) == {"ACTIVE"})


def test_a_rotated_key_is_followed_and_the_old_one_is_worth_nothing(system: RunningSystem, fleet: Fleet) -> None:
    del fleet
    with system.client() as http:
        system.run("rotate-key")
        eventually(
            http,
            "/api/control/agents",
            lambda page: all(agent["key_epoch"] == 2 for agent in page["items"] if agent["module"] == "arbitrage"),
        )
        eventually(http, issue(http, "/api/control/command", ORDER), lambda command: command["states"]["SYNCED"] == 3)
        eventually(http, "/api/control/agents", lambda page: levels(page) == {"ACTIVE"})
