"""Tests of the choice of canaries: an agent cannot enrol to become one."""

import pytest

from mev.rollout.errors import NoAgentsError
from mev.rollout.model import DeploymentState, RuleVerdict, Stage
from tests.unit.rollout.plant import MODULE, SILENT_S, Plant

PASSES: dict[str, float | None] = {
    "min_scored": 0,
    "hold_s": 2.0,
    "max_latency_p99_us": None,
    "max_score_psi": None,
}


async def test_nobody_can_tell_before_who_it_will_be(plant: Plant) -> None:
    await plant.enrol(*(f"a{number:02}" for number in range(20)))
    new = plant.model("new")
    chosen = set()
    for _ in range(3):
        chosen.add(frozenset((await plant.deploy(new, "canary", share=0.5)).agent_ids))
        await plant.deploy(new, "rollback")
    assert len(chosen) > 1


async def test_who_comes_after_a_deployment_began_is_not_chosen(plant: Plant) -> None:
    names = {agent.name for agent in await plant.enrol("a1", "a2", "a3")}
    new = plant.model("new")
    await plant.deploy(new, "shadow")
    await plant.enrol(*(f"late{number}" for number in range(5)))
    assert set((await plant.deploy(new, "canary", share=1)).agent_ids) == names


async def test_who_came_after_it_began_is_not_chosen_by_a_promotion_either(plant: Plant) -> None:
    await plant.enrol("a1")
    deployment = await plant.deploy(plant.model("new"), "shadow", rules=PASSES, promote=True)
    await plant.enrol(*(f"late{number}" for number in range(20)))
    while plant.now(deployment).stage is Stage.SHADOW:
        await plant.pass_time(1)
    assert (plant.now(deployment).stage, plant.now(deployment).agent_ids) == (Stage.CANARY, ("a1",))


async def test_a_promotion_that_finds_no_canary_says_so_and_waits(plant: Plant) -> None:
    await plant.enrol("a1")
    deployment = await plant.deploy(
        plant.model("new"), "shadow", rules=PASSES | {"canary_min_age_s": 60.0}, promote=True
    )
    await plant.pass_time(10)
    (row,) = (row for row in plant.now(deployment).rows if row.rule == "canaries")
    assert (plant.now(deployment).stage, plant.now(deployment).state) == (
        Stage.SHADOW,
        DeploymentState.READY,
    )
    assert (row.value, row.verdict) == (0, RuleVerdict.WAITING)
    assert "enrolled for long enough" in row.detail
    plant.clock.advance(60)
    await plant.pass_time(1)
    assert plant.now(deployment).agent_ids == ("a1",)
    assert "canaries" not in {row.rule for row in plant.now(deployment).rows}


async def test_who_is_enrolled_for_too_short_is_not_chosen(plant: Plant) -> None:
    await plant.enrol("old")
    plant.clock.advance(3000)
    await plant.enrol("young")
    new, rules = plant.model("new"), {"canary_min_age_s": 3600.0}
    with pytest.raises(NoAgentsError, match="long enough"):
        await plant.deploy(new, "canary", share=1, rules=rules)
    plant.clock.advance(600)
    plant.hear()
    assert (await plant.deploy(new, "canary", share=1, rules=rules)).agent_ids == ("old",)


async def test_canaries_are_named(plant: Plant) -> None:
    await plant.enrol("a1", "a2", "a3")
    new = plant.model("new")
    await plant.deploy(new, "canary", agent_ids=("a2", "a2"))
    deployment = await plant.deploy(new, "canary", agent_ids=("a3",))
    assert deployment.agent_ids == ("a2", "a3")
    await plant.pass_time(1)
    assert [agent.model() for agent in plant.agents.values()] == ["", new, new]


@pytest.mark.parametrize("name", ["nobody", "other", "asleep"])
async def test_a_canary_that_is_not_there_is_refused(plant: Plant, name: str) -> None:
    await plant.enrol("a1")
    await plant.enrol("other", module="others")
    (asleep,) = await plant.enrol("asleep")
    asleep.alive = False
    plant.clock.advance(SILENT_S)
    plant.hear()
    with pytest.raises(NoAgentsError, match=name):
        await plant.deploy(plant.model("new"), "canary", module=MODULE, agent_ids=("a1", name))
    assert not plant.swaps()
