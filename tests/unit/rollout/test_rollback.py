"""A model that is taken back: it stays nowhere because the one before cannot be loaded."""

import pytest
from prometheus_client import REGISTRY

from mev.control.keys import rotation
from mev.control.service import Control
from mev.rollout.errors import PreviousRefusedError
from mev.rollout.model import Deployment, DeploymentState, RuleVerdict
from mev.store.object_errors import ObjectStoreUnavailableError
from mev.wire.pb.control_pb2 import SHADOW, Target
from tests.unit.rollout.plant import MODULE, SILENT_S, Plant

REFUSALS = "mev_deployment_rollback_refusals_total"


def refusals() -> float:
    return REGISTRY.get_sample_value(REFUSALS) or 0.0


async def in_production(plant: Plant, *agents: str) -> tuple[str, Deployment]:
    """Replace the production model by another; return the old one's id and the deployment."""
    await plant.enrol(*agents)
    old = plant.model("old")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    deployment = await plant.deploy(plant.model("new"), "production")
    await plant.pass_time(1)
    assert {agent.model() for agent in plant.agents.values()} == {deployment.artifact.model_id}
    return old, deployment


async def rotate(plant: Plant) -> None:
    await plant.control.adopt_key_set(rotation(plant.folder / "control", plant.clock()), "ann")


async def test_who_refuses_the_model_before_is_left_without_one(plant: Plant) -> None:
    old, deployment = await in_production(plant, "a1", "a2", "a3")
    for name in ("a1", "a2"):
        plant.agents[name].refuses = "unsigned_manifest"
    plant.agents["a3"].figures |= {"failed": 500}
    before = refusals()
    await plant.pass_time(3)
    assert [agent.model() for agent in plant.agents.values()] == ["", "", old]
    ended = plant.now(deployment)
    assert (ended.state, ended.because.partition(":")[0], ended.refused) == (
        DeploymentState.ROLLED_BACK,
        "max_error_rate",
        ("a1", "a2"),
    )
    (row,) = (row for row in ended.rows if row.rule == "given_back")
    assert (row.value, row.verdict) == (2, RuleVerdict.BREACHED)
    assert "a1: unsigned_manifest" in row.detail
    await plant.restart()
    await plant.pass_time(3)
    assert (refusals() - before, plant.deployments.records.unfinished()) == (2, [])
    assert plant.swaps()[2:] == [("production", old, MODULE), ("production", "", "a1,a2")]
    assert plant.registry.get("champion").manifest.model_id == old


async def test_canaries_that_refuse_it_are_left_without_one_too(plant: Plant) -> None:
    agents = await plant.enrol("a1", "a2", "a3")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await plant.deploy(new, "canary", agent_ids=("a1", "a2"))
    await plant.pass_time(1)
    agents[0].refuses = "model_missing"
    await plant.deploy(plant.model("third"), "shadow")  # another takes its place
    await plant.pass_time(3)
    assert [agent.model() for agent in agents] == ["", old, old]


async def test_who_was_only_late_is_waited_for(plant: Plant) -> None:
    old, deployment = await in_production(plant, "a1")
    agent = plant.agents["a1"]
    agent.refuses = "expired"
    await plant.deploy(deployment.artifact.model_id, "rollback")
    await plant.pass_time(30)
    assert [one.id for one in plant.deployments.records.unfinished()] == [deployment.id]
    agent.refuses = ""
    await rotate(plant)  # it hears of it again
    await plant.pass_time(2)
    assert (agent.model(), plant.deployments.records.unfinished()) == (old, [])
    assert {row.rule for row in plant.now(deployment).rows} & {"given_back"} == set()


async def test_who_returns_and_refuses_it_is_left_without_one(plant: Plant) -> None:
    _, deployment = await in_production(plant, "a1", "a2")
    away = plant.agents["a2"]
    away.alive = False
    await plant.deploy(deployment.artifact.model_id, "rollback")
    await plant.pass_time(SILENT_S)
    await plant.restart()
    away.alive, away.refuses = True, "unsigned_manifest"
    await plant.pass_time(3)
    assert (
        away.model(),
        plant.now(deployment).refused,
        plant.deployments.records.unfinished(),
    ) == ("", ("a2",), [])


async def test_nothing_is_concluded_of_who_refused_it_and_is_away(plant: Plant) -> None:
    _, deployment = await in_production(plant, "a1")
    agent = plant.agents["a1"]
    agent.refuses = "unsigned_manifest"
    await plant.deploy(deployment.artifact.model_id, "rollback")
    plant.hear()
    agent.alive = False
    await plant.restart()
    plant.clock.advance(SILENT_S)
    await plant.deployments.watch.tick()
    assert len(plant.swaps()) == 3
    agent.alive = True
    await plant.pass_time(2)
    assert agent.model() == ""


