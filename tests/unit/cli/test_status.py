"""`mev status`: what is on the screen, and what makes it fail."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mev.cli.status import SystemTroubleError
from tests.unit.cli.api import Answer, ScriptedApi

LEVEL, POLICY = "019a0000-0000-7000-8000-000000000001", "019a0000-1111-7000-8000-000000000002"
MODEL, TRIAL = "ab" * 32, "cd" * 32
METRICS = b"""# HELP mev_sink_lag_messages Messages in Kafka that are not stored yet.
mev_sink_lag_messages{topic="mev.tick.v1"} 30.0
mev_sink_lag_messages{topic="mev.bundle.v1"} 12.0
mev_tail_lag_messages{topic="mev.tick.v1"} 7.0
mev_sink_retrying_blocks 1.0
"""


def agent(name: str, **more: Any) -> dict[str, Any]:
    seen = (datetime.now(UTC) - timedelta(minutes=3)).isoformat()
    view = {
        "agent_id": name,
        "module": "arbitrage",
        "online": True,
        "last_seen": seen,
        "level": "ACTIVE",
        "ordered_level": "ACTIVE",
        "stepped_down": None,
        "blocked_by": [],
        "missing_policies": [],
        "clock_offset_ms": -12.0,
        "model": {"id": MODEL},
    }
    return view | more


def order(kind: str, command_id: str, body: dict[str, Any], **states: int) -> dict[str, Any]:
    counts = {name: states.get(name, 0) for name in ("NOT_SENT", "STALE", "SYNCED", "ERROR")}
    return {
        "id": command_id,
        "kind": kind,
        "body": body,
        "target": {"all": True},
        "issuer": "user:ann",
        "states": counts,
        "states_online": counts,
    }


def listed(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


def tell(
    api: ScriptedApi,
    *orders: dict[str, Any],
    ready: bool = True,
    agents: tuple[dict[str, Any], ...] = (),
) -> None:
    """Answer as a system with production and shadow models, and a policy that one agent refused."""
    dependency = {"ok": ready, "required": True, "error": None if ready else "no answer within 2 s"}
    health = {"ready": ready, "degraded": [], "dependencies": {"clickhouse": dependency}}
    api.tell("GET /api/health/ready", Answer(health, 200 if ready else 503))
    api.tell(
        "GET /api/control/agents",
        listed(*(agents or (agent("a1"), agent("a2", model={"id": None})))),
    )
    level = order(
        "level", LEVEL, {"level": "ACTIVE", "reason": "start of day", "until_ns": "0"}, SYNCED=2
    )
    api.tell("GET /api/control/commands", listed(*orders, level))
    names = {"acknowledged_by": ["a1"], "refused_by": [{"agent_id": "a2"}], "waiting_for": []}
    api.tell(
        "GET /api/control/policies",
        listed(
            {"policy_id": "limits", "state": "partly_in_force", "body": {"policy_type": "risk"}}
            | names
        ),
    )
    trial = {"module": "arbitrage", "model_id": TRIAL, "stage": "shadow", "state": "watching"}
    api.tell(
        "GET /api/training/deployments",
        listed(trial, trial | {"model_id": MODEL, "stage": "production", "state": "done"}),
    )
    api.tell("GET /metrics", Answer(METRICS))
    bundles = [
        {"agent_id": name, "profit_lamports": profit, "landed": profit > 0}
        for name, profit in (("a1", 2_000_000_000), ("x", -5_000))
    ]
    api.tell("GET /api/events/bundle", listed(*bundles))


def test_status_is_one_screen(api: ScriptedApi) -> None:
    tell(api)
    done = api.run("status")
    assert done.exit_code == 0
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows == [
        ["ready"],
        ["lag: stream 7 messages, sink 42 messages, 1 block tried again"],
        ["on paper: 2.000 SOL by 2 bundles, 1 landed"],
        [],
        ["module", "level", "online", "held", "ends", "by", "reason"],
        ["arbitrage", "ACTIVE", "2 of 2", "2 ACTIVE", "user:ann", "start of day"],
        [],
        ["agent_id", "module", "state", "level", "reported", "lag_ms", "on paper", "trouble"],
        ["a1", "arbitrage", "online", "ACTIVE", "3 min ago", "12", "2.000 SOL"],
        ["a2", "arbitrage", "online", "ACTIVE", "3 min ago", "12"],
        [],
        ["policy_id", "type", "state", "acknowledged", "refused", "waiting"],
        ["limits", "risk", "partly_in_force", "1", "1", "0"],
        [],
        ["module", "stage", "model", "agents", "state"],
        ["arbitrage", "production", MODEL, "1", "done"],
        ["arbitrage", "shadow", TRIAL, "watching"],
    ]
    assert {path for path, _ in api.asked if "in_force" in path} == {
        "GET /api/control/commands?in_force=true&limit=1000"
    }


def answered(name: str, state: str, **more: Any) -> dict[str, Any]:
    """Return the delivery of a command to an agent."""
    view = {"online": True, "reason_code": None, "detail": None, "superseded_by": None}
    return {"agent_id": name, "state": state} | view | more


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("STALE", "sent, not answered"),
        ("ERROR", "bad_policy: no threshold 'x'"),
        ("NOT_SENT", "Kafka has not taken it"),
    ],
)
def test_order_in_force_that_an_online_agent_does_not_obey_is_named_and_exit_code_1(
    api: ScriptedApi, state: str, why: str
) -> None:
    tell(api, order("policy", POLICY, {"policy_id": "limits"}, SYNCED=1, **{state: 1}))
    refusal = {"reason_code": "bad_policy", "detail": "no threshold 'x'"}
    deliveries = [
        answered("a1", "SYNCED"),
        answered("a2", state, **(refusal if state == "ERROR" else {})),
        answered("a3", state, online=False),
        answered("a4", state, superseded_by=LEVEL, reason_code="rolled_back"),
    ]
    api.tell(f"GET /api/control/commands/{POLICY}", {"deliveries": deliveries})
    error, done = api.refused("status")
    assert isinstance(error, SystemTroubleError)
    assert error.detail == (
        f"policy limits for all: a2 {state} ({why}); `mev command show {POLICY}` shows the answers"
    )
    first = next(line for line in done.stdout.splitlines() if line.startswith("a"))
    assert first.split()[0] == "arbitrage"  # the table of modules
    agents = [line for line in done.stdout.splitlines() if line.startswith(("a1", "a2"))]
    assert agents[0].endswith(f"{state}: policy limits for all ({why.partition(':')[0]})")
    assert (agents[1].split()[0], agents[1].split()[-1]) == ("a1", "SOL")


def test_stop_that_an_offline_agent_has_not_confirmed_is_named_and_exit_code_1(
    api: ScriptedApi,
) -> None:
    stop = order("level", LEVEL, {"level": "HALTED", "reason": "x", "until_ns": "0"}, STALE=2)
    stop["states_online"] = order("level", LEVEL, {})["states_online"]
    agents = (agent("a1"), agent("a3", online=False, level=None))
    tell(api, stop, agents=agents)
    deliveries = [answered(name, "STALE", online=False) for name in ("a3", "revoked")]
    api.tell(f"GET /api/control/commands/{LEVEL}", {"deliveries": deliveries})
    error, done = api.refused("status")
    assert error.detail == (
        "level HALTED for all: a3 OFFLINE (not confirmed; its lease stops it); start it, or "
        f"`mev agents revoke a3` if it is gone; `mev command show {LEVEL}` shows the answers"
    )
    assert done.stdout.startswith("ready, but 1 problem\n")
    assert "OFFLINE: level HALTED for all" in done.stdout
    raised = stop | {"body": stop["body"] | {"level": "ACTIVE"}}
    tell(api, raised, agents=agents)
    assert api.run("status").exit_code == 0


def test_online_agent_that_sends_nothing_is_named_with_what_to_do_and_exit_code_1(
    api: ScriptedApi,
) -> None:
    blocked = {"blocked_by": ["min_score_without_model"]}
    down = {"level": "HALTED", "stepped_down": "no lease since the agent started"}
    missing = {"level": "NO_NEW", "stepped_down": "policy_missing: no enabled policy of type risk"}
    stopped = {"level": "HALTED", "ordered_level": "HALTED", **blocked}
    agents = (
        agent("a1", **blocked),
        agent("a2", **blocked),
        agent("a3", **down),
        agent("a4", **missing, missing_policies=["risk"]),
        agent("a5", **stopped),
        agent("a6", online=False, **blocked),
    )
    tell(api, agents=agents)
    error, _ = api.refused("status")
    assert error.detail.split("; ") == [
        "a1, a2: nothing is sent (min_score_without_model)",
        "deploy a model, or trade without one: `mev command config min_score 0 --module arbitrage`",
        "a3: stepped down from ACTIVE: no lease since the agent started",
        "`mev resume --level ACTIVE`",
        "a4: stepped down from ACTIVE: policy_missing: no enabled policy of type risk",
        "set the policy with `mev policy set`",
    ]


def test_setting_that_an_agent_does_not_have_is_no_trouble(api: ScriptedApi) -> None:
    tell(api, order("config", POLICY, {"config_key": "min_score"}, ERROR=1))
    refusal = answered("a1", "ERROR", reason_code="unsupported_config")
    api.tell(f"GET /api/control/commands/{POLICY}", {"deliveries": [refusal]})
    assert api.run("status").exit_code == 0


def test_status_fails_while_the_system_is_not_ready_and_shows_what_can_be_read(
    api: ScriptedApi,
) -> None:
    tell(api, ready=False)
    api.tell("GET /api/events/bundle", Answer({"detail": "ClickHouse does not answer"}, 503))
    error, done = api.refused("status")
    assert "not ready: clickhouse (no answer within 2 s)" in error.detail
    assert "on_paper cannot be read: ClickHouse does not answer" in error.detail
    assert done.stdout.startswith("NOT READY: clickhouse (no answer within 2 s)\n")
    assert "arbitrage" in done.stdout


def test_lowest_level_ordered_and_agents_below_it_are_shown(api: ScriptedApi) -> None:
    until_ns = int((datetime.now(UTC) + timedelta(minutes=10)).timestamp() * 1e9)
    lower = order(
        "level",
        POLICY,
        {"level": "NO_NEW", "reason": "bad fills", "until_ns": str(until_ns)},
        SYNCED=2,
    )
    down = {"level": "REDUCING", "ordered_level": "NO_NEW", "stepped_down": "lease_lost"}
    tell(
        api,
        lower | {"target": {"modules": ["arbitrage"]}},
        agents=(
            agent("a1", level="NO_NEW", ordered_level="NO_NEW"),
            agent("a2", **down),
            agent("a3", online=False, last_seen=None, level=None),
        ),
    )
    error, done = api.refused("status")
    assert error.detail == ("a2: stepped down from NO_NEW: lease_lost; `mev resume --level NO_NEW`")
    assert "NO_NEW  2 of 3  1 NO_NEW, 1 REDUCING  in 10 min  user:ann  bad fills" in done.stdout
    agents = [
        line.split("  ") for line in done.stdout.splitlines() if line.startswith(("a1", "a2", "a3"))
    ]
    assert [row[0].strip() for row in agents] == ["a2", "a3", "a1"]
    assert agents[0][-1].strip() == "stepped down from NO_NEW: lease_lost"
    assert [cell.strip() for cell in agents[1] if cell.strip()] == [
        "a3",
        "arbitrage",
        "OFFLINE",
        "never",
    ]


def test_status_as_json_has_every_part_and_the_problems(api: ScriptedApi) -> None:
    tell(api)
    found = json.loads(api.run("status", "--json").stdout)
    assert found["lag"] == {"stream_messages": 7, "sink_messages": 42, "sink_retrying_blocks": 1}
    assert found["on_paper"]["profit_lamports_by_agent"] == {"a1": 2_000_000_000, "x": -5_000}
    assert (found["ready"], found["problems"], [one["agent_id"] for one in found["agents"]]) == (
        True,
        [],
        ["a1", "a2"],
    )
    tell(api, ready=False)
    _, done = api.refused("status", "--json")
    assert json.loads(done.stdout)["problems"] == ["not ready: clickhouse (no answer within 2 s)"]
