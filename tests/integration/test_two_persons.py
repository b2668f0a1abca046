"""Tests of two-person approval of everything that raises risk; lowering is immediate."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mev.control.keys import open_keys
from mev.core.clock import now_ns
from mev.registry.registry import Registry
from tests.services.models import register_bytes
from tests.services.reporting import ReportingAgents, reporting_agents
from tests.services.system import RunningSystem
from tests.services.waits import until_document

PASSWORD = "correct horse battery"
DECLARED: dict[str, Any] = {
    "policies": [
        {
            "type": "risk",
            "thresholds": [
                {"name": "min_profit_lamports", "tighter": "higher"},
                {"name": "max_tip_lamports", "tighter": "lower"},
                {"name": "max_position", "tighter": None},
            ],
        }
    ],
    "configs": [
        {"name": "min_score", "tighter": "higher", "initial": 0},
        {"name": "max_open", "tighter": "lower", "initial": 5},
        {"name": "venue", "tighter": None},
        {"name": "report_interval_s", "tighter": "neither"},
    ],
    "actions": [
        {"name": "flatten", "params": {}, "raises_risk": False},
        {"name": "set_size", "params": {}},
        {"name": "cancel_all", "params": {}},
    ],
}
Headers = dict[str, str]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run a system in which two persons have to agree."""
    running = RunningSystem(
        tmp_path_factory.mktemp("guarded") / "data", APPROVALS_REQUIRED="2", DEPLOY_WATCH_S="0.05"
    )
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def people(guarded: RunningSystem) -> dict[str, Headers]:
    """Return credentials: ann's login and key, bob's login, and two keys of the master."""
    found = {"master": {"X-API-Key": guarded.key}}
    with guarded.client() as master:
        for name in ("ann", "bob"):
            master.post(
                "/api/auth/users", json={"name": name, "password": PASSWORD, "role": "operator"}
            ).raise_for_status()
            login = master.post(
                "/api/auth/login",
                json={"name": name, "password": PASSWORD},
                headers={"X-API-Key": ""},
            )
            found[name] = {"Authorization": f"Bearer {login.json()['access_token']}"}
        scopes = [
            "control:command",
            "control:approve",
            "control:raise",
            "control:lower",
            "models:deploy",
            "control:read",
        ]
        key = {"name": "ann-script", "scopes": scopes, "days": 1}
        with httpx.Client(base_url=guarded.url, headers=found["ann"]) as ann:
            found["ann's key"] = {
                "X-API-Key": ann.post("/api/auth/keys", json=key).raise_for_status().json()["key"]
            }
        made = (
            master.post("/api/auth/keys", json=key | {"name": "other"})
            .raise_for_status()
            .json()["key"]
        )
        found["master's key"] = {"X-API-Key": made}
    return found


@pytest.fixture
def http(guarded: RunningSystem) -> Iterator[httpx.Client]:
    """Give a client without credentials; each request says whose it is."""
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        yield client


@pytest.fixture
def agents(guarded: RunningSystem) -> Iterator[ReportingAgents]:
    with guarded.client() as master, reporting_agents(guarded, master) as found:
        yield found


@pytest.fixture
def module(agents: ReportingAgents, request: pytest.FixtureRequest) -> str:
    """Enrol an agent in a module of the test's own and return the module's name."""
    name = f"m{abs(hash(request.node.nodeid)) % 10**12}"
    agents.enrol(f"{name}-1", name, **DECLARED).raise_for_status()
    return name


def policy(module: str, **more: Any) -> dict[str, Any]:
    body = {
        "policy_id": module,
        "policy_type": "risk",
        "thresholds": {"min_profit_lamports": 1000, "max_tip_lamports": 50},
    }
    rules = [{"field": "kind", "operator": "==", "value": "arbitrage"}]
    return body | {"rules": rules, "target": {"modules": [module]}} | more


def pending(answer: httpx.Response) -> str:
    """Check that an act waits for another person, and return its proposal's path."""
    assert answer.status_code == 202, answer.text
    assert answer.json()["state"] == "pending", answer.text
    return answer.headers["location"]


def at_once(answer: httpx.Response) -> dict[str, Any]:
    """Check that an act went through, and return the command."""
    assert answer.status_code == 202, answer.text
    assert "approvals_required" not in answer.json(), answer.text
    return dict(answer.json())


