"""Orders in force in a running system: refused settings, superseded orders, key rotation."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.services.reporting import ReportingAgents, reporting_agents
from tests.services.system import RunningSystem

SETTINGS = [{"name": "min_score", "tighter": "higher"}, {"name": "max_open", "tighter": "lower"}]


@pytest.fixture
def agents(system: RunningSystem, http: httpx.Client) -> Iterator[ReportingAgents]:
    with reporting_agents(system, http) as found:
        yield found


def setting(http: httpx.Client, key: str, value: object, **target: list[str]) -> httpx.Response:
    body = {"config_key": key, "config_value": value, "target": target}
    return http.post("/api/control/config", json=body)


def in_force(http: httpx.Client, kind: str) -> list[dict[str, Any]]:
    """Return the active commands of a kind, oldest first."""
    found = http.get("/api/control/commands?in_force=true&limit=1000").raise_for_status().json()
    return [one for one in reversed(found["items"]) if one["kind"] == kind]


def values(http: httpx.Client, **target: list[str]) -> list[str]:
    return [
        one["body"]["config_value_json"]
        for one in in_force(http, "config")
        if one["target"] == target
    ]


def test_setting_that_no_target_agent_declares_is_refused(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    agents.enrol("set-1", "setting", configs=SETTINGS)
    agents.enrol("set-2", "setting", configs=SETTINGS[:1])
    for target in ({"modules": ["setting"]}, {"agent_ids": ["set-1"]}):
        refused = setting(http, "max_daring", 1, **target)
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["field"]) == (
            422,
            "invalid_command",
            "config_key",
        )
        assert "max_open, min_score" in problem["detail"]
    of_replicas = setting(http, "max_daring", 1, modules=["control-plane"])
    assert (of_replicas.status_code, of_replicas.json()["field"]) == (422, "config_key")
    assert values(http, modules=["setting"]) == []
    assert setting(http, "max_open", 3, modules=["setting"]).json()["not_declared_by"] == ["set-2"]


def test_setting_that_agents_refused_is_shown_so_and_the_one_before_stays_in_force(
    system: RunningSystem, http: httpx.Client, agents: ReportingAgents
) -> None:
    agents.enrol("bad-1", "refusing", configs=SETTINGS)
    target = {"modules": ["refusing"]}
    good = setting(http, "min_score", 0.5, **target).json()
    agents.answer("bad-1", good["id"])
    for bad in (7, 8):
        issued = setting(http, "min_score", bad, **target).json()
        assert (issued["refused"], str(bad) in values(http, **target)) == (False, True)
        agents.answer("bad-1", issued["id"], "bad_params")
        shown = http.get(f"/api/control/commands/{issued['id']}").json()
        assert (shown["refused"], shown["states"]["ERROR"]) == (True, 1)
        assert "0.5" in values(http, **target)
    assert http.get(f"/api/control/commands/{good['id']}").json()["superseded_by"] is None
    late = setting(http, "min_score", 0.6, **target).json()
    agents.answer("bad-1", late["id"], "expired")  # the agent gets it again with a snapshot
    assert values(http, **target)[-1] == "0.6"
    agents.answer("bad-1", late["id"])
    assert values(http, **target) == ["0.6"]
    setting_9 = setting(http, "min_score", 9, **target).json()
    agents.answer("bad-1", setting_9["id"], "bad_params")
    listed = system.run("command", "list").stdout.splitlines()
    assert next(line for line in listed if setting_9["id"] in line).split()[-1] == "refused"
    system.run("rotate-key")
    (again,) = [one for one in in_force(http, "config") if one["target"] == target]
    assert again["version"]["epoch"] == 2
    agents.answer("bad-1", again["id"], "bad_params")  # the agent refuses it again
    assert "0.6" in values(http, **target)


def test_setting_of_one_agent_is_superseded_by_a_later_one_of_its_module(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    for name in ("one-1", "one-2"):
        agents.enrol(name, "onemodule", configs=SETTINGS)
    alone = setting(http, "min_score", 0.9, agent_ids=["one-1"]).json()
    both = setting(http, "min_score", 0.4, modules=["onemodule"]).json()
    assert values(http, agent_ids=["one-1"]) == []
    shown = http.get(f"/api/control/commands/{alone['id']}").json()
    assert (shown["superseded_by"], shown["deliveries"][0]["superseded_by"]) == (
        both["id"],
        both["id"],
    )
    for name in ("one-1", "one-2"):
        agents.answer(name, both["id"], "bad_params")
    assert values(http, agent_ids=["one-1"]) == ["0.9"]
    assert http.get(f"/api/control/commands/{alone['id']}").json()["superseded_by"] is None
