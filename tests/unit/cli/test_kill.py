"""`mev kill` and `mev resume`: what keeps a stop from being sent, which is nothing."""

import os
import pty
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mev.cli.api import NotNowError
from mev.cli.control import HeldLowerError, InvalidLevelError
from mev.cli.session_file import LoginSession, SessionFile
from mev.core.errors import InvalidInputError
from tests.services.system import MEV
from tests.unit.cli.api import BUSY, Answer, ScriptedApi

COMMAND = "019a0000-0000-7000-8000-000000000001"
KILL = "POST /api/control/kill-switch"
DONE: dict[str, Any] = {
    "id": COMMAND,
    "kind": "level",
    "published": True,
    "superseded_by": None,
    "deliveries": [],
}
UNAUTHORIZED = Answer({"detail": "the session has ended", "code": "unauthorized"}, 401)


def bodies(api: ScriptedApi) -> list[Any]:
    return [body for request, body in api.asked if request == KILL]


def log_in(api: ScriptedApi, *, expires_in_s: float = 600) -> None:
    expires_s = time.time() + expires_in_s
    SessionFile(api.folder.path).write(
        LoginSession(name="ann", access_token="t", refresh_token="r", access_expires_s=expires_s)
    )


@pytest.mark.parametrize("level", ["HALTED", "halted", "No_New", "reducing"])
def test_level_is_taken_in_any_case(api: ScriptedApi, level: str) -> None:
    api.tell(KILL, DONE)
    api.run("kill", "--level", level, "--reason", "x")
    assert bodies(api) == [
        {"scope": "all", "level": level.upper(), "reason": "x", "lower_only": True}
    ]


def test_kill_refuses_a_level_that_raises_and_names_resume(api: ScriptedApi) -> None:
    error, _ = api.refused("kill", "--level", "active")
    assert isinstance(error, InvalidLevelError)
    assert "`mev resume`" in error.detail
    assert api.asked == []
    api.tell(KILL, Answer({"detail": "level NO_NEW allows more", "code": "raises_level"}, 409))
    error, _ = api.refused("kill", "--level", "no_new")
    assert "`mev resume --level NO_NEW`" in error.detail


def test_resume_raises_and_needs_a_reason(api: ScriptedApi) -> None:
    api.tell(KILL, DONE)
    api.run("resume", "--reason", "start of day", "--level", "no_new", "--module", "arbitrage")
    assert bodies(api) == [
        {"scope": "module", "target": "arbitrage", "level": "NO_NEW", "reason": "start of day"}
    ]
    for arguments in (("resume",), ("resume", "--reason", "x", "--level", "halted")):
        assert isinstance(api.refused(*arguments)[0], InvalidInputError)


@pytest.mark.parametrize(
    ("options", "raised", "other", "remedy"),
    [
        ((), {"all": True}, {"modules": ["arbitrage"]}, "`mev resume --module arbitrage`"),
        ((), {"all": True}, {"agent_ids": ["a1"]}, "`mev resume --agent a1`"),
        (("--module", "arbitrage"), {"modules": ["arbitrage"]}, {"all": True}, "`mev resume`"),
        (
            ("--module", "arbitrage"),
            {"modules": ["arbitrage"]},
            {"agent_ids": ["a1"]},
            "`mev resume --agent a1`",
        ),
        (
            ("--agent", "a1"),
            {"agent_ids": ["a1"]},
            {"modules": ["arbitrage"]},
            "`mev resume --module arbitrage`",
        ),
        (("--agent", "a1"), {"agent_ids": ["a1"]}, {"all": True}, "`mev resume`"),
    ],
)
def test_resume_fails_while_another_order_keeps_agents_lower(
    api: ScriptedApi,
    options: tuple[str, ...],
    raised: dict[str, Any],
    other: dict[str, Any],
    remedy: str,
) -> None:
    def order(target: dict[str, Any], level: str) -> dict[str, Any]:
        return {"kind": "level", "target": target, "body": {"level": level}}

    def tell(*others: dict[str, Any], online: bool = True) -> None:
        agents = [
            {"agent_id": "a1", "module": "arbitrage", "online": online},
            {"agent_id": "b1", "module": "liquidation", "online": True},
            {"agent_id": "replica", "module": "control-plane", "online": True},
        ]
        orders = [order(raised, "ACTIVE"), *others]
        for path, items in (("commands", orders), ("agents", agents)):
            api.tell(f"GET /api/control/{path}", {"items": items, "next_cursor": None})

    api.tell(KILL, DONE | {"target": raised})
    resume = ("resume", "--reason", "checked", *options)
    tell(order(other, "NO_NEW"))
    error, _ = api.refused(*resume)
    assert isinstance(error, HeldLowerError)
    assert remedy in error.detail
    tell(order(other, "ACTIVE"))
    assert api.run(*resume).exit_code == 0
    if options or not other.get("all"):
        tell(order(other, "NO_NEW"), online=False)
        assert api.run(*resume).exit_code == 0
    if options:
        tell(order({"modules": ["liquidation"]}, "NO_NEW"), order({"agent_ids": ["b1"]}, "HALTED"))
        assert api.run(*resume).exit_code == 0


