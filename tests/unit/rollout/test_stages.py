"""Stages: who gets which command, when a stage is over, and what is refused."""

from typing import Any

import pytest

from mev.control.errors import IdempotencyConflictError
from mev.control.keys import rotation
from mev.control.views import time
from mev.core.errors import MevError
from mev.registry.errors import UnknownModelError
from mev.rollout.errors import (
    AlreadyDeployedError,
    AmbiguousModuleError,
    ArchivedModelError,
    FormMissingError,
    NoAgentsError,
    NothingToRollBackError,
    OtherFormError,
    StageBackwardsError,
)
from mev.rollout.model import DeploymentState, Stage
from mev.rollout.views import shown
from mev.wire.pb.control_pb2 import SHADOW, Target
from tests.unit.rollout.plant import MODULE, SILENT_S, Plant

QUICK: dict[str, float | None] = {"min_scored": 100, "hold_s": 5.0, "ack_timeout_s": 10.0}
WELL = {"scored": 500, "score_psi": 0.02}


async def test_shadow_canary_production(plant: Plant) -> None:
    agents = await plant.enrol(*(f"a{number}" for number in range(10)))
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    for agent in agents:
        agent.figures |= WELL
    deployment = await plant.deploy(new, "shadow", share=0.5, rules=QUICK)
    assert (deployment.state, deployment.previous and deployment.previous.model_id) == (
        DeploymentState.ROLLING_OUT,
        old,
    )
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.WATCHING
    assert {agent.held[SHADOW].share for agent in agents} == {0.5}
    await plant.pass_time(5)
    assert plant.now(deployment).state is DeploymentState.READY
    assert plant.registry.get("shadow").manifest.model_id == new

    await plant.deploy(new, "canary", share=0.2)
    await plant.pass_time(6)
    canaries = {agent.name for agent in agents if agent.model() == new}
    assert canaries == set(plant.now(deployment).agent_ids)
    assert len(canaries) == 2
    assert {agent.model() for agent in agents} == {old, new}
    assert plant.now(deployment).state is DeploymentState.READY
    assert plant.registry.get("challenger").manifest.model_id == new

    await plant.deploy("challenger", "production")
    await plant.pass_time(7)
    assert plant.now(deployment).state is DeploymentState.DONE
    assert {(agent.model(), agent.model(SHADOW)) for agent in agents} == {(new, "")}
    assert plant.registry.get(new).aliases == ("champion",)
    assert [(step.stage, step.early, step.skipped) for step in plant.now(deployment).steps] == [
        (Stage.SHADOW, False, ()),
        (Stage.CANARY, False, ()),
        (Stage.PRODUCTION, False, ()),
    ]
    assert [
        action for _, action, _, _ in plant.trail.records if action.startswith("training.")
    ] == [
        "training.deploy",
        "training.promote",
        "training.promote",
    ]


async def test_a_promoted_deployment_goes_through_all_stages_by_itself(plant: Plant) -> None:
    (agent, *_) = await plant.enrol("a1", "a2", "a3")
    for one in plant.agents.values():
        one.figures |= WELL
    deployment = await plant.deploy(plant.model("new"), "shadow", rules=QUICK, promote=True)
    await plant.pass_time(24)
    done = plant.now(deployment)
    assert done.state is DeploymentState.DONE
    assert [(step.stage, step.by) for step in done.steps] == [
        (Stage.SHADOW, "ann"),
        (Stage.CANARY, "system"),
        (Stage.PRODUCTION, "system"),
    ]
    assert agent.model() == done.artifact.model_id
    assert [actor for actor, _ in plant.trail.of("training.promote")] == ["system", "system"]


