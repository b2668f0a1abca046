"""Policies in a running system: a policy is in force only when agents have acknowledged it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.services.fleet import Fleet
from tests.services.reporting import ReportingAgents, reporting_agents
from tests.services.system import MEV, RunningSystem
from tests.services.waits import until_document


@pytest.fixture
def agents(system: RunningSystem, http: httpx.Client) -> Iterator[ReportingAgents]:
    with reporting_agents(system, http) as found:
        yield found


def risk(policy_id: str, module: str, profit: float, **more: Any) -> dict[str, Any]:
    """Return a policy for a module."""
    body = {
        "policy_id": policy_id,
        "policy_type": "risk",
        "thresholds": {"min_profit_lamports": profit},
    }
    return body | {"target": {"modules": [module]}} | more


def ordered(http: httpx.Client, policy: dict[str, Any]) -> str:
    """Set a policy and return its command's id."""
    answer = http.post("/api/control/policy", json=policy)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def shown(http: httpx.Client, policy_id: str) -> dict[str, Any]:
    return dict(http.get(f"/api/control/policies/{policy_id}").raise_for_status().json())


def test_policy_is_in_force_only_when_acknowledged(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    for name in ("ack-1", "ack-2"):
        agents.enrol(name, "acking", policy_types=["risk"])
        agents.report(name)
    command_id = ordered(http, risk("acking", "acking", 1000))
    requested = shown(http, "acking")
    assert (requested["id"], requested["state"]) == (command_id, "requested")
    assert requested["waiting_for"] == ["ack-1", "ack-2"]
    assert requested["last_acknowledged"] is None

    agents.answer("ack-1", command_id)
    until_document(
        http,
        "/api/control/agents",
        lambda page: all(a["online"] for a in page["items"] if a["module"] == "acking"),
    )
    assert shown(http, "acking")["state"] == "partly_in_force"
    agents.answer("ack-2", command_id)
    done = shown(http, "acking")
    assert (done["state"], done["acknowledged_by"], done["waiting_for"]) == (
        "in_force",
        ["ack-1", "ack-2"],
        [],
    )
    (listed,) = [
        item
        for item in http.get("/api/control/policies").json()["items"]
        if item["policy_id"] == "acking"
    ]
    assert (listed["state"], listed["acknowledged_by"]) == ("in_force", ["ack-1", "ack-2"])


def test_refused_policy_is_not_in_force_and_names_who_refused_it(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    agents.enrol("refuser-1", "refusing", policy_types=["risk"])
    command_id = ordered(http, risk("refusing", "refusing", 1000))
    agents.answer("refuser-1", command_id, "bad_policy")
    refused = shown(http, "refusing")
    assert refused["state"] == "refused"
    assert refused["refused_by"] == [
        {"agent_id": "refuser-1", "reason_code": "bad_policy", "detail": None}
    ]
    assert refused["acknowledged_by"] == []


def test_rollback_returns_to_last_acknowledged_version(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    agents.enrol("roller-1", "rolling", policy_types=["risk"])
    unanswered = http.post("/api/control/policies/rolling/rollback")
    assert (unanswered.status_code, unanswered.json()["code"]) == (404, "unknown_policy")
    for profit, reason_code in ((1000, ""), (2000, "bad_policy"), (3000, "bad_policy")):
        agents.answer("roller-1", ordered(http, risk("rolling", "rolling", profit)), reason_code)
    back = http.post("/api/control/policies/rolling/rollback").raise_for_status().json()
    assert back["body"]["thresholds"] == {"min_profit_lamports": 1000.0}
    agents.answer("roller-1", back["id"])
    nothing = http.post("/api/control/policies/rolling/rollback")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "no_acknowledged_version")
    versions = http.get("/api/control/policies/rolling/versions").json()["items"]
    assert [version["state"] for version in versions] == [
        "in_force",
        "refused",
        "refused",
        "superseded",
    ]


def test_one_agent_of_many_decides_no_rollback(http: httpx.Client, agents: ReportingAgents) -> None:
    names = ("honest-1", "honest-2", "liar")
    for name in names:
        agents.enrol(name, "mixed", policy_types=["risk"])
    for profit, liar, others in (
        (1000, "bad_policy", ""),
        (2000, "", "bad_policy"),
        (3000, "bad_policy", ""),
    ):
        command_id = ordered(http, risk("mixed", "mixed", profit))
        for name in names:
            agents.answer(name, command_id, liar if name == "liar" else others)
    back = http.post("/api/control/policies/mixed/rollback").raise_for_status().json()
    assert back["body"]["thresholds"] == {"min_profit_lamports": 1000.0}


def test_acknowledged_policy_that_is_disabled_or_begins_later_is_not_in_force(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    agents.enrol("later-1", "later", policy_types=["risk"])
    for more, state in (
        ({"enabled": False}, "disabled"),
        ({"effective_from": "2200-01-01T00:00:00Z"}, "scheduled"),
    ):
        agents.answer("later-1", ordered(http, risk("later", "later", 1000, **more)))
        assert shown(http, "later")["state"] == state


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"thresholds": {"min_proft_lamports": 1}}, "thresholds.min_proft_lamports"),
        ({"thresholds": {"max_position": 1}}, "thresholds.max_position"),
        ({"policy_type": "rsik"}, "policy_type"),
        ({"rules": [{"field": "kind", "operator": ">", "value": "a"}]}, "rules[0].operator"),
        ({"rules": [{"field": "slot", "operator": ">", "value": "1.5"}]}, "rules[0].value"),
        ({"rules": [{"field": "simulated", "operator": "==", "value": "yes"}]}, "rules[0].value"),
    ],
)
def test_policy_that_no_agent_could_apply_is_not_issued(
    http: httpx.Client, agents: ReportingAgents, wrong: dict[str, Any], field: str
) -> None:
    agents.enrol(
        "strict-1",
        "strict",
        policies=[{"type": "risk", "thresholds": [{"name": "min_profit_lamports"}]}],
    )
    refused = http.post("/api/control/policy", json=risk("strict", "strict", 1) | wrong)
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        422,
        "invalid_command",
        field,
    ), refused.text
    assert http.get("/api/control/policies/strict").status_code == 404


