"""Tests of warnings about a `min_score` without a model or of another model after a rollback."""

import json

from mev.rollout.model import Deployment
from mev.rollout.views import WarningOut, shown
from mev.wire.pb.control_pb2 import Command, SetConfig, Target
from tests.unit.rollout.plant import MODULE, Plant


async def set_min_score(plant: Plant, value: float, target: Target) -> None:
    draft = Command(
        config=SetConfig(config_key="min_score", config_value_json=json.dumps(value)),
        target=target,
        priority=5,
    )
    draft.issuer.principal = "ann"
    await plant.control.issue(draft)


def warnings(plant: Plant, deployment: Deployment) -> list[WarningOut]:
    found = shown(
        plant.deployments, plant.deployments.records.get(deployment.id), detail=True
    ).warnings
    assert found is not None
    return found


async def test_rollback_to_no_model_names_the_min_score_that_blocks_everything(
    plant: Plant,
) -> None:
    await plant.enrol("a1", "a2")
    model = plant.model("new")
    deployment = await plant.deploy(model, "production")
    await set_min_score(plant, 0.5, Target(modules=[MODULE]))
    await plant.pass_time(1)
    assert warnings(plant, deployment) == []
    back = await plant.deploy(model, "rollback")
    (warning,) = warnings(plant, back)
    assert (warning.code, warning.agent_ids) == ("min_score_without_model", ["a1", "a2"])
    assert (
        "min_score is 0.5 and no model decides at a1, a2: nothing is sent there" in warning.detail
    )
    assert warning.command == f"mev command config min_score 0 --module {MODULE}"
    await set_min_score(plant, 0, Target(modules=[MODULE]))
    assert warnings(plant, back) == []


async def test_rollback_to_another_model_names_a_min_score_that_was_set_before_it(
    plant: Plant,
) -> None:
    await plant.enrol("a1")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await plant.deploy(new, "production")
    await set_min_score(plant, 0.5, Target(modules=[MODULE]))
    await plant.pass_time(1)
    back = await plant.deploy(new, "rollback")
    (warning,) = warnings(plant, back)
    assert (warning.code, warning.agent_ids) == ("min_score_of_another_model", ["a1"])
    assert "min_score 0.5 was set before the model that decides now at a1" in warning.detail


async def test_only_the_agents_that_are_blocked_are_named(plant: Plant) -> None:
    await plant.enrol("a1", "a2", "a3")
    model = plant.model("new")
    deployment = await plant.deploy(model, "canary", agent_ids=("a1", "a2"))
    await set_min_score(plant, 0.25, Target(agent_ids=["a1"]))
    assert warnings(plant, deployment) == []
    back = await plant.deploy(model, "rollback")
    (warning,) = warnings(plant, back)
    assert (warning.agent_ids, warning.command) == (
        ["a1"],
        "mev command config min_score 0 --agent a1",
    )