def agreed(http: httpx.Client, path: str, people: dict[str, Headers]) -> dict[str, Any]:
    """Check that one person cannot approve twice and that a second can; return the proposal."""
    for same in ("ann", "ann's key"):
        refused = http.post(path, json={"approve": True}, headers=people[same])
        assert (refused.status_code, refused.json()["code"]) == (403, "same_person"), refused.text
    done = http.post(path, json={"approve": True}, headers=people["bob"])
    assert done.status_code == 200, done.text
    assert (done.json()["state"], done.json()["approvers"]) == ("issued", ["ann", "bob"])
    return dict(done.json())


LOOSER: dict[str, dict[str, Any]] = {
    "disabled": {"enabled": False},
    "lower minimum": {"thresholds": {"min_profit_lamports": 999, "max_tip_lamports": 50}},
    "higher maximum": {"thresholds": {"min_profit_lamports": 1000, "max_tip_lamports": 51}},
    "removed threshold": {"thresholds": {"min_profit_lamports": 1000}},
    "removed rule": {"rules": []},
    "unknown direction": {
        "thresholds": {"min_profit_lamports": 1000, "max_tip_lamports": 50, "max_position": 1}
    },
}
TIGHTER: dict[str, dict[str, Any]] = {
    "higher minimum": {"thresholds": {"min_profit_lamports": 1001, "max_tip_lamports": 50}},
    "lower maximum": {"thresholds": {"min_profit_lamports": 1000, "max_tip_lamports": 49}},
    "added rule": {
        "rules": [
            {"field": "kind", "operator": "==", "value": "arbitrage"},
            {"field": "probability", "operator": ">", "value": 0.5},
        ]
    },
    "the same": {},
}


@pytest.mark.parametrize("who", ["ann", "ann's key"])
@pytest.mark.parametrize("change", LOOSER)
def test_looser_policy_needs_two_persons(
    http: httpx.Client, people: dict[str, Headers], module: str, change: str, who: str
) -> None:
    first = at_once(http.post("/api/control/policy", json=policy(module), headers=people["ann"]))
    answer = http.post(
        "/api/control/policy", json=policy(module, **LOOSER[change]), headers=people[who]
    )
    path = pending(answer)
    assert answer.json()["diff"]
    assert answer.json()["raises"]
    shown = http.get(f"/api/control/policies/{module}", headers=people["bob"]).json()
    assert shown["id"] == first["id"], "a proposal changes nothing"
    proposal = agreed(http, path, people)
    newest = http.get(f"/api/control/policies/{module}", headers=people["bob"]).json()
    assert (newest["id"], newest["approvers"]) == (proposal["command_id"], ["ann", "bob"])


@pytest.mark.parametrize("change", TIGHTER)
def test_tighter_policy_goes_through_at_once(
    http: httpx.Client, people: dict[str, Headers], module: str, change: str
) -> None:
    at_once(http.post("/api/control/policy", json=policy(module), headers=people["ann"]))
    at_once(
        http.post(
            "/api/control/policy", json=policy(module, **TIGHTER[change]), headers=people["ann"]
        )
    )


def test_rollback_that_loosens_needs_two_persons(
    http: httpx.Client, people: dict[str, Headers], agents: ReportingAgents, module: str
) -> None:
    for profit in (1000, 2000):
        body = policy(module, thresholds={"min_profit_lamports": profit})
        agents.answer(
            f"{module}-1",
            at_once(http.post("/api/control/policy", json=body, headers=people["ann"]))["id"],
        )
    path = pending(http.post(f"/api/control/policies/{module}/rollback", headers=people["ann"]))
    agreed(http, path, people)


def test_narrower_target_does_not_loosen_alone(
    http: httpx.Client, people: dict[str, Headers], module: str
) -> None:
    """A policy for one agent takes the place of the one for its module at that agent."""
    at_once(http.post("/api/control/policy", json=policy(module), headers=people["ann"]))
    for target in ({"agent_ids": [f"{module}-1"]}, {"all": True}):
        body = policy(module, thresholds={"min_profit_lamports": 1}, target=target)
        pending(http.post("/api/control/policy", json=body, headers=people["ann"]))


def test_policy_that_begins_later_does_not_loosen_now(
    http: httpx.Client, people: dict[str, Headers], module: str
) -> None:
    at_once(http.post("/api/control/policy", json=policy(module), headers=people["ann"]))
    later = {"effective_from": "2200-01-01T00:00:00Z"}
    at_once(
        http.post(
            "/api/control/policy",
            json=policy(module, **TIGHTER["higher minimum"], **later),
            headers=people["ann"],
        )
    )
    pending(
        http.post(
            "/api/control/policy",
            json=policy(module, thresholds={"min_profit_lamports": 2000}),
            headers=people["ann"],
        )
    )
    pending(
        http.post(
            "/api/control/policy",
            json=policy(module, effective_from="2201-01-01T00:00:00Z"),
            headers=people["ann"],
        )
    )


