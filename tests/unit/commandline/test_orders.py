"""`mev command`, `mev approvals`: what is asked for, and of whom."""

from typing import Any

import pytest

from tests.unit.commandline.api import BUSY, Answer, ScriptedApi

COMMAND, OTHER = "019a0000-0000-7000-8000-000000000001", "019a0000-1111-7000-8000-000000000002"


def command(state: str) -> dict[str, Any]:
    answer = {"agent_id": "a1", "state": state, "latency_ms": None, "reason_code": None, "detail": None}
    return {"id": COMMAND, "kind": "config", "deliveries": [answer]}


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ((), None),
        (("--module", "arbitrage"), {"modules": ["arbitrage"]}),
        (("--agent", "a1", "--agent", "a2"), {"agent_ids": ["a1", "a2"]}),
        (("--module", "arbitrage", "--agent", "a1"), {"modules": ["arbitrage"], "agent_ids": ["a1"]}),
    ],
)
def test_a_setting_is_for_the_control_plane_or_for_agents(
    api: ScriptedApi, options: tuple[str, ...], target: dict[str, list[str]] | None
) -> None:
    api.tell("POST /api/control/config", command("SYNCED"))
    api.run("command", "config", "min_score", "0.9", *options)
    ((_, body),) = api.asked
    assert body == {"config_key": "min_score", "config_value": 0.9} | ({"target": target} if target else {})


def test_a_setting_is_answered_though_the_api_is_busy(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("NOT_SENT"))
    api.tell(f"GET /api/control/commands/{COMMAND}", BUSY, command("STALE"), command("SYNCED"))
    assert "SYNCED" in api.run("command", "config", "min_score", "0.9", "--module", "arbitrage").stdout


def test_an_order_that_is_out_is_shown_though_its_answers_cannot_be_read(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("NOT_SENT"))
    api.tell(f"GET /api/control/commands/{COMMAND}", Answer({"detail": "later"}, 503, {"Retry-After": "60"}))
    assert "NOT_SENT" in api.run("command", "config", "min_score", "0.9").stdout
    assert sum(api.pauses) <= 3


def test_commands_and_proposals_are_named_by_the_beginning_of_their_ids(api: ScriptedApi) -> None:
    page = {"items": [{"id": OTHER}, {"id": COMMAND}], "next_cursor": None}
    api.tell("GET /api/control/commands", page)
    api.tell("GET /api/control/approvals", page)
    api.tell(f"GET /api/control/commands/{COMMAND}", command("SYNCED"))
    api.tell(f"POST /api/control/approvals/{OTHER}", {"state": "ISSUED"})
    assert COMMAND in api.run("command", "show", COMMAND[:13]).stdout
    assert api.run("approvals", "approve", OTHER[:13]).stdout == "ISSUED\n"
