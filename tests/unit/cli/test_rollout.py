"""`mev deploy` and `mev deployments`, against an API that tells how a deployment goes on."""

from typing import Any

from mev.cli.rollout import DeploymentNotDoneError
from tests.unit.cli.api import BUSY, ScriptedApi

ID, OTHER, COMMAND = (f"019a0000-{number}{number}00-7000-8000-000000000001" for number in (1, 2, 3))
MODEL = "293730090932" + "0" * 52
DEPLOY = f"POST /api/training/models/{MODEL}/deploy"
SHOW = f"GET /api/training/deployments/{ID}"


def delivery(agent: str, state: str, *, alive: bool = True) -> dict[str, Any]:
    return {"agent_id": agent, "state": state, "alive": alive, "reason_code": None, "detail": None}


def step(stage: str, *states: str, alive: bool = True, **more: Any) -> dict[str, Any]:
    deliveries = [
        delivery(f"a{number}", state, alive=alive) for number, state in enumerate(states, 1)
    ]
    command = {
        "command_id": COMMAND,
        "role": "shadow",
        "model_id": MODEL,
        "share": 0.25,
        "deliveries": deliveries,
    }
    made = {
        "stage": stage,
        "at": "2026-11-22T21:44:51.123Z",
        "by": "ann",
        "reason": "a try",
        "skipped": [],
        "early": False,
    }
    return made | {"settled": True, "commands": [command]} | more


def rule(name: str, value: float | None, bound: float | None, verdict: str) -> dict[str, Any]:
    return {"rule": name, "value": value, "bound": bound, "verdict": verdict, "detail": None}


def deployment(
    state: str, *steps: dict[str, Any], rules: tuple[dict[str, Any], ...] = (), **more: Any
) -> dict[str, Any]:
    known = {
        "id": ID,
        "model_id": MODEL,
        "module": "arbitrage",
        "stage": "shadow",
        "state": state,
        "because": None,
        "promote": False,
    }
    return known | {"steps": list(steps), "rules": list(rules), "figures": []} | more


def test_what_is_missing_is_said_while_it_is_watched(api: ScriptedApi) -> None:
    scored = [
        rule("min_scored", value, 1000, "waiting" if value < 1000 else "holds")
        for value in (0, 340, 1000)
    ]
    late, never = (
        rule("max_latency_p99_us", None, 5000.0, "waiting"),
        rule("max_feature_psi", None, None, "off"),
    )
    shadow = step("shadow", "SYNCED")
    api.tell(
        DEPLOY,
        deployment(
            "rolling_out",
            step("shadow", "STALE"),
            rules=(rule("agents", 0, 1, "waiting"), scored[0]),
        ),
    )
    watching = [deployment("watching", shadow, rules=(one, late, never)) for one in scored]
    api.tell(SHOW, BUSY, *watching[:1] * 2, *watching[1:], deployment("ready", shadow))
    said = api.run("deploy", MODEL, "--stage", "shadow", "--wait").stderr.splitlines()
    assert said == [
        "deployment: shadow: rolling_out",
        "shadow a1: STALE",
        "missing: agents 0 of 1, min_scored 0 of 1000",
        "deployment: shadow: watching",
        "shadow a1: SYNCED",
        "missing: min_scored 0 of 1000, max_latency_p99_us",
        "missing: max_latency_p99_us",
        "deployment: shadow: ready",
    ]


def test_a_rollback_waits_until_the_live_agents_have_rolled_back(api: ScriptedApi) -> None:
    forward = step("shadow", "SYNCED", "SYNCED")
    backward = [
        step("rollback", *states)
        for states in (("NOT_SENT", "NOT_SENT"), ("SYNCED", "STALE"), ("SYNCED", "SYNCED"))
    ]
    first, *later = (
        deployment("rolled_back", forward, one, because="asked for") for one in backward
    )
    api.tell(DEPLOY, first)
    api.tell(SHOW, *later)
    done = api.run("deploy", MODEL, "--stage", "rollback", "--wait")
    assert "STALE" not in done.stdout
    assert [line for line in done.stderr.splitlines() if line.startswith("rollback a2")] == [
        "rollback a2: NOT_SENT",
        "rollback a2: STALE",
        "rollback a2: SYNCED",
    ]