def test_policy_names_agents_whose_declaration_it_does_not_fit(
    http: httpx.Client, agents: ReportingAgents
) -> None:
    for name, threshold in (("newer", "max_position"), ("older", "min_profit_lamports")):
        agents.enrol(
            name, "aging", policies=[{"type": "risk", "thresholds": [{"name": threshold}]}]
        )
    answer = http.post(
        "/api/control/policy", json=risk("aging", "aging", 1, thresholds={"max_position": 5})
    )
    assert answer.status_code == 202
    assert [
        (one["agent_id"], one["reason_code"], one["field"])
        for one in answer.json()["not_declared_by"]
    ] == [("older", "bad_policy", "thresholds.max_position")]


def test_agent_without_a_policy_that_its_module_requires_opens_no_position(
    system: RunningSystem, http: httpx.Client
) -> None:
    fleet = Fleet(system)

    def shows(**wanted: Any) -> dict[str, Any]:
        def holds(page: dict[str, Any]) -> bool:
            return any(
                one["agent_id"] == "careful" and one.items() >= wanted.items()
                for one in page["items"]
            )

        page = until_document(http, "/api/control/agents?limit=1000", holds)
        return next(one for one in page["items"] if one["agent_id"] == "careful")

    try:
        fleet.run(
            "careful",
            MEV,
            "agent",
            "run",
            "--module",
            "arbitrage",
            "--id",
            "careful",
            "--require-policy",
            "risk",
        )
        shows(online=True)
        http.post(
            "/api/control/kill-switch", json={"scope": "all", "level": "ACTIVE", "reason": "test"}
        ).raise_for_status()
        waiting = shows(level="NO_NEW", ordered_level="ACTIVE", missing_policies=["risk"])
        assert waiting["stepped_down"].startswith("policy_missing")
        assert waiting["required_policies"] == ["risk"]
        disabled = risk("careful", "arbitrage", 1000, enabled=False)
        ordered(http, disabled)
        until_document(
            http, "/api/control/policies/careful", lambda policy: policy["state"] == "disabled"
        )
        shows(level="NO_NEW", missing_policies=["risk"])
        ordered(http, risk("careful", "arbitrage", 1000))
        assert shows(level="ACTIVE", missing_policies=[])["stepped_down"] is None
        assert shown(http, "careful")["state"] == "in_force"
    finally:
        fleet.close()
