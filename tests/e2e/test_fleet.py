"""Tests of three agents under a control plane: obeyed, stale, refused, and its death."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.fleet import Fleet
from tests.services.system import RunningSystem
from tests.services.waits import until_document

REDUCING_AFTER_S = 30
ORDER = {"module": "arbitrage", "action": "set_min_profit", "params": {"lamports": 1000}}


@pytest.fixture
def system(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningSystem]:
    """Run a system with simulated events and a short lease; param: the report interval."""
    interval_s = getattr(request, "param", "0.3")
    running = RunningSystem(
        tmp_path / "data", LEASE_TTL_S="3", LEASE_RENEW_S="0.5", REPORT_INTERVAL_S=interval_s
    )
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
        until_document(http, "/api/control/agents", lambda page: len(online(page)) == 3)
        raised = http.post(
            "/api/control/kill-switch", json={"scope": "all", "level": "ACTIVE", "reason": "start"}
        ).json()["id"]
        until_document(
            http,
            f"/api/control/commands/{raised}",
            lambda command: command["states"]["SYNCED"] == 3,
        )
        # An agent obeys the order before it has a lease, and trades when it has one.
        until_document(http, "/api/control/agents", lambda page: levels(page) == {"ACTIVE"})
    yield agents
    agents.close()


def online(page: dict[str, Any]) -> list[str]:
    return [
        agent["agent_id"]
        for agent in page["items"]
        if agent["module"] == "arbitrage" and agent["online"]
    ]


def levels(page: dict[str, Any]) -> set[str]:
    return {agent["level"] for agent in page["items"] if agent["module"] == "arbitrage"}


def states(command: dict[str, Any]) -> dict[str, str]:
    return {delivery["agent_id"]: delivery["state"] for delivery in command["deliveries"]}


def issue(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    answer = http.post(path, json=body)
    assert answer.status_code == 202, answer.text
    return f"/api/control/commands/{answer.json()['id']}"


def test_orders_reach_the_fleet_and_silence_is_not_success(
    system: RunningSystem, fleet: Fleet
) -> None:
    with system.client() as http:
        obeyed = until_document(
            http,
            issue(http, "/api/control/command", ORDER),
            lambda command: command["states"]["SYNCED"] == 3,
        )
        assert all(delivery["latency_ms"] > 0 for delivery in obeyed["deliveries"])

        fleet.signal("a2", signal.SIGSTOP)
        halted = issue(
            http,
            "/api/control/kill-switch",
            {"scope": "module", "target": "arbitrage", "level": "HALTED", "reason": "stop"},
        )
        until_document(http, halted, lambda command: command["states"]["SYNCED"] == 2)
        assert states(http.get(halted).json())["a2"] == "STALE"
        fleet.signal("a2", signal.SIGCONT)
        until_document(http, halted, lambda command: command["states"]["SYNCED"] == 3)
        until_document(http, "/api/control/agents", lambda page: levels(page) == {"HALTED"})

        refused = issue(
            http,
            "/api/control/model-swap",
            {"model_id": "m", "model_path": "m/1.so", "version": "1"},
        )
        errors = until_document(http, refused, lambda command: command["states"]["ERROR"] == 3)[
            "deliveries"
        ]
        assert {delivery["reason_code"] for delivery in errors} == {"unsafe_model_path"}
        reported = [delivery["reported_at"] for delivery in errors]
        until_document(http, "/api/control/agents", lambda page: len(online(page)) == 3)
        assert [
            delivery["reported_at"] for delivery in http.get(refused).json()["deliveries"]
        ] == reported  # not pushed again


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", ["4"], indirect=True
)  # a silent agent counts as online for 12 s: long enough to start a command
def test_the_kill_command_waits_for_the_answers_but_not_for_ever(
    system: RunningSystem, fleet: Fleet
) -> None:
    kill = ("kill", "--module", "arbitrage", "--level", "NO_NEW", "--reason", "check")
    table = system.run(*kill, "--wait", "60").stdout
    assert (table.count("SYNCED"), table.count("STALE")) == (3, 0)
    with system.client() as http:
        while True:
            fleet.signal("a2", signal.SIGSTOP)
            silent = system.run(*kill, "--wait", "1", "--json", check=False)
            left = json.loads(silent.stdout)
            if not left.get("offline"):
                break
            # On a busy machine the command began when the agent was known to be offline already.
            fleet.signal("a2", signal.SIGCONT)
            until_document(http, "/api/control/agents", lambda page: "a2" in online(page))
    assert silent.returncode == 1
    assert "a2 did not answer within 1 s" in silent.stderr
    assert states(left)["a2"] == "STALE"
    with system.client() as http:
        until_document(http, "/api/control/agents", lambda page: "a2" not in online(page))
    gone = system.run(*kill, "--wait", "60")
    assert "2 of 3 agents obeyed, 1 offline" in gone.stdout
    fleet.signal("a2", signal.SIGCONT)
    with system.client() as http:
        until_document(
            http,
            f"/api/control/commands/{left['id']}",
            lambda command: command["states"]["SYNCED"] == 3,
        )


@pytest.mark.slow
def test_agents_trade_only_while_they_may_and_nothing_rises_by_itself(
    system: RunningSystem, fleet: Fleet
) -> None:
    with system.client() as http:
        until_document(http, "/api/events/bundle?agent_id=a1", lambda page: page["items"])
    system.kill()
    deadline = time.monotonic() + REDUCING_AFTER_S
    while not all("level NO_NEW" in log for log in fleet.logs().values()):
        assert time.monotonic() < deadline, fleet.logs()
        time.sleep(0.1)
    assert not any("level REDUCING" in log for log in fleet.logs().values())

    system.start("--demo")
    with system.client() as http:
        until_document(
            http,
            "/api/control/agents",
            lambda page: len(online(page)) == 3 and "ACTIVE" not in levels(page),
        )
        page = http.get("/api/control/agents").json()
        assert all(
            agent["stepped_down"] for agent in page["items"] if agent["module"] == "arbitrage"
        )
        again = issue(
            http,
            "/api/control/kill-switch",
            {"scope": "all", "level": "ACTIVE", "reason": "checked"},
        )
        assert http.get(again).json()["approvers"] == ["master"]
        until_document(http, "/api/control/agents", lambda page: levels(page) == {"ACTIVE"})


@pytest.mark.slow
def test_an_agent_runs_on_when_nobody_reads_its_log(system: RunningSystem, fleet: Fleet) -> None:
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    with os.fdopen(unread, "rb"), system.client() as http:
        fleet.start("a4", os.fdopen(full, "wb"))
        until_document(http, "/api/control/agents", lambda page: "a4" in online(page))


@pytest.mark.slow
def test_a_rotated_key_is_followed_and_the_old_one_is_worth_nothing(
    system: RunningSystem, fleet: Fleet
) -> None:
    del fleet
    with system.client() as http:
        system.run("rotate-key")
        until_document(
            http,
            "/api/control/agents",
            lambda page: all(
                agent["key_epoch"] == 2 for agent in page["items"] if agent["module"] == "arbitrage"
            ),
        )
        until_document(
            http,
            issue(http, "/api/control/command", ORDER),
            lambda command: command["states"]["SYNCED"] == 3,
        )
        until_document(http, "/api/control/agents", lambda page: levels(page) == {"ACTIVE"})
