"""Tests of exit codes of command-line orders and `mev status`, with two real agents."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.services.fleet import Fleet
from tests.services.system import RunningSystem
from tests.services.waits import until_document

pytestmark = pytest.mark.slow

REPORT_INTERVAL_S = (
    "30"  # a silent agent counts as online for three times as long: enough for all commands
)
IN_FORCE = "/api/control/commands?in_force=true"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Give a running system."""
    running = RunningSystem(
        tmp_path_factory.mktemp("mev") / "data", REPORT_INTERVAL_S=REPORT_INTERVAL_S
    )
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def fleet(system: RunningSystem) -> Iterator[Fleet]:
    """Give two running agents."""
    agents = Fleet(system)
    for agent_id in ("a1", "a2"):
        agents.start(agent_id)
    with system.client() as http:
        until_document(
            http,
            "/api/control/agents",
            lambda page: [one["online"] for one in page["items"]] == [True] * 3,
        )
    yield agents
    agents.close()


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    """Return command lines that issue orders and wait for answers, repeatable in this order."""
    loose, tight = (
        tmp_path_factory.mktemp("policies") / name for name in ("loose.json", "tight.json")
    )
    for file, most in ((loose, 5_000_000), (tight, 1_000_000)):
        policy = {
            "policy_id": "limits",
            "policy_type": "risk",
            "thresholds": {"max_tip_lamports": most},
            "target": {"modules": ["arbitrage"]},
        }
        file.write_text(json.dumps(policy))
    return [
        ("resume", "--reason", "start of day"),
        ("command", "send", "arbitrage", "set_min_profit", "--params", '{"lamports": 1000}'),
        ("command", "config", "min_profit_lamports", "1000", "--module", "arbitrage"),
        ("policy", "set", str(loose)),
        ("policy", "set", str(tight)),
        ("policy", "rollback", "limits"),
        ("kill", "--level", "no_new", "--reason", "check"),
    ]


def all_obeyed(page: dict[str, Any]) -> bool:
    return all(
        order["states"]["SYNCED"] == sum(order["states"].values()) for order in page["items"]
    )


def test_exit_code_is_0_when_all_online_agents_obeyed(
    system: RunningSystem, fleet: Fleet, orders: list[tuple[str, ...]]
) -> None:
    del fleet
    for order in orders:
        assert "2 of 2 agents obeyed" in system.run(*order, "--wait", "60").stdout
    shown = system.run("policy", "show", "limits").stdout
    assert "policy limits (risk): in_force" in shown
    assert "0.005 SOL" in shown
    assert [row.split()[2] for row in system.run("policy", "list").stdout.splitlines()] == [
        "state",
        "in_force",
    ]
    assert system.run("status").stdout.startswith("ready\n")


def test_exit_code_is_1_while_an_online_agent_has_not_answered(
    system: RunningSystem, fleet: Fleet, orders: list[tuple[str, ...]]
) -> None:
    fleet.signal("a2", signal.SIGSTOP)
    try:
        for order in orders:
            done = system.run(*order, "--wait", "0.5", check=False)
            assert (done.returncode, "a2 did not answer within 0.5 s" in done.stderr) == (
                1,
                True,
            ), (order, done.stdout, done.stderr)
        status = system.run("status", check=False)
        assert (status.returncode, "level NO_NEW for all: a2 STALE" in status.stderr) == (
            1,
            True,
        ), status.stderr
        found = system.run("status", "--json", check=False)
        assert (found.returncode, len(json.loads(found.stdout)["problems"])) == (1, 3), found.stdout
    finally:
        fleet.signal("a2", signal.SIGCONT)
    with system.client() as http:
        until_document(http, IN_FORCE, all_obeyed)
    # The lease of a2 may have run out meanwhile; then it stepped down, which is a problem too.
    system.run("resume", "--level", "NO_NEW", "--reason", "a2 answers again")
    assert system.run("status").returncode == 0


def test_exit_code_is_1_when_an_agent_refused(system: RunningSystem, fleet: Fleet) -> None:
    del fleet
    unknown = system.run(
        "command", "config", "max_daring", "1", "--module", "arbitrage", check=False
    )
    assert "config_key: no agent of the target declares" in unknown.stderr
    change = ("command", "config", "report_interval_s", '"often"', "--module", "arbitrage")
    done = system.run(*change, "--wait", "60", check=False)
    assert (
        done.returncode,
        "a1, a2 refused it" in done.stderr or "a2, a1 refused it" in done.stderr,
    ) == (1, True), done.stderr
    refused = system.run("status", check=False)  # until another value is set for it
    assert (refused.returncode, 'config report_interval_s "often"' in refused.stderr) == (1, True)
    system.run(*change[:3], REPORT_INTERVAL_S, *change[4:], "--wait", "60")
    assert system.run("status").returncode == 0
    with system.client() as http:
        swap = http.post(
            "/api/control/model-swap",
            json={"model_id": "m", "model_path": "m/1.so", "version": "1"},
        ).json()
        until_document(
            http,
            f"/api/control/commands/{swap['id']}",
            lambda command: command["states"]["ERROR"] == 2,
        )
    status = system.run("status", check=False)
    assert (
        status.returncode,
        "model for all: a" in status.stderr,
        status.stderr.count("ERROR"),
    ) == (1, True, 2), status.stderr