async def test_without_a_person_a_stage_that_holds_waits(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    agent.figures |= WELL
    deployment = await plant.deploy(plant.model("new"), "shadow", rules=QUICK)
    await plant.pass_time(60)
    assert (plant.now(deployment).state, len(plant.swaps())) == (DeploymentState.READY, 1)


async def test_who_is_away_is_waited_for_by_nobody_and_learns_of_it_later(plant: Plant) -> None:
    here, away = await plant.enrol("a1", "a2")
    here.figures |= WELL
    away.alive = False
    plant.clock.advance(SILENT_S)
    plant.hear()
    deployment = await plant.deploy(plant.model("new"), "production", rules=QUICK)
    await plant.pass_time(60)
    assert plant.now(deployment).state is DeploymentState.DONE
    standings = {
        one.agent_id: (one.alive, one.state.value)
        for one in plant.deployments.observer.standings(plant.now(deployment), 0, 0)
    }
    assert standings == {"a1": (True, "SYNCED"), "a2": (False, "STALE")}
    away.alive = True
    await plant.pass_time(1)
    assert (
        plant.deployments.observer.standings(plant.now(deployment), 0, 0)[1].state.value == "SYNCED"
    )


async def test_where_everybody_is_away_nothing_is_taken_for_granted(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    agent.alive = False
    plant.clock.advance(SILENT_S)
    deployment = await plant.deploy(
        plant.model("new"),
        "production",
        rules={"min_scored": 0, "hold_s": 0, "max_latency_p99_us": None},
    )
    await plant.pass_time(100)
    assert plant.now(deployment).state is DeploymentState.ROLLING_OUT


async def test_nothing_goes_on_by_itself_once_everybody_is_away(plant: Plant) -> None:
    agents = await plant.enrol("a1", "a2")
    for agent in agents:
        agent.figures |= WELL
    deployment = await plant.deploy(
        plant.model("new"), "canary", share=0.5, rules=QUICK, promote=True
    )
    while plant.now(deployment).state is not DeploymentState.READY:
        await plant.pass_time(1)
    for agent in agents:
        agent.alive = False
    plant.clock.advance(SILENT_S)
    await plant.deployments.watch.tick()
    assert plant.now(deployment).stage is Stage.CANARY
    for agent in agents:
        agent.alive = True
    await plant.pass_time(2)
    assert plant.now(deployment).stage is Stage.PRODUCTION


async def test_each_state_is_told_since_it_began(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    agent.figures |= WELL
    deployment, since = await plant.deploy(plant.model("new"), "production", rules=QUICK), {}
    while plant.now(deployment).state is not DeploymentState.DONE:
        await plant.pass_time(1)
        since[plant.now(deployment).state] = plant.now(deployment).since_ns
    assert since[DeploymentState.DONE] - since[DeploymentState.WATCHING] >= 5 * 10**9
    await plant.restart()
    view = shown(plant.deployments, plant.now(deployment), detail=True)
    assert view.state_since == time(since[DeploymentState.DONE])


async def test_a_stage_that_was_watched_before_holds_for_its_own_time(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    agent.figures |= WELL
    new = plant.model("new")
    deployment = await plant.deploy(new, "shadow", rules=QUICK)
    await plant.pass_time(8)
    assert plant.now(deployment).state is DeploymentState.READY
    await plant.deploy(new, "production")
    await plant.pass_time(4)
    assert plant.now(deployment).state is DeploymentState.WATCHING
    await plant.pass_time(4)
    assert plant.now(deployment).state is DeploymentState.DONE


async def test_a_stage_that_is_skipped_or_left_early_is_recorded(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    new = plant.model("new")
    await plant.deploy(new, "canary", share=0.5)
    deployment = await plant.deploy(new, "production")
    assert [(step.skipped, step.early) for step in deployment.steps] == [
        ((Stage.SHADOW,), False),
        ((), True),
    ]


async def test_a_canary_is_made_wider_and_never_narrower(plant: Plant) -> None:
    await plant.enrol(*(f"a{number}" for number in range(10)))
    new = plant.model("new")
    first = (await plant.deploy(new, "canary", share=0.1)).agent_ids
    wider = await plant.deploy(new, "canary", share=0.5)
    assert (len(wider.agent_ids), set(first) <= set(wider.agent_ids)) == (5, True)
    with pytest.raises(StageBackwardsError):
        await plant.deploy(new, "canary", share=0.2)


async def test_a_canary_that_is_away_when_others_join_it_is_taken_back_too(plant: Plant) -> None:
    await plant.enrol(*(f"a{number}" for number in range(4)))
    new = plant.model("new")
    (first,) = (await plant.deploy(new, "canary", share=0.25)).agent_ids
    await plant.pass_time(1)
    plant.agents[first].alive = False
    await plant.pass_time(SILENT_S)
    wider = await plant.deploy(new, "canary", share=0.5)
    assert first in wider.agent_ids
    await plant.deploy(new, "rollback")
    plant.agents[first].alive = True
    await plant.pass_time(1)
    assert {agent.model() for agent in plant.agents.values()} == {""}


async def test_an_alias_that_another_module_has_taken_stays_there(plant: Plant) -> None:
    await plant.enrol("a1")
    await plant.enrol("o1", module="other")
    new, theirs = plant.model("new"), plant.model("theirs")
    await plant.deploy(new, "shadow", module=MODULE)
    await plant.deploy(theirs, "shadow", module="other")
    await plant.deploy(new, "rollback", module=MODULE)
    assert plant.registry.get("shadow").manifest.model_id == theirs


async def test_another_model_takes_the_place_and_leaves_nothing_of_the_first(plant: Plant) -> None:
    agents = await plant.enrol("a1", "a2", "a3", "a4")
    old, first, second = plant.model("old"), plant.model("first"), plant.model("second")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await plant.deploy(first, "shadow")
    deployment = await plant.deploy(first, "canary", share=0.5)
    await plant.pass_time(1)
    assert {agent.model() for agent in agents} == {old, first}
    following = await plant.deploy(second, "shadow")
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.SUPERSEDED
    assert {(agent.model(), agent.model(SHADOW)) for agent in agents} == {(old, second)}
    assert following.previous is not None
    assert following.previous.model_id == old
    assert (plant.registry.get(first).aliases, plant.registry.get(second).aliases) == (
        (),
        ("shadow",),
    )


async def test_a_direct_swap_ends_a_deployment_and_its_trial(plant: Plant) -> None:
    agents = await plant.enrol("a1", "a2", "a3")
    direct = plant.model("direct")
    deployment = await plant.deploy(plant.model("new"), "canary", share=0.3)
    await plant.pass_time(1)
    await plant.swap_directly(
        direct,
        Target(agent_ids=[next(a.name for a in agents if a.name not in deployment.agent_ids)]),
    )
    await plant.pass_time(2)
    ended = plant.now(deployment)
    assert ended.state is DeploymentState.SUPERSEDED
    assert "bob" in ended.because
    assert sorted(agent.model() for agent in agents) == sorted(["", "", direct])


@pytest.mark.parametrize("stage", ["shadow", "canary"])
async def test_keys_that_are_rotated_end_nothing(plant: Plant, stage: str) -> None:
    agents = await plant.enrol("a1", "a2", "a3")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    deployment = await plant.deploy(new, stage, share=0.3, rules=QUICK)
    for agent in agents:
        agent.figures |= WELL
        agent.miss()  # it learns of the order under the new key only
    await plant.control.adopt_key_set(rotation(plant.folder / "control", plant.clock()), "ann")
    await plant.pass_time(10)
    assert plant.now(deployment).state is DeploymentState.READY
    await plant.swap_directly("direct", Target(modules=[MODULE]))
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.SUPERSEDED


async def test_a_person_takes_back_a_canary_or_what_is_in_production(plant: Plant) -> None:
    agents = await plant.enrol("a1", "a2")
    old, new = plant.model("old"), plant.model("new")
    for model in (old, new):
        for agent in agents:
            agent.figures |= WELL
        await plant.deploy(model, "production", rules=QUICK)
        await plant.pass_time(7)
    assert plant.registry.get("champion").manifest.model_id == new
    back = await plant.deploy("champion", "rollback", reason="looks odd")
    await plant.pass_time(1)
    assert (back.state, back.because) == (DeploymentState.ROLLED_BACK, "looks odd")
    assert {agent.model() for agent in agents} == {old}
    assert plant.registry.get("champion").manifest.model_id == old
    await plant.deploy(old, "rollback")
    await plant.pass_time(1)
    assert {agent.model() for agent in agents} == {""}
    with pytest.raises(UnknownModelError):
        plant.registry.get("champion")
    assert [actor for actor, _ in plant.trail.of("training.rollback")] == ["ann", "ann"]


async def test_the_same_request_is_the_same_deployment(plant: Plant) -> None:
    await plant.enrol("a1")
    new = plant.model("new")
    first = await plant.deploy(new, "shadow", key="once", sha256="a")
    again = await plant.deploy(new, "shadow", key="once", sha256="a")
    assert (again.id, len(again.steps), len(plant.swaps())) == (first.id, 1, 1)
    with pytest.raises(IdempotencyConflictError):
        await plant.deploy(new, "canary", key="once", sha256="b")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (UnknownModelError, {"model": "f" * 64, "stage": "shadow"}),
        (ArchivedModelError, {"model": "archived", "stage": "shadow"}),
        (FormMissingError, {"model": "new", "stage": "shadow", "form": "so"}),
        (NoAgentsError, {"model": "new", "stage": "shadow", "module": "nobody"}),
        (NoAgentsError, {"model": "new", "stage": "shadow", "module": "control-plane"}),
        (NoAgentsError, {"model": "new", "stage": "canary", "module": "asleep"}),
        (AmbiguousModuleError, {"model": "new", "stage": "shadow", "module": None}),
        (StageBackwardsError, {"model": "both", "stage": "shadow"}),
        (StageBackwardsError, {"model": "both", "stage": "production"}),
        (OtherFormError, {"model": "both", "stage": "production", "form": "so"}),
        (AlreadyDeployedError, {"model": "here", "stage": "shadow", "module": "other"}),
        (NothingToRollBackError, {"model": "new", "stage": "rollback"}),
        (NothingToRollBackError, {"model": "both", "stage": "rollback", "module": "asleep"}),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    plant: Plant, error: type[MevError], wanted: dict[str, Any]
) -> None:
    await plant.enrol("a1")
    (asleep,) = await plant.enrol("s1", module="asleep")
    await plant.enrol("o1", module="other")
    asleep.alive = False
    plant.clock.advance(SILENT_S)
    plant.hear()
    models = {
        name: plant.model(name, so=name == "both") for name in ("archived", "new", "both", "here")
    }
    plant.registry.archive(models["archived"])
    await plant.deploy(models["both"], "production", module=MODULE)
    await plant.swap_directly(models["here"], Target(modules=["other"]))
    before = plant.swaps()
    given = {"module": MODULE} | wanted
    model, stage = models.get(given.pop("model"), "f" * 64), given.pop("stage")
    with pytest.raises(error):
        await plant.deploy(model, stage, **given)
    assert plant.swaps() == before
    assert len(plant.deployments.records.newest()) == 1


async def test_answers_are_told_of_the_newest_steps(plant: Plant) -> None:
    await plant.enrol("a1", "a2")
    new = plant.model("new")
    for _ in range(7):
        deployment = await plant.deploy(new, "shadow")
    steps = shown(plant.deployments, deployment, detail=True).steps
    assert [[len(command.deliveries or ()) for command in step.commands] for step in steps] == [
        [0]
    ] * 2 + [[2]] * 5
    listed = shown(plant.deployments, deployment, detail=False).steps
    assert {command.deliveries is None for step in listed for command in step.commands} == {True}
