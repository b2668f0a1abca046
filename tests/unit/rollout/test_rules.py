"""Tests of rules: a breach rolls back automatically in every stage, and nothing else does."""

from typing import Any

import pytest

from mev.rollout import rules
from mev.rollout.model import Deployment, DeploymentState, RuleResult, RuleVerdict, Stage
from mev.rollout.views import shown
from mev.wire.pb.control_pb2 import SHADOW, Target
from tests.unit.rollout.plant import MODULE, Plant

RULES: dict[str, float | None] = {
    "min_scored": 100,
    "hold_s": 5.0,
    "ack_timeout_s": 10.0,
    "max_feature_psi": 0.3,
}
WELL: dict[str, Any] = {"scored": 500, "score_psi": 0.02, "feature_psi": {"tip_share": 0.1}}
BREACHES: dict[str, dict[str, Any]] = {
    "max_error_rate": {"failed": 6},
    "max_latency_p99_us": {"latency_p99_us": 5001.0},
    "max_score_psi": {"score_psi": 0.26},
    "max_feature_psi": {"feature_psi": {"tip_share": 0.31, "rivals": 0.2}},
}


async def begun(plant: Plant, stage: str, **more: Any) -> Deployment:
    """Begin a deployment at three agents that have an old model, and let it reach them."""
    agents = await plant.enrol("a1", "a2", "a3")
    await plant.swap_directly(plant.model("old"), Target(modules=[MODULE]))
    for agent in agents:
        agent.figures |= WELL
    deployment = await plant.deploy(plant.model("new"), stage, rules=RULES | more)
    await plant.pass_time(2)
    assert plant.now(deployment).state is DeploymentState.WATCHING
    return deployment


@pytest.mark.parametrize("stage", ["shadow", "canary", "production"])
@pytest.mark.parametrize("rule", BREACHES)
async def test_a_breach_takes_the_model_back(plant: Plant, stage: str, rule: str) -> None:
    deployment = await begun(plant, stage)
    new = deployment.artifact.model_id
    old = next(
        entry.manifest.model_id
        for entry in plant.registry.list().entries
        if entry.manifest.model_id != new
    )
    worst = plant.agents[deployment.agent_ids[0] if deployment.agent_ids else "a2"]
    worst.figures |= BREACHES[rule] | ({"failed": 30} if rule == "max_error_rate" else {})
    await plant.pass_time(2)
    ended = plant.now(deployment)
    assert ended.state is DeploymentState.ROLLED_BACK
    assert ended.because.startswith(f"{rule}: ")
    assert [row.rule for row in ended.rows if row.verdict == "breached"] == [rule]
    assert {(agent.model(), agent.model(SHADOW)) for agent in plant.agents.values()} == {(old, "")}
    assert (ended.step.stage, ended.step.by) == (Stage.ROLLBACK, "system")
    ((actor, details),) = plant.trail.of("training.rollback")
    assert (actor, details["reason"]) == ("system", ended.because)
    assert not plant.registry.get(new).aliases


async def test_what_is_at_its_bound_holds(plant: Plant) -> None:
    deployment = await begun(plant, "shadow")
    for agent in plant.agents.values():
        agent.figures |= {
            "scored": 99,
            "failed": 1,
            "latency_p99_us": 5000.0,
            "score_psi": 0.25,
            "feature_psi": {"tip_share": 0.3},
        }
    await plant.pass_time(10)
    assert plant.now(deployment).state is DeploymentState.READY


async def test_a_breach_after_the_rules_held_takes_it_back_too_and_after_the_end_nothing_does(
    plant: Plant,
) -> None:
    deployment = await begun(plant, "shadow")
    await plant.pass_time(6)
    assert plant.now(deployment).state is DeploymentState.READY
    plant.agents["a1"].figures |= {"score_psi": 9.0}
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.ROLLED_BACK
    plant.agents["a1"].figures |= WELL
    again = await plant.deploy(deployment.artifact.model_id, "production", rules=RULES)
    await plant.pass_time(8)
    assert plant.now(again).state is DeploymentState.DONE
    plant.agents["a1"].figures |= {"score_psi": 9.0}
    await plant.pass_time(5)
    assert plant.now(again).state is DeploymentState.DONE