async def test_who_has_the_model_before_all_the_same_keeps_it(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    old = plant.model("old")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await plant.pass_time(1)
    stubborn = plant.agents["a2"]
    stubborn.refuses = "unsigned_manifest"  # neither the new one nor, again, the old one
    deployment = await plant.deploy(plant.model("new"), "production")
    await plant.pass_time(4)
    assert plant.now(deployment).state is DeploymentState.ROLLED_BACK
    assert {agent.model() for agent in plant.agents.values()} == {old}
    assert (plant.now(deployment).refused, plant.deployments.records.unfinished()) == ((), [])


async def test_who_refuses_to_have_none_is_named_once(plant: Plant) -> None:
    _, deployment = await in_production(plant, "a1")
    agent, before = plant.agents["a1"], refusals()
    agent.refuses, agent.stubborn = "failed", True
    await plant.deploy(deployment.artifact.model_id, "rollback")
    await plant.pass_time(5)
    assert (
        plant.now(deployment).refused,
        plant.deployments.records.unfinished(),
        refusals() - before,
    ) == (("a1",), [], 1)
    assert len(plant.now(deployment).steps) == 3


async def test_what_is_ordered_meanwhile_counts(plant: Plant) -> None:
    _, deployment = await in_production(plant, "a1", "a2")
    plant.agents["a2"].refuses = "unsigned_manifest"
    await plant.deploy(deployment.artifact.model_id, "rollback")
    plant.hear()
    plant.agents["a2"].refuses = ""
    await plant.swap_directly("direct", Target(agent_ids=["a2"]))
    await plant.pass_time(3)
    assert (plant.agents["a2"].model(), plant.deployments.records.unfinished()) == ("direct", [])


async def test_another_deployment_goes_on_meanwhile(plant: Plant) -> None:
    old, deployment = await in_production(plant, "a1", "a2")
    plant.agents["a2"].refuses = "unsigned_manifest"
    await plant.deploy(deployment.artifact.model_id, "rollback")
    plant.hear()
    plant.agents["a2"].refuses = ""
    following = await plant.deploy(
        deployment.artifact.model_id, "shadow"
    )  # before anybody has looked at the answers
    await plant.pass_time(3)
    assert [agent.model() for agent in plant.agents.values()] == [old, ""]
    assert plant.now(following).state is DeploymentState.WATCHING
    assert plant.registry.get("shadow").manifest.model_id == deployment.artifact.model_id
    await plant.swap_directly("direct", Target(agent_ids=["a1"]))
    await plant.pass_time(2)
    assert plant.now(following).state is DeploymentState.SUPERSEDED
    assert {agent.model(SHADOW) for agent in plant.agents.values()} == {""}


@pytest.mark.parametrize("place", ["before", "after"])
async def test_it_is_ordered_once_wherever_the_process_ends(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    _, deployment = await in_production(plant, "a1")
    plant.agents["a1"].refuses = "unsigned_manifest"
    await plant.deploy(deployment.artifact.model_id, "rollback")
    plant.hear()
    issue = Control.issue

    async def dying(self: Control, draft: object) -> object:
        if place == "after":
            await issue(self, draft)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Control, "issue", dying)
        with pytest.raises(KeyboardInterrupt):
            await plant.deployments.watch.tick()
    await plant.restart()
    await plant.pass_time(3)
    assert (plant.agents["a1"].model(), plant.swaps()[3:]) == ("", [("production", "", "a1")])


@pytest.mark.parametrize("stage", ["shadow", "canary", "production"])
async def test_what_could_not_be_given_back_is_not_replaced(plant: Plant, stage: str) -> None:
    await plant.enrol("a1")
    old = plant.model("old")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await rotate(plant)
    new = plant.model("new")
    with pytest.raises(PreviousRefusedError, match=f"unsigned_manifest.*mev models sign {old}"):
        await plant.deploy(new, stage)
    assert (plant.deployments.records.newest(), plant.trail.of("training.deploy")) == ([], [])
    assert plant.model("old") == old  # which signs it again
    await plant.deploy(new, stage)


async def test_a_deployment_goes_no_further_while_the_model_before_could_not_be_given_back(
    plant: Plant,
) -> None:
    await plant.enrol("a1")
    await plant.swap_directly(plant.model("old"), Target(modules=[MODULE]))
    new = plant.model("new")
    await plant.deploy(new, "shadow")
    await rotate(plant)
    assert plant.model("new") == new  # which signs it again
    with pytest.raises(PreviousRefusedError):
        await plant.deploy(new, "production")
    assert not plant.trail.of("training.promote")


async def test_a_model_of_nobody_we_know_is_replaced(plant: Plant) -> None:
    await plant.enrol("a1")
    await plant.swap_directly("f" * 64, Target(modules=[MODULE]))
    assert (
        await plant.deploy(plant.model("new"), "production")
    ).state is DeploymentState.ROLLING_OUT


async def test_aliases_follow_when_the_object_store_answers_again(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = plant.registry.point

    def point(alias: str, name: str | None) -> None:
        if name is not None:
            raise ObjectStoreUnavailableError("the store does not answer")
        remove(alias, None)

    await plant.enrol("a1")
    old, new = plant.model("old"), plant.model("new")
    with monkeypatch.context() as patched:
        patched.setattr(plant.registry, "point", point)
        await plant.deploy(old, "production")
        await plant.pass_time(1)
    assert (plant.agents["a1"].model(), plant.registry.get(old).aliases) == (old, ())
    await plant.pass_time(1)
    assert plant.registry.get(old).aliases == ("champion",)
    await plant.deploy(new, "production")
    await plant.pass_time(1)
    assert plant.registry.get(new).aliases == ("champion",)
    with monkeypatch.context() as patched:
        patched.setattr(plant.registry, "point", point)
        plant.agents["a1"].figures |= {"failed": 500}
        await plant.pass_time(3)
    assert (plant.agents["a1"].model(), plant.registry.get(new).aliases) == (old, ("champion",))
    await plant.restart()
    await plant.pass_time(1)
    assert plant.registry.get("champion").manifest.model_id == old
    assert plant.deployments.records.unfinished() == []