@pytest.mark.parametrize(
    ("key", "values", "raises"),
    [
        ("min_score", [0.5, 0.9], False),
        ("min_score", [0.5, 0.4], True),
        ("min_score", [0.5, 0], True),
        ("max_open", [4, 3], False),
        ("max_open", [6], True),
        ("max_open", [3, 4], True),
        ("venue", ["a"], True),
        ("report_interval_s", [1, 5, 2], False),
    ],
)
@pytest.mark.parametrize("who", ["ann", "ann's key"])
def test_looser_configuration_needs_two_persons(
    http: httpx.Client,
    people: dict[str, Headers],
    module: str,
    key: str,
    values: list[Any],
    raises: bool,
    who: str,
) -> None:
    answers = []
    for value in values:
        body = {"config_key": key, "config_value": value, "target": {"modules": [module]}}
        answers.append(http.post("/api/control/config", json=body, headers=people[who]))
    for answer in answers[:-1]:
        at_once(answer)
    if raises:
        issued = agreed(http, pending(answers[-1]), people)
        assert (
            http.get(f"/api/control/commands/{issued['command_id']}", headers=people["bob"]).json()[
                "kind"
            ]
            == "config"
        )
    else:
        at_once(answers[-1])


def test_setting_of_the_control_plane_needs_one_person(
    http: httpx.Client, people: dict[str, Headers]
) -> None:
    at_once(
        http.post(
            "/api/control/config",
            json={"config_key": "batch_window_ms", "config_value": 11},
            headers=people["ann"],
        )
    )


def test_agent_that_declares_otherwise_lets_nobody_loosen_alone(
    http: httpx.Client, people: dict[str, Headers], agents: ReportingAgents, module: str
) -> None:
    """Agents of a module are evaluated one by one; a declaration affects only its agent."""
    liar: dict[str, Any] = {"configs": [{"name": "min_score", "tighter": "lower", "initial": 1}]}
    agents.enrol(f"{module}-liar", module, **liar).raise_for_status()
    at_once(
        http.post(
            "/api/control/config",
            json=config(module, 0.5, agent=f"{module}-1"),
            headers=people["ann"],
        )
    )
    pending(http.post("/api/control/config", json=config(module, 0.1), headers=people["ann"]))
    pending(
        http.post(
            "/api/control/config",
            json=config(module, 0.1, agent=f"{module}-1"),
            headers=people["ann"],
        )
    )


def test_agent_that_was_let_go_is_asked_all_the_same(
    http: httpx.Client, people: dict[str, Headers], agents: ReportingAgents, module: str
) -> None:
    """One person must not revoke an agent and enrol one that declares everything harmless.

    The revoked agent may still obey.
    """
    at_once(http.post("/api/control/policy", json=policy(module), headers=people["ann"]))
    at_once(http.post("/api/control/config", json=config(module, 0.5), headers=people["ann"]))
    http.delete(f"/api/control/agents/{module}-1", headers=people["ann"]).raise_for_status()
    harmless: dict[str, Any] = {
        "policies": [
            {
                "type": "risk",
                "thresholds": [
                    {"name": name, "tighter": "neither"} for name in policy(module)["thresholds"]
                ],
            }
        ],
        "configs": [{"name": "min_score", "tighter": "neither"}],
        "actions": [
            {"name": "set_size", "params": {}, "raises_risk": False},
            {"name": "cancel_all", "params": {}},
        ],
    }
    agents.enrol(f"{module}-2", module, **harmless).raise_for_status()
    pending(
        http.post(
            "/api/control/policy",
            json=policy(module, **LOOSER["lower minimum"]),
            headers=people["ann"],
        )
    )
    pending(http.post("/api/control/config", json=config(module, 0.1), headers=people["ann"]))
    at_once(http.post("/api/control/config", json=config(module, 0.6), headers=people["ann"]))
    at_once(
        http.post(
            "/api/control/config",
            json=config(module, 0.1, agent=f"{module}-2"),
            headers=people["ann"],
        )
    )
    for action, target in (
        ("set_size", {"agent_ids": [f"{module}-2"]}),
        ("cancel_all", {"modules": [module]}),
    ):
        command = at_once(
            http.post(
                "/api/control/command",
                json={"module": module, "action": action},
                headers=people["ann"],
            )
        )
        assert command["target"] == target


