"""Tests of deployment permissions: no way around the one for production."""

from typing import Any

import pytest

from mev.auth.errors import ForbiddenError
from mev.auth.model import Permission
from mev.rollout.model import Deployment, DeploymentState
from tests.unit.rollout.plant import SILENT_S, Plant

RAISE = frozenset({Permission.CONTROL_RAISE})


async def ask(
    plant: Plant, model: str, stage: str, *permissions: Permission, **more: Any
) -> Deployment:
    """Return a request by a user who may deploy and has these further permissions."""
    return await plant.deploy(
        model, stage, permissions=frozenset({Permission.MODELS_DEPLOY, *permissions}), **more
    )


async def is_refused(
    plant: Plant, model: str, stage: str, *permissions: Permission, **more: Any
) -> None:
    """Ask for what is refused, and changes nothing."""
    before, known = plant.swaps(), plant.deployments.records.newest()
    with pytest.raises(ForbiddenError, match="control:"):
        await ask(plant, model, stage, *permissions, **more)
    assert (plant.swaps(), plant.deployments.records.newest()) == (before, known)


async def test_production_and_promotion_are_for_those_who_may_raise(plant: Plant) -> None:
    await plant.enrol("a1")
    new = plant.model("new")
    await is_refused(plant, new, "production")
    await is_refused(plant, new, "shadow", Permission.CONTROL_LOWER, promote=True)
    await ask(plant, new, "shadow")
    await is_refused(plant, new, "production")
    await ask(plant, new, "production", *RAISE)


async def test_most_of_the_agents_are_production(plant: Plant) -> None:
    await plant.enrol("a1", "a2", "a3", "a4")
    new = plant.model("new")
    await is_refused(plant, new, "canary", share=1)
    await is_refused(plant, new, "canary", share=0.75)
    assert len((await ask(plant, new, "canary", share=0.5)).agent_ids) == 2
    await is_refused(plant, new, "canary", share=0.75)
    assert len((await ask(plant, new, "canary", *RAISE, share=1)).agent_ids) == 4


async def test_the_only_agent_is_all_of_them(plant: Plant) -> None:
    await plant.enrol("a1")
    new = plant.model("new")
    await ask(plant, new, "shadow")
    await is_refused(plant, new, "canary", share=0.1)
    await ask(plant, new, "canary", *RAISE)


async def test_canaries_that_are_away_count_with_those_who_join_them(plant: Plant) -> None:
    await plant.enrol("a1", "a2", "a3", "a4")
    new = plant.model("new")
    first = (await ask(plant, new, "canary", share=0.5)).agent_ids
    for name in first:
        plant.agents[name].alive = False
    await plant.pass_time(SILENT_S)
    await is_refused(
        plant, new, "canary", share=0.5
    )  # one of the two that live, and then three have it


@pytest.mark.parametrize("permission", [Permission.CONTROL_LOWER, Permission.CONTROL_RAISE])
@pytest.mark.parametrize(
    ("seconds", "state"), [(1, DeploymentState.WATCHING), (7, DeploymentState.DONE)]
)
async def test_what_is_in_production_is_taken_back_by_those_who_may_lower_or_raise(
    plant: Plant, permission: Permission, seconds: int, state: DeploymentState
) -> None:
    (agent,) = await plant.enrol("a1")
    new = plant.model("new")
    rules = {"min_scored": 0, "hold_s": 5.0, "max_latency_p99_us": None, "max_score_psi": None}
    deployment = await ask(plant, new, "production", *RAISE, rules=rules)
    await plant.pass_time(seconds)
    assert plant.now(deployment).state is state
    await is_refused(plant, new, "rollback")
    assert (await ask(plant, new, "rollback", permission)).state is DeploymentState.ROLLED_BACK
    await plant.pass_time(1)
    assert agent.model() == ""


async def test_a_trial_is_taken_back_by_whoever_may_deploy(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    for stage in ("shadow", "canary"):
        await ask(plant, new := plant.model(stage), stage)
        assert (await ask(plant, new, "rollback")).state is DeploymentState.ROLLED_BACK


async def test_a_watch_over_production_is_ended_by_those_who_may_raise(plant: Plant) -> None:
    await plant.enrol("a1")
    watched = await ask(plant, plant.model("new"), "production", *RAISE)
    second = plant.model("second")
    await is_refused(plant, second, "shadow", Permission.CONTROL_LOWER)
    assert plant.now(watched).state is DeploymentState.ROLLING_OUT
    await ask(plant, second, "shadow", *RAISE)
    assert plant.now(watched).state is DeploymentState.SUPERSEDED