@pytest.mark.parametrize(
    ("reason", "sent"), [(None, "no reason given"), ("", "no reason given"), ("x" * 900, "x" * 500)]
)
def test_stop_is_sent_whatever_its_reason(api: ScriptedApi, reason: str | None, sent: str) -> None:
    api.tell(KILL, DONE)
    api.run("kill", *(() if reason is None else ("--reason", reason)))
    assert bodies(api)[0]["reason"] == sent


def test_stop_is_sent_again_under_one_idempotency_key_while_the_system_is_busy(
    api: ScriptedApi,
) -> None:
    api.tell(KILL, BUSY, Answer(b"", 502), DONE)
    done = api.run("kill", "--reason", "x")
    keys = {headers["Idempotency-Key"] for headers in api.headers}
    assert (len(bodies(api)), len(keys)) == (3, 1)
    assert done.stderr.count("not sent yet: ") == 2


def test_stop_that_is_never_answered_ends_with_an_error(api: ScriptedApi) -> None:
    api.tell(KILL, BUSY)
    error, _ = api.refused("kill", "--reason", "x")
    assert isinstance(error, NotNowError)
    assert 58 <= sum(api.pauses) <= 60


def test_stop_is_sent_although_settings_are_wrong(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_PORT", "eight thousand")
    monkeypatch.setenv("REDIS_URL", "nowhere")
    answers = [
        {"agent_id": "a1", "state": state, "latency_ms": 1, "reason_code": None, "detail": None}
        for state in ("STALE", "SYNCED")
    ]
    api.tell(KILL, DONE | {"deliveries": answers[:1]})
    api.tell(f"GET /api/control/commands/{COMMAND}", DONE | {"deliveries": answers[1:]})
    done = api.run("kill", "--reason", "x")
    assert "1 of 1 agent obeyed" in done.stdout
    assert "API_PORT" in done.stderr
    assert "REDIS_URL" in done.stderr


def test_stop_is_sent_as_the_user_who_is_logged_in(api: ScriptedApi) -> None:
    log_in(api)
    api.tell(KILL, DONE)
    api.run("kill", "--reason", "x")
    assert [headers["Authorization"] for headers in api.headers] == ["Bearer t"]


@pytest.mark.parametrize(
    "refusal", [UNAUTHORIZED, BUSY, Answer({"detail": "Redis does not answer"}, 500)]
)
def test_stop_is_sent_with_the_machine_key_when_the_login_is_refused(
    api: ScriptedApi, refusal: Answer
) -> None:
    log_in(api)
    api.tell(KILL, refusal, DONE)
    done = api.run("kill", "--reason", "x")
    assert ["Authorization" in headers for headers in api.headers] == [True, False]
    assert api.headers[1]["X-API-Key"]
    assert "sending with this machine's key" in done.stderr
    assert api.pauses == []


@pytest.mark.parametrize("refusal", [UNAUTHORIZED, BUSY])
def test_stop_is_sent_with_the_machine_key_when_the_login_cannot_be_renewed(
    api: ScriptedApi, refusal: Answer
) -> None:
    log_in(api, expires_in_s=-1)
    api.tell("POST /api/auth/refresh", refusal)
    api.tell(KILL, DONE)
    done = api.run("kill", "--reason", "x")
    assert api.headers[-1]["X-API-Key"]
    assert "sending with this machine's key" in done.stderr


def test_stop_is_sent_while_another_command_holds_the_login(api: ScriptedApi) -> None:
    log_in(api)
    api.tell(KILL, DONE)
    with SessionFile(api.folder.path).locked():
        api.run("kill", "--reason", "x")
    assert api.headers[-1]["X-API-Key"]


def test_stop_that_the_user_may_not_send_is_refused(api: ScriptedApi) -> None:
    log_in(api)
    api.tell(
        KILL, Answer({"detail": "permission control:lower is required", "code": "forbidden"}, 403)
    )
    error, _ = api.refused("kill", "--reason", "x")
    assert error.detail.startswith("permission control:lower is required")
    assert len(bodies(api)) == 1


@pytest.mark.parametrize(
    ("typed", "reason"),
    [(b"all wrong\n", "all wrong"), (b"\n", "no reason given"), (b"\x04", "no reason given")],
)
def test_terminal_asks_for_the_reason(
    api: ScriptedApi, tmp_path: Path, typed: bytes, reason: str
) -> None:
    api.tell(KILL, DONE)
    ours, theirs = pty.openpty()
    try:
        environment = os.environ | {"MEV_DATA_DIR": str(tmp_path / "data")}
        with subprocess.Popen(
            [MEV, "kill"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        ) as process:
            os.close(theirs)
            seen = b""
            while b"in any case): " not in seen:
                seen += os.read(ours, 1024)
            os.write(ours, typed)
            assert process.wait() == 0
    finally:
        os.close(ours)
    assert bodies(api)[0]["reason"] == reason