def test_a_rollback_waits_as_long_as_agents_may_take_and_names_who_did_not_answer(
    api: ScriptedApi,
) -> None:
    bound = (rule("ack_timeout_s", 0, 5.0, "holds"),)
    api.tell(
        DEPLOY,
        deployment(
            "rolled_back", step("rollback", "SYNCED", "STALE"), rules=bound, because="asked for"
        ),
    )
    api.tell(
        SHOW,
        deployment(
            "rolled_back", step("rollback", "SYNCED", "STALE"), rules=bound, because="asked for"
        ),
    )
    error, done = api.refused("deploy", MODEL, "--stage", "rollback", "--wait")
    assert isinstance(error, DeploymentNotDoneError)
    assert error.detail == f"deployment {ID} is rolled_back, but a2 did not give the model back"
    assert "missing: the answer of a2" in done.stderr
    assert 4.6 < sum(api.pauses) < 5.4


def test_agents_that_are_away_are_not_waited_for(api: ScriptedApi) -> None:
    api.tell(
        DEPLOY,
        deployment("rolled_back", step("rollback", "STALE", alive=False), because="asked for"),
    )
    assert (
        "rollback a1: STALE, away"
        in api.run("deploy", MODEL, "--stage", "rollback", "--wait").stderr
    )


def test_a_deployment_that_is_rolled_back_by_itself_is_followed_to_the_agents(
    api: ScriptedApi,
) -> None:
    api.tell(DEPLOY, deployment("watching", step("shadow", "SYNCED")))
    why = "max_score_psi: 0.9, bound 0.25"
    ended = [
        deployment("rolled_back", step("shadow", "SYNCED"), step("rollback", one), because=why)
        for one in ("STALE", "SYNCED")
    ]
    api.tell(SHOW, *ended)
    error, done = api.refused("deploy", MODEL, "--stage", "shadow", "--wait")
    assert error.detail == f"deployment {ID} is rolled_back: {why}"
    assert "STALE" not in done.stdout


def test_one_deployment_is_shown_by_the_beginning_of_its_id(api: ScriptedApi) -> None:
    api.tell(
        "GET /api/training/deployments", {"items": [{"id": OTHER}, {"id": ID}], "next_cursor": None}
    )
    passed_over = step("canary", "STALE", alive=False, skipped=["shadow"], early=True)
    api.tell(SHOW, deployment("watching", step("shadow", "SYNCED"), passed_over))
    about, *tables = api.run("deployments", ID[:10]).stdout.split("\n\n")
    assert about == f"deployment {ID}: model {MODEL} in arbitrage, shadow, watching"
    steps, answers = ([line.split() for line in table.splitlines()] for table in tables)
    assert steps[0] == ["stage", "at", "by", "share", "skipped", "early", "reason"]
    assert steps[1:] == [
        ["shadow", "2026-11-22", "21:44:51", "ann", "0.25", "a", "try"],
        ["canary", "2026-11-22", "21:44:51", "ann", "0.25", "shadow", "early", "a", "try"],
    ]
    assert answers[1:] == [
        ["shadow", "shadow", MODEL, "a1", "yes", "SYNCED", COMMAND],
        ["canary", "shadow", MODEL, "a1", "no", "STALE", COMMAND],
    ]


def test_rollback_prints_the_warning_and_the_command_that_mends_it(api: ScriptedApi) -> None:
    mend = "mev command config min_score 0 --module arbitrage"
    warning = {
        "code": "min_score_without_model",
        "detail": "nothing is sent there",
        "agent_ids": ["a1"],
        "command": mend,
    }
    api.tell(
        DEPLOY,
        deployment(
            "rolled_back", step("rollback", "SYNCED"), because="asked for", warnings=[warning]
        ),
    )
    said = api.run("deploy", MODEL, "--stage", "rollback").stdout.splitlines()
    assert said[2:4] == ["warning: nothing is sent there", f"  {mend}"]
