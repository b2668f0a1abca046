"""`mev command`, `mev approvals`: what is asked for, and of whom."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.cli.api import BUSY, Answer, ScriptedApi

COMMAND, OTHER = "019a0000-0000-7000-8000-000000000001", "019a0000-1111-7000-8000-000000000002"


def command(*states: str, **more: Any) -> dict[str, Any]:
    answers = [
        {
            "agent_id": f"a{number}",
            "state": state,
            "latency_ms": None,
            "reason_code": None,
            "detail": None,
        }
        for number, state in enumerate(states, 1)
    ]
    return {
        "id": COMMAND,
        "kind": "config",
        "published": True,
        "superseded_by": None,
        "deliveries": answers,
    } | more


def with_online(view: dict[str, Any], *online: bool) -> dict[str, Any]:
    pairs = zip(view["deliveries"], online, strict=True)
    return view | {"deliveries": [delivery | {"online": one} for delivery, one in pairs]}


def both(
    one: dict[str, Any], other: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    yield from zip(one["deliveries"], other["deliveries"], strict=True)


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ((), None),
        (("--module", "arbitrage"), {"modules": ["arbitrage"]}),
        (("--agent", "a1", "--agent", "a2"), {"agent_ids": ["a1", "a2"]}),
        (
            ("--module", "arbitrage", "--agent", "a1"),
            {"modules": ["arbitrage"], "agent_ids": ["a1"]},
        ),
    ],
)
def test_a_setting_is_for_the_control_plane_or_for_agents(
    api: ScriptedApi, options: tuple[str, ...], target: dict[str, list[str]] | None
) -> None:
    api.tell("POST /api/control/config", command("SYNCED"))
    api.run("command", "config", "min_score", "0.9", *options)
    ((_, body),) = api.asked
    assert body == {"config_key": "min_score", "config_value": 0.9} | (
        {"target": target} if target else {}
    )


def test_a_setting_is_answered_though_the_api_is_busy(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("NOT_SENT"))
    api.tell(f"GET /api/control/commands/{COMMAND}", BUSY, command("STALE"), command("SYNCED"))
    assert (
        "SYNCED" in api.run("command", "config", "min_score", "0.9", "--module", "arbitrage").stdout
    )


def test_unreadable_answers_of_an_issued_command_are_an_error(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("NOT_SENT"))
    api.tell(
        f"GET /api/control/commands/{COMMAND}",
        Answer({"detail": "later"}, 503, {"Retry-After": "60"}),
    )
    error, done = api.refused("command", "config", "min_score", "0.9")
    assert "NOT_SENT" in done.stdout
    assert error.detail.startswith(
        f"command {COMMAND}: it was issued, but the answers cannot be read: later"
    )
    assert sum(api.pauses) <= 10


@pytest.mark.parametrize(
    ("arguments", "request_line"),
    [
        (("kill", "--reason", "x"), "POST /api/control/kill-switch"),
        (("resume", "--reason", "x"), "POST /api/control/kill-switch"),
        (("command", "send", "arbitrage", "cancel_all"), "POST /api/control/command"),
        (("command", "config", "min_score", "0.9"), "POST /api/control/config"),
        (("policy", "rollback", "p1"), "POST /api/control/policies/p1/rollback"),
    ],
)
@pytest.mark.parametrize(
    ("later", "problem"),
    [
        (with_online(command("SYNCED", "SYNCED"), True, True), None),
        (with_online(command("SYNCED", "STALE"), True, False), None),
        (with_online(command("SYNCED", "ERROR"), True, False), None),
        (with_online(command("SYNCED", "STALE"), True, True), "a2 did not answer within 0.5 s"),
        (
            with_online(command("ERROR", "STALE"), True, True),
            "a1 refused it and a2 did not answer within 0.5 s",
        ),
        (with_online(command("SYNCED", "ERROR"), True, True), "a2 refused it"),
        (
            command("NOT_SENT", published=False),
            "not sent: Kafka has not taken it; it is sent when Kafka does",
        ),
        (
            with_online(command("STALE", superseded_by=OTHER), True),
            f"command {OTHER} took its place",
        ),
    ],
)
def test_exit_code_says_whether_agents_that_are_online_obeyed(
    api: ScriptedApi,
    arguments: tuple[str, ...],
    request_line: str,
    later: dict[str, Any],
    problem: str | None,
) -> None:
    sent = command(*("STALE" for _ in later["deliveries"]), diff={})
    api.tell(request_line, sent)
    first = [
        one | {name: value for name, value in last.items() if name == "online"}
        for one, last in both(sent, later)
    ]
    api.tell(f"GET /api/control/commands/{COMMAND}", sent | {"deliveries": first}, later)
    if problem is None:
        assert api.run(*arguments).exit_code == 0
        assert sum(api.pauses) < 1  # it does not wait for agents that are offline
    else:
        error, _ = api.refused(*arguments, "--wait", "0.5")
        assert (
            error.detail == f"command {COMMAND}: {problem}; `mev command show {COMMAND}` asks again"
        )
        assert sum(api.pauses) < 0.6


def test_commands_wait_ten_seconds_unless_told_otherwise(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("STALE"))
    api.tell(f"GET /api/control/commands/{COMMAND}", with_online(command("STALE"), True))
    error, _ = api.refused("command", "config", "min_score", "0.9")
    assert "within 10 s" in error.detail
    assert 9.9 < sum(api.pauses) < 10.1


def test_answers_are_printed_as_they_come(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("STALE", "STALE", "STALE"))
    steps = [
        command("STALE", "SYNCED", "STALE"),
        command("STALE", "SYNCED", "ERROR"),
        command("STALE", "SYNCED", "ERROR"),
    ]
    api.tell(
        f"GET /api/control/commands/{COMMAND}",
        *(with_online(step, False, True, True) for step in steps),
    )
    _, done = api.refused("command", "config", "min_score", "0.9")
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    assert rows == [
        ["command", f"{COMMAND}:"],
        ["agent_id", "state"],
        ["a2", "SYNCED"],
        ["a3", "ERROR"],
        ["a1", "STALE"],
        ["1", "of"],
    ]
    assert done.stdout.splitlines()[-1] == "1 of 3 agents obeyed, 1 offline"


def test_agent_that_falls_silent_after_the_order_counts_as_online(api: ScriptedApi) -> None:
    api.tell("POST /api/control/config", command("STALE"))
    silent = [with_online(command("STALE"), online) for online in (True, False)]
    api.tell(f"GET /api/control/commands/{COMMAND}", *silent)
    error, _ = api.refused("command", "config", "min_score", "0.9", "--wait", "1")
    assert "a1 did not answer within 1 s" in error.detail


def test_proposal_ends_with_exit_code_3(api: ScriptedApi) -> None:
    proposal = {
        "id": OTHER,
        "state": "pending",
        "approvers": ["ann"],
        "approvals_required": 2,
        "command_id": None,
    }
    api.tell("POST /api/control/kill-switch", proposal)
    done = api.run("resume", "--reason", "start of day")
    assert done.exit_code == 3
    assert done.stdout == f"proposed, needs 1 more person: `mev approvals approve {OTHER}`\n"


def test_approval_that_issues_the_command_reports_its_answers(api: ScriptedApi) -> None:
    proposal = {
        "id": OTHER,
        "state": "issued",
        "approvers": ["ann", "bob"],
        "approvals_required": 2,
        "command_id": COMMAND,
    }
    api.tell(f"POST /api/control/approvals/{OTHER}", proposal)
    api.tell(f"GET /api/control/commands/{COMMAND}", with_online(command("STALE"), True))
    error, done = api.refused("approvals", "approve", OTHER)
    assert done.stdout.startswith("issued\n")
    assert "a1 did not answer" in error.detail


def test_commands_and_proposals_are_named_by_the_beginning_of_their_ids(api: ScriptedApi) -> None:
    page = {"items": [{"id": OTHER}, {"id": COMMAND}], "next_cursor": None}
    api.tell("GET /api/control/commands", page)
    api.tell("GET /api/control/approvals", page)
    api.tell(f"GET /api/control/commands/{COMMAND}", command("SYNCED"))
    voted = {
        "state": "pending",
        "approvers": ["ann", "bob"],
        "approvals_required": 3,
        "command_id": None,
    }
    api.tell(f"POST /api/control/approvals/{OTHER}", voted)
    assert COMMAND in api.run("command", "show", COMMAND[:13]).stdout
    assert api.run("approvals", "approve", OTHER[:13]).stdout == "pending\n2 of 3 persons agree\n"