def config(module: str, score: float, agent: str | None = None) -> dict[str, Any]:
    target = {"agent_ids": [agent]} if agent else {"modules": [module]}
    return {"config_key": "min_score", "config_value": score, "target": target}


@pytest.mark.parametrize("who", ["ann", "ann's key"])
def test_direct_swap_of_a_model_needs_two_persons(
    http: httpx.Client, people: dict[str, Headers], module: str, who: str
) -> None:
    swap = {
        "model_id": "m",
        "model_path": "m.mevt",
        "version": "1",
        "target": {"modules": [module]},
    }
    agreed(
        http, pending(http.post("/api/control/model-swap", json=swap, headers=people[who])), people
    )


@pytest.mark.parametrize("who", ["ann", "ann's key"])
def test_raised_level_needs_two_persons_and_a_lower_one_none(
    http: httpx.Client, people: dict[str, Headers], module: str, who: str
) -> None:
    body = {"scope": "module", "target": module, "reason": "test"}
    at_once(
        http.post("/api/control/kill-switch", json=body | {"level": "HALTED"}, headers=people[who])
    )
    agreed(
        http,
        pending(
            http.post(
                "/api/control/kill-switch", json=body | {"level": "ACTIVE"}, headers=people[who]
            )
        ),
        people,
    )
    at_once(
        http.post("/api/control/kill-switch", json=body | {"level": "NO_NEW"}, headers=people[who])
    )


def test_action_needs_two_persons_unless_it_is_declared_to_raise_no_risk(
    http: httpx.Client, people: dict[str, Headers], module: str
) -> None:
    for action in ("flatten", "cancel_all"):
        at_once(
            http.post(
                "/api/control/command",
                json={"module": module, "action": action},
                headers=people["ann"],
            )
        )
    agreed(
        http,
        pending(
            http.post(
                "/api/control/command",
                json={"module": module, "action": "set_size"},
                headers=people["ann"],
            )
        ),
        people,
    )


def test_action_goes_at_once_to_agents_that_declare_it_harmless_and_is_proposed_for_the_others(
    http: httpx.Client, people: dict[str, Headers], agents: ReportingAgents, module: str
) -> None:
    agents.enrol(
        f"{module}-2", module, actions=[{"name": "flatten", "params": {}}]
    ).raise_for_status()
    headers = people["ann"] | {"Idempotency-Key": f"flatten-{module}"}
    answers = [
        http.post(
            "/api/control/command", json={"module": module, "action": "flatten"}, headers=headers
        )
        for _ in range(2)
    ]
    first, again = (answer.json() for answer in answers)
    assert [one["agent_id"] for one in first["deliveries"]] == [f"{module}-1"]
    assert first["proposal"]["target"] == {"agent_ids": [f"{module}-2"]}
    assert (again["id"], again["proposal"]["id"]) == (first["id"], first["proposal"]["id"])
    agreed(http, answers[0].headers["location"], people)


def test_one_person_with_the_master_key_is_one_person(
    http: httpx.Client, people: dict[str, Headers], module: str
) -> None:
    body = {"config_key": "venue", "config_value": "a", "target": {"modules": [module]}}
    path = pending(http.post("/api/control/config", json=body, headers=people["master"]))
    for same in ("master", "master's key"):
        assert (
            http.post(path, json={"approve": True}, headers=people[same]).json()["code"]
            == "same_person"
        )
    assert (
        http.post(path, json={"approve": True}, headers=people["bob"]).json()["state"] == "issued"
    )


def test_approval_of_what_was_ordered_again_meanwhile_is_refused(
    http: httpx.Client, people: dict[str, Headers], module: str
) -> None:
    at_once(http.post("/api/control/policy", json=policy(module), headers=people["ann"]))
    path = pending(
        http.post("/api/control/policy", json=policy(module, enabled=False), headers=people["ann"])
    )
    at_once(
        http.post(
            "/api/control/policy",
            json=policy(module, **TIGHTER["higher minimum"]),
            headers=people["ann"],
        )
    )
    refused = http.post(path, json={"approve": True}, headers=people["bob"])
    assert (refused.status_code, refused.json()["code"]) == (409, "overtaken")


def test_first_policy_of_a_required_type_needs_two_persons(
    http: httpx.Client, people: dict[str, Headers], agents: ReportingAgents, module: str
) -> None:
    """Without a policy the agent is halted; a policy without limits would let it open positions."""
    required: dict[str, Any] = {
        "policies": [
            {
                "type": "risk",
                "required": True,
                "thresholds": [{"name": "min_profit_lamports", "tighter": "higher"}],
            }
        ]
    }
    agents.enrol(f"{module}-1", module, **required).raise_for_status()
    body = policy(module, thresholds={})
    agreed(
        http, pending(http.post("/api/control/policy", json=body, headers=people["ann"])), people
    )
    at_once(
        http.post(
            "/api/control/policy",
            json=policy(module, thresholds={"min_profit_lamports": 5}),
            headers=people["ann"],
        )
    )


