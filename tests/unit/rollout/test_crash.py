"""Tests of crashes between storing and issuing a step, and while watching."""

import errno
from typing import Any, NoReturn

import pytest
from prometheus_client import REGISTRY

from mev.control.command_store import CommandRecord
from mev.control.keys import rotation
from mev.control.service import Control
from mev.core.errors import MevError
from mev.core.files import write_atomically
from mev.rollout import plan
from mev.rollout.folder import Folder
from mev.rollout.model import Deployment, DeploymentState
from mev.wire.pb.control_pb2 import SHADOW, Target
from tests.unit.rollout.plant import MODULE, Plant

RULES: dict[str, float | None] = {
    "min_scored": 100,
    "hold_s": 10.0,
    "ack_timeout_s": 20.0,
    "max_score_psi": None,
}


class Killed(BaseException):
    """The process ends here."""


def no_space(*_: object) -> NoReturn:
    """Write nothing: the disk is full."""
    raise OSError(errno.ENOSPC, "no space left")


def full_for_control(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command be written into the trail, and everything else."""
    record = plant.trail.record

    async def recording(actor: str, action: str, *rest: Any, **more: Any) -> int:
        plant.trail.full = action.startswith("control.")
        try:
            return await record(actor, action, *rest, **more)
        finally:
            plant.trail.full = False

    monkeypatch.setattr(plant.trail, "record", recording)
    monkeypatch.setattr(plant.deployments, "_audit", recording)


def killed_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int) -> None:
    """Exit before or after a command is issued, or before a write, at the given call."""
    left = [call]

    def here() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    issue, write = Control.issue, Folder.write

    async def issuing(self: Control, draft: object) -> object:
        if place == "before issue":
            here()
        issued = await issue(self, draft)  # type: ignore[arg-type]
        if place == "after issue":
            here()
        return issued

    def writing(self: Folder, deployment: Deployment) -> None:
        if place == "before write":
            here()
        write(self, deployment)

    monkeypatch.setattr(Control, "issue", issuing)
    monkeypatch.setattr(Folder, "write", writing)


@pytest.mark.parametrize("place", ["before issue", "after issue", "before write"])
@pytest.mark.parametrize("call", range(1, 5))
async def test_production_is_ordered_once_wherever_the_process_ends(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, place: str, call: int
) -> None:
    (agent,) = await plant.enrol("a1")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await plant.deploy(new, "shadow")
    await plant.pass_time(1)
    before = plant.swaps()
    with monkeypatch.context() as patched:
        killed_at(patched, place, call)
        is_killed = False
        try:
            await plant.deploy(new, "production")
        except Killed:
            is_killed = True
    await plant.restart()
    await plant.pass_time(3)
    ordered = plant.swaps()[len(before) :]
    if is_killed and (place, call) == (
        "before write",
        1,
    ):  # nobody was told anything, and nothing happened
        assert not ordered
        return
    assert ordered == [("production", new, MODULE), ("shadow", "", MODULE)]
    assert (agent.model(), agent.model(SHADOW)) == (new, "")
    assert plant.registry.get(new).aliases == ("champion",)
    assert len(plant.deployments.records.newest()[0].steps) == 2


@pytest.mark.parametrize("place", ["before issue", "after issue"])
async def test_a_rollback_that_was_begun_is_finished(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    agents = await plant.enrol("a1", "a2")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    deployment = await plant.deploy(new, "production")
    await plant.pass_time(1)
    agents[0].figures |= {"failed": 100}
    with monkeypatch.context() as patched:
        killed_at(patched, place, 1)
        with pytest.raises(Killed):
            await plant.pass_time(1)
    await plant.restart()
    await plant.pass_time(2)
    assert plant.now(deployment).state is DeploymentState.ROLLED_BACK
    assert {agent.model() for agent in agents} == {old}
    assert len(plant.swaps()) == 3


async def test_a_watch_goes_on_where_it_was(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    agent.figures |= {"scored": 500}
    deployment = await plant.deploy(plant.model("new"), "canary", rules=RULES, promote=True)
    await plant.pass_time(5)
    kept = plant.deployments.records.get(deployment.id)
    await plant.restart()
    assert plant.deployments.records.get(deployment.id) == kept
    await plant.pass_time(4)
    assert plant.now(deployment).state is DeploymentState.WATCHING
    await plant.pass_time(20)
    assert plant.now(deployment).state is DeploymentState.DONE
    assert plant.swaps() == [
        ("production", kept.artifact.model_id, "a1"),
        ("production", kept.artifact.model_id, MODULE),
    ]


async def test_what_cannot_be_issued_now_is_issued_later(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    new = plant.model("new")
    deployment = await plant.deploy(new, "shadow")
    await plant.pass_time(1)
    plant.trail.full = True
    with pytest.raises(MevError, match="disk"):  # what is not written down first is not done
        await plant.deploy(new, "canary")
    agent.figures |= {"failed": 100}
    await plant.pass_time(2)  # but a model that breaks its rules is on its way back
    assert (
        plant.now(deployment).state,
        plant.now(deployment).step.settled,
        agent.model(SHADOW),
    ) == (DeploymentState.ROLLED_BACK, False, new)
    plant.trail.full = False
    await plant.pass_time(2)
    assert (plant.now(deployment).step.settled, agent.model(SHADOW)) == (True, "")


@pytest.mark.parametrize(
    ("stage", "target"),
    [("production", Target(modules=[MODULE])), ("canary", Target(agent_ids=["a1"]))],
)
async def test_a_late_rollback_overrides_no_swap_that_was_given_meanwhile(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, stage: str, target: Target
) -> None:
    agents = await plant.enrol("a1", "a2")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    deployment = await plant.deploy(new, stage, share=1)
    await plant.pass_time(1)
    with monkeypatch.context() as patched:
        full_for_control(plant, patched)
        assert (await plant.deploy(new, "rollback")).state is DeploymentState.ROLLED_BACK
    await plant.swap_directly("direct", target)
    await plant.pass_time(2)
    assert plant.now(deployment).step.settled
    assert [agent.model() for agent in agents] == [
        "direct",
        "direct" if stage == "production" else old,
    ]


async def test_a_late_rollback_is_ordered_where_nobody_gave_another_model(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = await plant.enrol("a1", "a2")
    old, new = plant.model("old"), plant.model("new")
    await plant.swap_directly(old, Target(modules=[MODULE]))
    await plant.deploy(new, "production")
    await plant.pass_time(1)
    with monkeypatch.context() as patched:
        full_for_control(plant, patched)
        await plant.deploy(new, "rollback")
    await plant.control.adopt_key_set(rotation(plant.folder / "control", plant.clock()), "ann")
    await plant.pass_time(2)
    assert {agent.model() for agent in agents} == {old}


async def test_a_late_step_forward_overrides_no_swap_either(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    (agent,) = await plant.enrol("a1")
    with monkeypatch.context() as patched:
        full_for_control(plant, patched)
        deployment = await plant.deploy(plant.model("new"), "production")
    await plant.swap_directly("direct", Target(modules=[MODULE]))
    await plant.deploy(plant.model("second"), "shadow")
    await plant.pass_time(2)
    assert (plant.now(deployment).state, agent.model()) == (DeploymentState.SUPERSEDED, "direct")
    assert not plant.now(deployment).steps[0].orders[0].command_id


async def test_what_can_never_be_issued_fails_and_is_taken_back(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    new = plant.model("new")
    deployment = await plant.deploy(new, "shadow")
    await plant.pass_time(1)
    await plant.swap_directly(
        "x", Target(modules=["other"]), by="ann", key=f"deployment:{deployment.id}:1:0"
    )
    failed = await plant.deploy(new, "canary")
    assert (failed.state, failed.because.partition(":")[0]) == (
        DeploymentState.FAILED,
        "idempotency_conflict",
    )
    await plant.pass_time(2)
    assert (agent.model(), agent.model(SHADOW)) == ("", "")
    assert (
        await plant.deploy(new, "shadow")
    ).id != deployment.id  # and nothing stands in the way of another


async def test_orders_that_are_not_out_blame_nobody(plant: Plant) -> None:
    (agent,) = await plant.enrol("a1")
    agent.figures |= {"scored": 500}
    plant.topic.down = True
    deployment = await plant.deploy(plant.model("new"), "shadow", rules=RULES)
    await plant.pass_time(40)
    assert plant.now(deployment).state is DeploymentState.ROLLING_OUT
    assert [
        one.state.value for one in plant.deployments.observer.standings(plant.now(deployment), 0, 0)
    ] == ["NOT_SENT"]


async def test_what_gives_way_is_gone_before_what_takes_its_place(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = await plant.enrol("a1", "a2")
    first, second = plant.model("first"), plant.model("second")
    await plant.deploy(first, "canary", share=1)
    await plant.pass_time(1)
    with monkeypatch.context() as patched:
        full_for_control(plant, patched)
        with pytest.raises(MevError, match="disk"):
            await plant.deploy(second, "canary", share=1)
    await plant.deploy(second, "canary", share=1)
    await plant.pass_time(3)
    assert {agent.model() for agent in agents} == {second}


async def test_what_did_not_begin_because_another_could_not_give_way_is_said_in_the_trail(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant.enrol("a1", "a2")
    first, second = plant.model("first"), plant.model("second")
    await plant.deploy(first, "canary", share=0.5)
    full_for_control(plant, monkeypatch)
    with pytest.raises(MevError, match="disk"):
        await plant.deploy(second, "canary")
    assert [one.artifact.model_id for one in plant.deployments.records.newest()] == [first]
    assert plant.trail.outcomes("training.deploy", second) == ["ok", "audit_unavailable"]


async def test_one_that_cannot_be_looked_at_keeps_no_other_from_being_watched(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant.enrol("a1")
    await plant.enrol("o1", module="other")
    broken = await plant.deploy(plant.model("new"), "shadow", module=MODULE)
    whole = await plant.deploy(plant.model("theirs"), "shadow", module="other")
    look = plan.intruder

    def looking(deployment: Deployment, *rest: Any) -> CommandRecord | None:
        if deployment.id == broken.id:
            raise ZeroDivisionError
        return look(deployment, *rest)

    monkeypatch.setattr(plan, "intruder", looking)
    await plant.pass_time(1)
    assert (plant.now(broken).state, plant.now(whole).state) == (
        DeploymentState.ROLLING_OUT,
        DeploymentState.WATCHING,
    )


async def test_a_damaged_file_keeps_nobody_from_starting(plant: Plant) -> None:
    await plant.enrol("a1")
    deployment = await plant.deploy(plant.model("new"), "shadow")
    write_atomically(plant.folder / "deployments" / "0.json", b"{")
    await plant.restart()
    assert [one.id for one in plant.deployments.records.newest()] == [deployment.id]


async def test_a_rollback_that_cannot_be_written_down_for_a_while_counts_once(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    (agent,) = await plant.enrol("a1")
    deployment = await plant.deploy(plant.model("new"), "shadow")
    await plant.pass_time(1)
    agent.figures |= {"failed": 100}
    before = REGISTRY.get_sample_value("mev_deployment_rollbacks_total")
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", no_space)
        await plant.pass_time(3)
    assert plant.now(deployment).state.active
    await plant.pass_time(2)
    assert plant.now(deployment).state is DeploymentState.ROLLED_BACK
    assert (REGISTRY.get_sample_value("mev_deployment_rollbacks_total") or 0) - (before or 0) == 1
