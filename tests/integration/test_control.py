"""Orders in a running system: issued, delivered, answered, remembered."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from mev import settings
from mev.bus.boot import open_publisher
from mev.bus.embedded import embedded_brokers
from mev.core.clock import now_ns
from mev.crypto import possession
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import SHADOW, ModelUse, Report, Running
from mev.wire.topics import REPORT
from tests.services.reporting import enrol, reporting_agents, signed_enrolment
from tests.services.system import MEV, RunningSystem
from tests.services.waits import until, until_document

HALT = {"scope": "all", "level": "HALTED", "reason": "test"}
RAISE = {"scope": "all", "level": "ACTIVE", "reason": "test"}


@pytest.fixture
def own_system(tmp_path: Path) -> Iterator[RunningSystem]:
    """Give a system that the test starts and stops itself."""
    running = RunningSystem(tmp_path / "data", REPORT_INTERVAL_S="0.2")
    yield running
    running.kill()


def replica(http: httpx.Client) -> str:
    """Return the name of the only replica once it reports."""
    fleet = until_document(
        http, "/api/control/agents", lambda page: page["items"] and page["items"][0]["online"]
    )
    return str(fleet["items"][0]["agent_id"])


def enrolled(http: httpx.Client, agent_id: str, module: str = "arbitrage") -> SigningKey:
    """Enrol an agent and return its key."""
    key = SigningKey.generate()
    body = {
        "agent_id": agent_id,
        "module": module,
        "actions": [
            {
                "name": "set_min_profit",
                "params": {
                    "type": "object",
                    "required": ["lamports"],
                    "properties": {"lamports": {"type": "integer", "minimum": 0}},
                },
            }
        ],
        "policy_types": ["risk"],
    }
    answer = enrol(http, key, body)
    assert answer.status_code == 201, answer.text
    assert {"key_set", "snapshot", "control_offset", "lease_ttl_s", "report_interval_s"} <= set(
        answer.json()
    )
    return key


def test_hot_configuration_is_applied_and_acknowledged_by_every_replica(
    system: RunningSystem, http: httpx.Client
) -> None:
    name = replica(http)
    issued = http.post(
        "/api/control/config",
        json={"config_key": "batch_window_ms", "config_value": 11, "hot_reload": True},
    )
    assert issued.status_code == 202
    done = until_document(
        http, f"/api/control/commands/{issued.json()['id']}", lambda c: c["states"]["SYNCED"] == 1
    )
    (delivery,) = done["deliveries"]
    assert (delivery["agent_id"], delivery["state"]) == (name, "SYNCED")
    assert delivery["latency_ms"] > 0
    assert "batch_window_ms is now 11" in system.log.read_text()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"config_key": "batch_window_ms", "config_value": 0}, "config_value"),
        ({"config_key": "batch_window_ms", "config_value": "x"}, "config_value"),
        ({"config_key": "kafka_brokers", "config_value": "x:1"}, "config_key"),
        ({"config_key": "batch_window_ms", "config_value": 20, "hot_reload": False}, "hot_reload"),
    ],
)
def test_configuration_is_checked_before_it_is_published(
    http: httpx.Client, body: dict[str, Any], field: str
) -> None:
    answer = http.post("/api/control/config", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422,
        "invalid_command",
        field,
    )


def test_a_command_must_be_what_the_module_declared(http: httpx.Client) -> None:
    enrolled(http, "declared-1", "declared")

    def refused(body: dict[str, Any]) -> str:
        answer = http.post("/api/control/command", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_command"), answer.text
        return str(answer.json()["field"])

    good = {"module": "declared", "action": "set_min_profit", "params": {"lamports": 5}}
    assert refused(good | {"module": "nobody"}) == "module"
    assert refused(good | {"action": "format_disk"}) == "action"
    assert refused(good | {"params": {"lamports": -1}}) == "params['lamports']"
    assert refused(good | {"params": {}}) == "params"
    assert refused(good | {"target": {"agent_ids": ["nobody"]}}) == "target.agent_ids"
    issued = http.post("/api/control/command", json=good)
    assert issued.status_code == 202
    assert [d["agent_id"] for d in issued.json()["deliveries"]] == ["declared-1"]


def test_silence_is_stale_and_a_forged_report_changes_nothing(
    system: RunningSystem, http: httpx.Client
) -> None:
    key = enrolled(http, "silent-1", "silent")
    order = {"module": "silent", "action": "set_min_profit", "params": {"lamports": 5}}
    command_id = http.post("/api/control/command", json=order).json()["id"]
    path = f"/api/control/commands/{command_id}"
    assert http.get(path).json()["deliveries"][0]["state"] == "STALE"

    runtime = json.loads((system.data_dir / "runtime.json").read_text())
    with closing(
        open_publisher(
            settings.load(), embedded_brokers(system.data_dir / "kafka", runtime["kafka"])
        )
    ) as publisher:

        def report(signer: SigningKey, counter: int, result: str) -> None:
            answer = Report(
                agent_id="silent-1",
                agent_counter=counter,
                command_id=command_id,
                result=result,
                reported_at_ns=now_ns(),
            )
            publisher.publish_and_wait(
                REPORT, [{"key": b"silent-1", "value": seal(answer, signer).SerializeToString()}]
            )

        report(SigningKey.generate(), 1, "ACK")
        report(key, 2, "NACK")
        assert (
            until_document(http, path, lambda c: c["states"]["ERROR"] == 1)["deliveries"][0][
                "state"
            ]
            == "ERROR"
        )
        report(key, 2, "ACK")  # a counter that was used before: a copy, whatever it says
        report(key, 1, "ACK")
        report(key, 3, "STATUS")
        until_document(
            http,
            "/api/control/agents",
            lambda page: any(a["agent_id"] == "silent-1" and a["online"] for a in page["items"]),
        )
        assert http.get(path).json()["deliveries"][0]["state"] == "ERROR"


def test_the_same_idempotency_key_is_the_same_command(http: httpx.Client) -> None:
    enrolled(http, "idempotent-1", "idempotent")
    order = {"module": "idempotent", "action": "set_min_profit", "params": {"lamports": 5}}
    headers = {"Idempotency-Key": "once"}
    first = http.post("/api/control/command", json=order, headers=headers).json()["id"]
    assert http.post("/api/control/command", json=order, headers=headers).json()["id"] == first
    other = http.post(
        "/api/control/command", json=order | {"params": {"lamports": 6}}, headers=headers
    )
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_policies_show_what_changes_and_roll_back(
    system: RunningSystem, http: httpx.Client
) -> None:
    policy = {
        "policy_id": "limits",
        "policy_type": "risk",
        "thresholds": {"min_profit_lamports": 1000},
        "target": {"modules": ["policied"]},
    }
    with reporting_agents(system, http) as agents:
        agents.enrol("policy-1", "policied", policy_types=["risk"])
        agents.answer(
            "policy-1",
            http.post("/api/control/policy", json=policy).raise_for_status().json()["id"],
        )
    changed = http.post(
        "/api/control/policy",
        json=policy | {"thresholds": {"min_profit_lamports": 2000}, "enabled": False},
    ).json()
    assert changed["diff"] == {
        "enabled": [True, False],
        "thresholds.min_profit_lamports": [1000.0, 2000.0],
    }
    back = http.post("/api/control/policies/limits/rollback").json()
    assert back["diff"] == {
        "enabled": [False, True],
        "thresholds.min_profit_lamports": [2000.0, 1000.0],
    }
    versions = http.get("/api/control/policies/limits/versions").json()["items"]
    assert [v["body"]["thresholds"] for v in versions] == [
        {"min_profit_lamports": p} for p in (1000.0, 2000.0, 1000.0)
    ]
    for wrong, field in (
        ({"policy_type": "other"}, "policy_type"),
        ({"rules": [{"field": "nope", "operator": "==", "value": 1}]}, "rules[0].field"),
        (
            {"rules": [{"field": "tip_lamports", "operator": "<", "value": "much"}]},
            "rules[0].value",
        ),
    ):
        assert http.post("/api/control/policy", json=policy | wrong).json()["field"] == field


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "~/x",
        "a\\..\\b",
        "a\n/b",
        "a/.",
        "a%2e%2e/b",
        "",
    ],
)
def test_a_model_path_stays_in_its_folder(http: httpx.Client, path: str) -> None:
    answer = http.post(
        "/api/control/model-swap", json={"model_id": "m", "model_path": path, "version": "1"}
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "model_path")


def test_who_may_deploy_puts_no_model_in_production_by_a_direct_swap(
    system: RunningSystem, http: httpx.Client
) -> None:
    swap = {"model_id": "m", "model_path": "m.mevt", "version": "1"}
    for scopes, status in ((["models:deploy"], 403), (["models:deploy", "control:raise"], 202)):
        key = (
            http.post("/api/auth/keys", json={"name": "ml", "scopes": scopes, "days": 1})
            .raise_for_status()
            .json()["key"]
        )
        answer = httpx.post(
            f"{system.url}/api/control/model-swap", json=swap, headers={"X-API-Key": key}
        )
        assert answer.status_code == status, answer.text


def test_agent_is_shown_with_its_declarations(http: httpx.Client) -> None:
    body = {
        "agent_id": "declares-everything",
        "module": "arbitrage",
        "actions": [
            {"name": "close", "description": "Close all.", "params": {}, "raises_risk": False},
            {"name": "add", "params": {"type": "object", "minProperties": 1}},
        ],
        "policies": [
            {
                "type": "risk",
                "required": True,
                "thresholds": [{"name": "min_tip", "tighter": "higher", "initial": 0}],
            }
        ],
        "configs": [{"name": "size"}],
    }
    assert enrol(http, SigningKey.generate(), body).status_code == 201
    shown = http.get("/api/control/agents/declares-everything").raise_for_status().json()
    assert shown["module"] == "arbitrage"
    assert shown["declared"] == {
        "actions": [
            {"name": "close", "description": "Close all.", "raises_risk": False, "params": {}},
            {
                "name": "add",
                "description": "",
                "raises_risk": True,
                "params": {"type": "object", "minProperties": 1},
            },
        ],
        "policies": [
            {
                "type": "risk",
                "required": True,
                "thresholds": [{"name": "min_tip", "tighter": "higher", "initial": 0.0}],
            }
        ],
        "configs": [{"name": "size", "tighter": None, "initial": None}],
    }
    unknown = http.get("/api/control/agents/nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_agent")


def test_settings_that_change_at_runtime_are_listed_with_their_schema(http: httpx.Client) -> None:
    items = http.get("/api/control/config").raise_for_status().json()["items"]
    schemas = {each["key"]: each["schema"] for each in items}
    assert set(schemas) == {"batch_window_ms", "log_level"}
    assert schemas["batch_window_ms"]["type"] in {"integer", "number"}
    assert "INFO" in schemas["log_level"]["enum"]
    assert all(each["description"] for each in items)


def test_an_agents_name_belongs_to_its_key(http: httpx.Client) -> None:
    enrolled(http, "named-1")
    other, body = SigningKey.generate(), {"agent_id": "named-1", "module": "arbitrage"}
    assert enrol(http, other, body).json()["code"] == "agent_exists"
    assert http.delete("/api/control/agents/named-1").status_code == 204
    assert enrol(http, other, body).status_code == 201
    assert http.delete("/api/control/agents/nobody").json()["code"] == "unknown_agent"


@pytest.mark.parametrize("proof", ["none", "of another key", "of another body"])
def test_only_the_agent_says_what_it_declares(http: httpx.Client, proof: str) -> None:
    """Otherwise one person could declare that nothing raises risk, or remove agents."""
    own, body = (
        enrolled(http, f"own-{len(proof)}", "owned"),
        {"agent_id": f"own-{len(proof)}", "module": "elsewhere"},
    )
    content, headers = signed_enrolment(own, body)
    forged = {
        "none": {name: value for name, value in headers.items() if name != possession.HEADER},
        "of another key": headers
        | {possession.HEADER: possession.prove(SigningKey.generate(), content)},
        "of another body": headers | {possession.HEADER: possession.prove(own, content + b" ")},
    }
    refused = http.post("/api/control/agents", content=content, headers=forged[proof])
    assert (refused.status_code, refused.json()["code"]) == (403, "key_not_proven"), refused.text
    assert (
        http.post(
            "/api/control/kill-switch", json=HALT | {"scope": "module", "target": "owned"}
        ).status_code
        == 202
    )
    assert http.post("/api/control/agents", content=content, headers=headers).status_code == 201


def test_an_agent_on_another_machine_enrols_with_a_key_that_can_do_nothing_else(
    system: RunningSystem, http: httpx.Client, tmp_path: Path
) -> None:
    key = (
        http.post("/api/auth/keys", json={"name": "agents", "scopes": ["agents:enrol"], "days": 1})
        .raise_for_status()
        .json()["key"]
    )
    brokers = dict(
        word.split("=", 1) for word in shlex.split(system.run("config", "kafka", "--agent").stdout)
    )
    elsewhere = {"MEV_DATA_DIR": str(tmp_path / "elsewhere"), "MEV_AGENT_KEY": key, **brokers}
    command = [
        str(MEV),
        "agent",
        "run",
        "--module",
        "arbitrage",
        "--id",
        "remote-1",
        "--api",
        system.url,
    ]
    with (
        (tmp_path / "agent.log").open("wb") as log,
        subprocess.Popen(command, env=system.environment | elsewhere, stderr=log) as agent,
    ):
        try:
            until_document(
                http,
                "/api/control/agents",
                lambda page: any(
                    a["agent_id"] == "remote-1" and a["online"] for a in page["items"]
                ),
            )
        finally:
            agent.terminate()
    assert not (tmp_path / "elsewhere" / "master-api-key").exists()
    with httpx.Client(base_url=system.url, headers={"X-API-Key": key}) as stolen:
        assert stolen.get("/api/control/snapshot").status_code == 200
        for method, path in (
            ("DELETE", "/api/control/agents/remote-1"),
            ("GET", "/api/control/agents"),
            ("GET", "/api/events/tick"),
        ):
            refused = stolen.request(method, path)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        assert stolen.post("/api/control/kill-switch", json=HALT).status_code == 403


def test_of_many_that_enrol_under_one_name_at_once_one_wins(http: httpx.Client) -> None:
    keys = [SigningKey.generate() for _ in range(32)]

    def status(key: SigningKey) -> int:
        return enrol(http, key, {"agent_id": "wanted", "module": "arbitrage"}).status_code

    with ThreadPoolExecutor(len(keys)) as pool:
        assert sorted(pool.map(status, keys)) == [201] + [409] * (len(keys) - 1)
    (winner,) = [key for key in keys if status(key) == 201]
    assert status(winner) == 201


def test_policy_file_of_the_documentation_is_accepted_and_in_force(
    system: RunningSystem, http: httpx.Client, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
    (example,) = re.findall(r"```json\n(\{\n  \"policy_id\".*?)```", page, re.DOTALL)
    file = tmp_path / "limits.json"
    file.write_text(
        example.replace('"arbitrage"]', '"documented"]').replace("limits", "documented")
    )
    with reporting_agents(system, http) as agents:
        agents.enrol("documented-1", "documented", policy_types=["risk"])
        issued = json.loads(system.run("policy", "set", str(file), "--json", "--wait", "0").stdout)
        agents.answer("documented-1", issued["id"])
        until_document(
            http,
            "/api/control/policies/documented",
            lambda policy: policy["state"] == "in_force",
        )


def test_what_is_too_large_to_be_published_is_never_in_force(http: httpx.Client) -> None:
    rule = {"field": "agent_id", "operator": "==", "value": "a" * 300_000}
    answer = http.post(
        "/api/control/policy", json={"policy_id": "big", "policy_type": "risk", "rules": [rule]}
    )
    assert answer.status_code == 422
    assert "big" not in {
        item["body"]["policy_id"] for item in http.get("/api/control/policies").json()["items"]
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/x"},
        {"properties": {"a": {"pattern": "^(a+)+$"}}},
        {"type": 5},
        {"title": "x" * 20_000},
    ],
)
def test_an_action_schema_cannot_fetch_or_stall(http: httpx.Client, schema: dict[str, Any]) -> None:
    body = {
        "agent_id": "schemer",
        "module": "schemer",
        "public_key": "ab" * 32,
        "actions": [{"name": "x", "params": schema}],
    }
    answer = http.post("/api/control/agents", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "actions[0].params")


def test_nobody_enrols_as_the_control_plane(http: httpx.Client) -> None:
    body = {"agent_id": "impostor", "module": "control-plane", "public_key": "ab" * 32}
    assert http.post("/api/control/agents", json=body).json()["field"] == "module"


def test_a_stop_repeated_under_its_key_is_a_stop_again(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "stop"}
    first = http.post("/api/control/kill-switch", json=HALT, headers=headers).json()["id"]
    assert http.post("/api/control/kill-switch", json=HALT, headers=headers).json()["id"] == first
    http.post("/api/control/kill-switch", json=RAISE)
    again = http.post("/api/control/kill-switch", json=HALT, headers=headers).json()["id"]
    assert again != first
    assert http.get("/api/control/commands?limit=1").json()["items"][0]["id"] == again


def test_orders_in_force_are_listed_alone(system: RunningSystem, http: httpx.Client) -> None:
    with reporting_agents(system, http) as agents:
        agents.enrol("listed", "listing", actions=[{"name": "wait", "params": {"type": "object"}}])
        halts = [
            http.post(
                "/api/control/kill-switch", json=HALT | {"scope": "module", "target": "listing"}
            ).json()
            for _ in range(2)
        ]
        http.post(
            "/api/control/command", json={"module": "listing", "action": "wait"}
        ).raise_for_status()
        agents.report("listed")
        agents.answer("listed", halts[1]["id"])
        items = http.get("/api/control/commands?in_force=true&limit=1000").json()["items"]
    (halt,) = [item for item in items if item["target"].get("modules") == ["listing"]]
    assert (halt["id"], halt["states_online"]) == (
        halts[1]["id"],
        {"NOT_SENT": 0, "STALE": 0, "SYNCED": 1, "ERROR": 0},
    )


def test_commands_and_agents_are_paged(http: httpx.Client) -> None:
    for number in range(5):
        http.post("/api/control/kill-switch", json=HALT | {"reason": f"page {number}"})
    seen, cursor = [], ""
    while True:
        page = http.get(
            "/api/control/commands", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        seen += [item["id"] for item in page["items"]]
        if not (cursor := page["next_cursor"]):
            break
    assert len(seen) == len(set(seen)) >= 5
    assert seen == sorted(seen, reverse=True)
    assert http.get("/api/control/commands?cursor=nope").json()["code"] == "invalid_cursor"


def test_raising_needs_two_people_where_two_are_required(own_system: RunningSystem) -> None:
    own_system.environment["APPROVALS_REQUIRED"] = "2"
    own_system.start()
    with own_system.client() as master:
        accounts = {}
        for name in ("ann", "bob"):
            answer = master.post(
                "/api/auth/users",
                json={"name": name, "password": "correct horse battery", "role": "operator"},
            )
            assert answer.is_success, answer.text
            login = master.post(
                "/api/auth/login",
                json={"name": name, "password": "correct horse battery"},
                headers={"X-API-Key": ""},
            )
            accounts[name] = {"Authorization": f"Bearer {login.json()['access_token']}"}
        with httpx.Client(base_url=own_system.url) as people:
            proposed = people.post("/api/control/kill-switch", json=RAISE, headers=accounts["ann"])
            assert (proposed.status_code, proposed.json()["state"]) == (202, "pending")
            assert "/api/control/approvals/" in proposed.headers["location"]
            path = proposed.headers["location"]
            same = people.post(path, json={"approve": True}, headers=accounts["ann"])
            assert (same.status_code, same.json()["code"]) == (403, "same_person")
            other = people.post(path, json={"approve": True}, headers=accounts["bob"]).json()
            assert (other["state"], other["approvers"]) == ("issued", ["ann", "bob"])
            issued = people.get(
                f"/api/control/commands/{other['command_id']}", headers=accounts["bob"]
            ).json()
            assert issued["body"]["level"] == "ACTIVE"
            assert (
                people.post(path, json={"approve": True}, headers=accounts["bob"]).json()["code"]
                == "unknown_proposal"
            )
            lowered = people.post("/api/control/kill-switch", json=HALT, headers=accounts["ann"])
            _check_master_is_one_person(own_system, people)
            late = people.post(
                "/api/control/kill-switch", json=RAISE, headers=accounts["ann"]
            ).headers["location"]
            people.post("/api/control/kill-switch", json=HALT, headers=accounts["ann"])
            assert (
                people.post(late, json={"approve": True}, headers=accounts["bob"]).json()["code"]
                == "overtaken"
            )
            assert lowered.json()["kind"] == "level"
    own_system.stop()


def _check_master_is_one_person(system: RunningSystem, people: httpx.Client) -> None:
    """Check that the holder of the master key cannot approve their own proposal."""
    master = {"X-API-Key": system.key}
    path = people.post("/api/control/kill-switch", json=RAISE, headers=master).headers["location"]
    made = people.post(
        "/api/auth/keys",
        json={"name": "other", "scopes": ["control:approve"], "days": 1},
        headers=master,
    )
    answer = people.post(path, json={"approve": True}, headers={"X-API-Key": made.json()["key"]})
    assert answer.json()["code"] == "same_person", answer.text


@pytest.mark.slow
def test_what_is_in_force_outlives_kill_9_and_nothing_is_raised_by_itself(
    own_system: RunningSystem,
) -> None:
    own_system.start()
    with own_system.client() as http:
        enrolled(http, "lasting-1")
        http.post("/api/control/kill-switch", json=RAISE)
        http.post("/api/control/config", json={"config_key": "batch_window_ms", "config_value": 13})
        halted = http.post("/api/control/kill-switch", json=HALT).json()["id"]
        before = http.get("/api/control/commands").json()["items"]
    own_system.kill()
    own_system.start()
    with own_system.client() as http:
        after = http.get("/api/control/commands").json()["items"]
        assert [item["id"] for item in after] == [item["id"] for item in before]
        assert after[0]["id"] == halted
        assert "lasting-1" in {
            item["agent_id"] for item in http.get("/api/control/agents").json()["items"]
        }
    own_system.stop()


@pytest.mark.slow
def test_expired_proposals_are_forgotten_but_for_the_newest(own_system: RunningSystem) -> None:
    own_system.environment |= {"APPROVALS_REQUIRED": "2", "APPROVAL_TTL_S": "3"}
    own_system.start()
    with own_system.client() as http:
        for number in range(60):
            http.post(
                "/api/control/kill-switch", json=RAISE | {"reason": str(number)}
            ).raise_for_status()
        path = "/api/control/approvals?limit=1000"
        kept = until_document(http, path, lambda page: len(page["items"]) <= 50)["items"]
        assert [item["reason"] for item in kept] == [
            str(number) for number in reversed(range(10, 60))
        ]
        assert {item["state"] for item in kept} == {"expired"}
    own_system.kill()
    own_system.start()
    with own_system.client() as http:
        assert [item["id"] for item in http.get(path).json()["items"]] == [
            item["id"] for item in kept
        ]
    own_system.stop()


@pytest.mark.slow
def test_one_person_proposes_only_so_much_at_once(own_system: RunningSystem) -> None:
    own_system.environment["APPROVALS_REQUIRED"] = "2"
    own_system.start()
    with own_system.client() as http:
        codes = [
            http.post("/api/control/kill-switch", json=RAISE).json().get("code") for _ in range(101)
        ]
        assert codes == [None] * 100 + ["too_many_proposals"]
        assert http.post("/api/control/kill-switch", json=HALT).status_code == 202
    own_system.stop()


@pytest.mark.slow
def test_what_others_wrote_moves_no_cursor(own_system: RunningSystem) -> None:
    own_system.environment["APPROVALS_REQUIRED"] = "2"
    own_system.start()
    reason = {"reason": "\x1b[2J\x1b]0;owned\x07 seen"}
    with own_system.client() as http:
        assert (
            http.post("/api/control/kill-switch", json=HALT | reason).status_code == 202
        )  # a stop is refused for no such thing
        assert (
            http.post("/api/control/kill-switch", json=RAISE | reason).json()["state"] == "pending"
        )
    shown = own_system.run("approvals", "list").stdout
    assert r"\x1b[2J\x1b]0;owned\x07 seen" in shown
    assert "\x1b" not in shown
    own_system.stop()


@pytest.mark.slow
def test_agent_that_stopped_is_offline_after_a_restart(own_system: RunningSystem) -> None:
    own_system.start()
    with own_system.client() as http, reporting_agents(own_system, http) as agents:
        agents.enrol("a1", "arbitrage")
        issued = http.post("/api/control/kill-switch", json=RAISE).json()
        agents.report("a1", running=Running(level="ACTIVE", ordered_level="ACTIVE"))
        agents.answer("a1", issued["id"])
    own_system.kill()
    own_system.start()
    with own_system.client() as http:
        one = next(
            agent
            for agent in http.get("/api/control/agents").json()["items"]
            if agent["agent_id"] == "a1"
        )
        assert (one["online"], one["level"], one["ordered_level"], bool(one["last_seen"])) == (
            False,
            None,
            None,
            True,
        )
    (row,) = [
        line.split()
        for line in own_system.run("agents", "list").stdout.splitlines()
        if line.startswith("a1")
    ]
    assert row[:3] == ["a1", "arbitrage", "OFFLINE"]
    assert "ACTIVE" not in row
    own_system.stop()


@pytest.mark.slow
def test_the_journal_is_compacted_while_the_system_runs_and_means_the_same(
    own_system: RunningSystem,
) -> None:
    own_system.environment["CONTROL_JOURNAL_BYTES"] = "8192"
    own_system.start()
    journal = own_system.data_dir / "control" / "journal"
    with own_system.client() as http:
        enrolled(http, "gone", "compacted")
        order = {"module": "compacted", "action": "set_min_profit", "params": {"lamports": 5}}
        http.post("/api/control/command", json=order).raise_for_status()
        http.delete("/api/control/agents/gone").raise_for_status()
        key = SigningKey.generate()
        for _ in range(300):
            enrol(http, key, {"agent_id": "again", "module": "compacted"}).raise_for_status()
        # The enrolments' keys and signatures alone have 28,800 bytes.
        until(lambda: journal.stat().st_size, lambda size: size <= 16_384)
        commands = http.get("/api/control/commands").json()["items"]
        before = [
            http.get(f"/api/control/commands/{item['id']}").json()["deliveries"]
            for item in commands
        ]
    own_system.kill()
    own_system.start()
    with own_system.client() as http:
        after = http.get("/api/control/commands").json()["items"]
        assert [item["id"] for item in after] == [item["id"] for item in commands]
        assert [
            http.get(f"/api/control/commands/{item['id']}").json()["deliveries"] for item in after
        ] == before
        assert {"again"} == {
            a["agent_id"]
            for a in http.get("/api/control/agents").json()["items"]
            if a["module"] == "compacted"
        }
    own_system.stop()


@pytest.mark.slow
def test_an_agent_that_is_silent_for_long_is_enrolled_no_more(own_system: RunningSystem) -> None:
    own_system.environment["AGENT_FORGET_DAYS"] = str(3 / 86_400)
    own_system.start()
    with own_system.client() as http:
        enrolled(http, "silent")
        fleet = until_document(
            http,
            "/api/control/agents",
            lambda page: "silent" not in {item["agent_id"] for item in page["items"]},
        )
        assert [item["module"] for item in fleet["items"]] == ["control-plane"]  # it reports
        trail = until_document(
            http, "/api/control/audit-log?action=control.forget", lambda page: page["items"]
        )
        assert [(item["actor"], item["object"]) for item in trail["items"]] == [
            ("system", "silent")
        ]
        enrolled(http, "silent")  # its name is free again
    own_system.stop()


@pytest.mark.slow
def test_lower_only_refuses_what_would_raise(own_system: RunningSystem) -> None:
    own_system.start()
    with own_system.client() as http:
        refused = http.post("/api/control/kill-switch", json=RAISE | {"lower_only": True})
        assert (refused.status_code, refused.json()["code"]) == (409, "raises_level")
        assert (
            http.post("/api/control/kill-switch", json=HALT | {"lower_only": True}).status_code
            == 202
        )
    raised = own_system.run("resume", "--reason", "start of day", "--json")
    assert json.loads(raised.stdout)["body"]["level"] == "ACTIVE"
    assert own_system.run("kill", "--level", "no_new").returncode == 0
    refused_kill = own_system.run("kill", "--level", "active", check=False)
    assert (refused_kill.returncode, "mev resume" in refused_kill.stderr) == (2, True)
    own_system.stop()


@pytest.mark.slow
def test_resume_is_a_proposal_where_two_persons_are_required(own_system: RunningSystem) -> None:
    own_system.environment["APPROVALS_REQUIRED"] = "2"
    own_system.start()
    proposed = own_system.run("resume", "--reason", "start of day", check=False)
    assert (proposed.returncode, proposed.stdout.split(":")[0]) == (
        3,
        "proposed, needs 1 more person",
    )
    own_system.stop()


def test_the_command_line_orders_and_shows(system: RunningSystem, http: httpx.Client) -> None:
    replica(http)
    halted = json.loads(system.run("kill", "--reason", "from the terminal", "--json").stdout)
    assert halted["body"]["level"] == "HALTED"
    shown = json.loads(system.run("command", "show", halted["id"], "--json").stdout)
    assert shown["id"] == halted["id"]
    assert halted["id"] in system.run("command", "list").stdout
    assert "control-plane" in system.run("agents", "list").stdout
    changed = json.loads(system.run("command", "config", "batch_window_ms", "17", "--json").stdout)
    until_document(
        http,
        f"/api/control/commands/{changed['id']}",
        lambda command: command["states"]["SYNCED"] == 1,
    )


@pytest.mark.slow
def test_a_rotated_key_orders_again_what_is_in_force(own_system: RunningSystem) -> None:
    own_system.start()
    with own_system.client() as http:
        http.post("/api/control/kill-switch", json=RAISE)
        own_system.run("rotate-key")
        newest = http.get("/api/control/commands?limit=1").json()["items"][0]
        assert (newest["body"]["level"], newest["version"]["epoch"]) == ("ACTIVE", 2)
        old = http.post("/api/control/key-set", json={"key_set": "AAAA"})
        assert old.json()["code"] == "malformed_envelope"
    own_system.stop()


def test_fleet_shows_lease_models_and_last_answer_of_an_agent(
    system: RunningSystem, http: httpx.Client
) -> None:
    def reported(**wanted: Any) -> dict[str, Any]:
        def holds(page: dict[str, Any]) -> bool:
            return any(
                one["agent_id"] == "fleet-1" and one.items() >= wanted.items()
                for one in page["items"]
            )

        page = until_document(http, "/api/control/agents?limit=1000", holds)
        return next(one for one in page["items"] if one["agent_id"] == "fleet-1")

    with reporting_agents(system, http) as agents:
        agents.enrol("fleet-1", "fleet", policy_types=["risk"])
        new = reported()
        assert (new["lease_remaining_s"], new["models"], new["last_answer"]) == (None, [], None)

        policy = {"policy_id": "fleet", "policy_type": "risk", "target": {"modules": ["fleet"]}}
        ordered = http.post("/api/control/policy", json=policy).raise_for_status().json()["id"]
        agents.answer("fleet-1", ordered, "bad_digest")
        answered = reported(online=True)
        assert answered["last_answer"].pop("reported_at")
        assert answered["last_answer"] == {
            "command_id": ordered,
            "state": "ERROR",
            "reason_code": "bad_digest",
        }
        agents.report(
            "fleet-1",
            running=Running(
                lease_expires_at_ns=now_ns() + 60_000_000_000,
                models=[
                    ModelUse(model_id="m1", sha256=b"\1" * 32, since_ns=1_700_000_000_000_000_000),
                    ModelUse(model_id="m2", role=SHADOW),
                ],
            ),
        )
        models = [
            {
                "role": "production",
                "id": "m1",
                "sha256": "01" * 32,
                "since": "2023-11-14T22:13:20.000+00:00",
            },
            {"role": "shadow", "id": "m2", "sha256": None, "since": None},
        ]
        running = reported(models=models)
        assert 30 < running["lease_remaining_s"] <= 60
        assert running["last_answer"]["command_id"] == ordered, "a status report is no answer"
        agents.report("fleet-1", running=Running(lease_expires_at_ns=now_ns() - 1))
        assert reported(lease_remaining_s=0.0)["models"] == []