@pytest.fixture(scope="module")
def model(guarded: RunningSystem) -> str:
    """Register a model and return its id."""
    keys = open_keys(guarded.data_dir / "control", seed_hex=None, key_id=None, now_ns=now_ns())
    return register_bytes(
        Registry(guarded.data_dir / "models", keys.trust), "guarded", keys.model_signer()
    )


@pytest.mark.parametrize("who", ["ann", "ann's key"])
def test_stages_in_which_a_model_decides_need_two_persons(
    http: httpx.Client,
    people: dict[str, Headers],
    agents: ReportingAgents,
    module: str,
    model: str,
    who: str,
) -> None:
    agents.report(f"{module}-1")
    with httpx.Client(base_url=http.base_url, headers=people["bob"]) as bob:
        fleet = "/api/control/agents?limit=1000"
        until_document(
            bob,
            fleet,
            lambda page: any(
                one["agent_id"] == f"{module}-1" and one["online"] for one in page["items"]
            ),
        )
    path, body = f"/api/training/models/{model}/deploy", {"module": module}
    shadow = http.post(path, json=body | {"stage": "shadow"}, headers=people[who])
    assert (shadow.status_code, shadow.json()["stage"]) == (202, "shadow"), shadow.text
    pending(http.post(path, json=body | {"stage": "shadow", "promote": True}, headers=people[who]))
    for stage in ("canary", "production"):
        more = {"agent_ids": [f"{module}-1"]} if stage == "canary" else {}
        proposal = agreed(
            http,
            pending(http.post(path, json=body | more | {"stage": stage}, headers=people[who])),
            people,
        )
        assert proposal["kind"] == "deployment"
        shown = http.get(
            f"/api/training/deployments/{proposal['deployment_id']}", headers=people["bob"]
        ).json()
        assert shown["stage"] == stage
        (command_id, *_) = [command["command_id"] for command in shown["steps"][-1]["commands"]]
        assert http.get(f"/api/control/commands/{command_id}", headers=people["bob"]).json()[
            "approvers"
        ] == ["ann", "bob"]
    back = http.post(path, json=body | {"stage": "rollback"}, headers=people[who])
    assert (back.status_code, back.json().get("state")) == (202, "rolled_back"), back.text


def test_what_a_proposal_would_do_is_shown_to_those_who_approve(
    guarded: RunningSystem, people: dict[str, Headers], module: str
) -> None:
    with httpx.Client(base_url=guarded.url, headers=people["ann"]) as ann:
        pending(
            ann.post(
                "/api/control/config",
                json={"config_key": "venue", "config_value": "a", "target": {"modules": [module]}},
            )
        )
        newest = ann.get("/api/control/approvals?limit=1").json()["items"][0]
    assert (newest["kind"], json.loads(newest["body"]["config_value_json"])) == ("config", "a")
    assert "does not declare" in newest["reason"]
    assert newest["id"][:8] in guarded.run("approvals", "list").stdout


def test_proposals_waiting_for_me_are_those_that_my_approval_would_count_for(
    http: httpx.Client, people: dict[str, Headers], module: str
) -> None:
    body = {"config_key": "venue", "config_value": "a", "target": {"modules": [module]}}
    location = pending(http.post("/api/control/config", json=body, headers=people["ann"]))

    def waits(who: Headers) -> bool:
        path = "/api/control/approvals?waiting_for_me=true&limit=1000"
        page = http.get(path, headers=who).raise_for_status().json()
        assert {item["state"] for item in page["items"]} <= {"pending"}
        return location.rpartition("/")[2] in {item["id"] for item in page["items"]}

    reader = {"name": "reader", "scopes": ["control:read"], "days": 1}
    made = http.post("/api/auth/keys", json=reader, headers=people["bob"]).raise_for_status()
    bobs_reader = {"X-API-Key": made.json()["key"]}
    assert not waits(people["ann"]), "ann proposed it"
    assert not waits(people["ann's key"])
    assert waits(people["bob"])
    assert waits(people["master"])
    assert not waits(bobs_reader), "this key may not approve"
    agreed(http, location, people)
    assert not waits(people["master"]), "it has been issued"