async def test_a_refusal_takes_it_back_and_says_whose(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    plant.agents["a2"].refuses = "bad_model_digest"
    deployment = await plant.deploy(plant.model("new"), "shadow")
    await plant.pass_time(1)
    ended = plant.now(deployment)
    assert ended.state is DeploymentState.ROLLED_BACK
    assert "a2: bad_model_digest" in ended.because
    await plant.pass_time(1)
    assert plant.agents["a1"].model(SHADOW) == ""


async def test_an_agent_that_was_late_has_not_refused_the_model(plant: Plant) -> None:
    await plant.enrol("a1")
    plant.agents["a1"].refuses = "expired"
    deployment = await plant.deploy(plant.model("new"), "shadow", rules=RULES)
    await plant.pass_time(9)
    assert plant.now(deployment).state is DeploymentState.ROLLING_OUT
    await plant.pass_time(9)  # alive, and still without it
    assert plant.now(deployment).because.startswith("ack_timeout_s: ")


async def test_an_agent_that_lives_and_does_not_answer_takes_it_back(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    plant.agents["a2"].mute = True
    deployment = await plant.deploy(plant.model("new"), "production", rules=RULES)
    await plant.pass_time(10)
    assert plant.now(deployment).state is DeploymentState.ROLLING_OUT
    await plant.pass_time(4)
    assert plant.now(deployment).because.startswith("ack_timeout_s: ")
    assert plant.agents["a1"].model() == ""


async def test_one_that_comes_and_goes_has_its_time_from_the_beginning(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    plant.agents["a2"].mute = True
    deployment = await plant.deploy(plant.model("new"), "production", rules=RULES)
    await plant.pass_time(3)
    plant.agents["a2"].alive = False
    await plant.pass_time(20)
    plant.agents["a2"].alive = True
    await plant.pass_time(9)
    assert plant.now(deployment).state is not DeploymentState.ROLLED_BACK
    plant.agents["a2"].mute = False
    plant.agents["a1"].figures |= WELL
    plant.agents["a2"].figures |= WELL
    await plant.pass_time(8)
    assert plant.now(deployment).state is DeploymentState.DONE


async def test_too_few_rows_say_nothing_of_latency_and_drift(plant: Plant) -> None:
    deployment = await begun(plant, "shadow")
    for agent in plant.agents.values():
        agent.figures |= {
            "scored": 30,
            "latency_p99_us": 9999.0,
            "score_psi": 9.0,
            "feature_psi": {},
        }
    await plant.pass_time(30)
    assert plant.now(deployment).state is DeploymentState.WATCHING
    for rule in ("min_scored", "max_latency_p99_us", "max_score_psi", "max_feature_psi"):
        assert plant.verdict(deployment, rule) == "waiting", rule


async def test_failures_that_can_no_longer_be_made_good_count_at_once(plant: Plant) -> None:
    deployment = await begun(plant, "shadow", min_scored=1000)
    for agent in plant.agents.values():
        agent.figures |= {"scored": 0, "failed": 3}
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.WATCHING  # 9 of 1,000 would still do
    plant.agents["a1"].figures |= {"failed": 5}
    await plant.pass_time(1)
    assert plant.now(deployment).because.startswith("max_error_rate: ")


async def test_drift_that_nobody_can_tell_yet_is_waited_for_and_a_bound_can_be_turned_off(
    plant: Plant,
) -> None:
    await plant.enrol("a1")
    plant.agents["a1"].figures |= {"scored": 500}
    new = plant.model("new")
    deployment = await plant.deploy(new, "shadow", rules=RULES | {"max_feature_psi": None})
    await plant.pass_time(30)
    assert (plant.now(deployment).state, plant.verdict(deployment, "max_score_psi")) == (
        DeploymentState.WATCHING,
        "waiting",
    )
    await plant.deploy(new, "shadow", rules={"max_score_psi": None})
    await plant.pass_time(8)
    assert plant.now(deployment).state is DeploymentState.READY
    assert plant.now(deployment).rules.hold_s == 5.0


async def test_a_model_without_a_baseline_has_no_drift(plant: Plant) -> None:
    await plant.enrol("a1")
    plant.agents["a1"].figures |= {"scored": 500}
    deployment = await plant.deploy(plant.model("new", baseline=False), "shadow", rules=RULES)
    await plant.pass_time(8)
    assert (plant.now(deployment).state, plant.verdict(deployment, "max_score_psi")) == (
        DeploymentState.READY,
        "off",
    )


async def test_numbers_that_are_none_are_left_out(plant: Plant) -> None:
    deployment = await begun(plant, "shadow")
    plant.agents["a1"].figures |= {
        "latency_p99_us": float("nan"),
        "score_psi": float("inf"),
        "feature_psi": {"x": float("nan")},
    }
    await plant.pass_time(6)
    assert plant.now(deployment).state is DeploymentState.READY


async def test_figures_of_another_file_or_role_do_not_count(plant: Plant) -> None:
    await plant.enrol("a1")
    agent = plant.agents["a1"]
    agent.figures |= WELL
    deployment = await plant.deploy(plant.model("new"), "shadow", rules=RULES)
    await plant.pass_time(1)
    agent.held[SHADOW].sha256 = b"\1" * 32
    await plant.pass_time(20)
    assert plant.now(deployment).state is DeploymentState.WATCHING
    assert plant.verdict(deployment, "min_scored") == "waiting"


async def test_figures_beyond_any_number_are_cut_and_hide_no_breach(plant: Plant) -> None:
    deployment = await begun(plant, "production")
    plant.agents["a1"].figures |= {"scored": 2**64 - 1}
    await plant.pass_time(1)
    assert max(row.value or 0 for row in plant.now(deployment).rows) <= 2**53
    plant.agents["a2"].figures |= {"latency_p99_us": 99_999.0}
    await plant.pass_time(1)
    assert plant.now(deployment).because.startswith("max_latency_p99_us: ")
    await plant.restart()
    assert plant.now(deployment).state is DeploymentState.ROLLED_BACK


async def test_a_breach_that_cannot_be_written_down_takes_the_model_back_all_the_same(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = await begun(plant, "production")
    broken = RuleResult(rule="min_scored", value=2**64, bound=0, verdict=RuleVerdict.BREACHED)
    monkeypatch.setattr(rules, "evaluate_rules", lambda *_: (broken,))
    await plant.pass_time(1)
    await plant.restart()
    await plant.pass_time(1)
    ended = plant.now(deployment)
    assert (ended.state, ended.rows, plant.agents["a1"].model()) == (
        DeploymentState.ROLLED_BACK,
        (),
        ended.previous and ended.previous.model_id,
    )


async def test_what_cannot_be_judged_is_taken_back_by_a_person_and_gives_way(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = await begun(plant, "canary")
    with monkeypatch.context() as patched:
        patched.setattr(rules, "evaluate_rules", lambda *_: 1 / 0)
        await plant.pass_time(1)
        second = await plant.deploy(plant.model("second"), "shadow")
        back = await plant.deploy(second.artifact.model_id, "rollback")
    assert (plant.now(deployment).state, back.state, back.because) == (
        DeploymentState.SUPERSEDED,
        DeploymentState.ROLLED_BACK,
        "asked for",
    )
    await plant.pass_time(1)
    assert len({agent.model() for agent in plant.agents.values()}) == 1


async def test_one_agent_hides_no_failures_of_another(plant: Plant) -> None:
    deployment = await begun(plant, "production")
    plant.agents["a1"].figures |= {"scored": 10**9}
    plant.agents["a2"].figures |= {"scored": 500, "failed": 30}
    await plant.pass_time(1)
    ended = plant.now(deployment)
    assert ended.state is DeploymentState.ROLLED_BACK
    assert (ended.because.partition(":")[0], "(a2)" in ended.because) == ("max_error_rate", True)


async def test_one_agent_has_not_scored_for_all(plant: Plant) -> None:
    deployment = await begun(plant, "shadow")
    plant.agents["a1"].figures |= {"scored": 10**9}
    for idle in ("a2", "a3"):
        plant.agents[idle].figures |= {"scored": 0}
    await plant.pass_time(10)
    assert (plant.now(deployment).state, plant.verdict(deployment, "min_scored")) == (
        DeploymentState.WATCHING,
        "waiting",
    )
    plant.agents["a2"].figures |= {"scored": 50}  # two of three have
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.READY


async def test_what_agents_write_is_cut_and_stays_on_one_line(plant: Plant) -> None:
    deployment = await begun(plant, "shadow")
    plant.agents["a1"].figures |= {"feature_psi": {"tip\nshare" + "x" * 100_000: 9.0}}
    await plant.pass_time(1)
    (row,) = (row for row in plant.now(deployment).rows if row.rule == "max_feature_psi")
    assert (row.detail[:11], len(row.detail)) == (r"tip\nsharex", 200)
    plant.agents["a2"].refuses = (
        "bad\n2026-01-01 00:00:00,000 INFO control: all is well\x1b" + "x" * 100_000
    )
    again = plant.now(await plant.deploy(deployment.artifact.model_id, "shadow"))
    await plant.pass_time(1)
    ended = plant.now(again)
    assert ended.because.startswith(
        r"refusals: 1, bound 0 (a2: bad\n2026-01-01 00:00:00,000 INFO control: all is well\x1bxxx"
    )
    assert len(ended.because) < 300
    (answer,) = (
        one
        for one in shown(plant.deployments, ended, detail=True).steps[-2].commands[0].deliveries
        or ()
        if one.agent_id == "a2"
    )
    assert answer.reason_code is not None
    assert len(answer.reason_code) == 200
