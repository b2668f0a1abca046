"""Tests of key rotation during deployments: newer commands stay, re-issued ones are recognised."""

import asyncio
from asyncio import Task
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mev.control import views
from mev.control.keys import rotation
from mev.crypto.envelope import parse, payload_type
from mev.rollout.model import DeploymentState
from mev.wire.pb.control_pb2 import ACTIVE, HALTED, Command, Level, SetLevel, Target
from tests.unit.rollout.plant import MODULE, Plant

Give = Callable[[], Coroutine[Any, Any, object]]


def level(value: Level) -> Command:
    draft = Command(
        target=Target(all=True), level=SetLevel(level=value, reason="asked for"), priority=9
    )
    draft.issuer.principal = "ann"
    return draft


async def rotate(plant: Plant) -> None:
    await plant.control.adopt_key_set(rotation(plant.folder / "control", plant.clock()), "ann")


def when_ordered_again(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, give: Give
) -> list[Task[object]]:
    """Give an order while the first one is ordered again; return the task of it."""
    record, given = plant.trail.record, list[Task[object]]()

    async def recording(actor: str, action: str, *rest: Any, **more: Any) -> int:
        if (
            plant.keys.trust.epoch > 1
            and action.startswith("control.")
            and action != "control.key-set"
            and not given
        ):
            given.append(asyncio.create_task(give()))
            await asyncio.sleep(0)
        return await record(actor, action, *rest, **more)

    monkeypatch.setattr(plant.trail, "record", recording)
    return given


async def test_a_stop_that_comes_meanwhile_is_not_undone(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant.enrol("a1")
    await plant.swap_directly("old", Target(modules=[MODULE]))
    await plant.control.raise_level(level(ACTIVE))
    given = when_ordered_again(plant, monkeypatch, lambda: plant.control.lower(level(HALTED)))
    await rotate(plant)
    await given[0]
    command_store = plant.control.state.command_store
    assert command_store.ordered_level("all", plant.clock()) == HALTED
    assert [
        issued.command.WhichOneof("body") for issued in command_store.in_force(plant.clock())
    ] == ["model", "level"]


async def test_a_stop_for_some_time_is_not_lifted_for_a_moment(plant: Plant) -> None:
    await plant.enrol("a1")
    await plant.control.raise_level(level(ACTIVE))
    stop = level(HALTED)
    stop.level.until_ns = plant.clock() + 60_000_000_000
    await plant.control.lower(stop)
    before = len(plant.topic.messages)
    await rotate(plant)
    envelopes = [parse(message) for message in plant.topic.messages[before:]]
    said = [
        Command.FromString(one.payload).level.level
        for one in envelopes
        if one.payload_type == payload_type(Command)
    ]
    assert said == [HALTED]
    command_store = plant.control.state.command_store
    assert command_store.ordered_level("all", plant.clock()) == HALTED
    plant.clock.advance(61)
    assert command_store.ordered_level("all", plant.clock()) == ACTIVE


async def test_a_model_that_comes_meanwhile_stays(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    (agent,) = await plant.enrol("a1")
    await plant.swap_directly("theirs", Target(modules=[MODULE]))
    await plant.swap_directly("old", Target(agent_ids=["a1"]))
    given = when_ordered_again(
        plant, monkeypatch, lambda: plant.swap_directly("new", Target(modules=[MODULE]))
    )
    await rotate(plant)
    await given[0]
    plant.hear()
    assert agent.model() == "new"


async def test_what_is_being_ordered_under_the_old_key_is_ordered_again(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant.enrol("a1")
    signed, go_on, append = (
        asyncio.Event(),
        asyncio.Event(),
        plant.control._journal.append,
    )

    async def appending(envelope: bytes) -> None:
        signed.set()
        await go_on.wait()
        await append(envelope)

    monkeypatch.setattr(plant.control._journal, "append", appending)
    ordering = asyncio.create_task(plant.swap_directly("new", Target(modules=[MODULE])))
    await signed.wait()
    rotating = asyncio.create_task(rotate(plant))
    while plant.keys.trust.epoch < 2:  # noqa: ASYNC110 - a file is written
        await asyncio.sleep(0.001)
    go_on.set()
    await asyncio.gather(ordering, rotating)
    assert [
        issued.command.version.epoch
        for issued in plant.control.state.command_store.in_force(plant.clock())
    ] == [2]


async def test_what_is_ordered_again_long_after_is_not_too_old_to_be_obeyed(plant: Plant) -> None:
    await plant.enrol("a1")
    await plant.swap_directly("old", Target(modules=[MODULE]))
    plant.clock.advance(3600)
    await rotate(plant)
    (again,) = plant.control.state.command_store.in_force(plant.clock())
    assert again.command.expires_at_ns > plant.clock()


async def test_a_direct_swap_just_before_ends_a_deployment_all_the_same(plant: Plant) -> None:
    await plant.enrol("a1", "a2", "a3")
    deployment = await plant.deploy(plant.model("new"), "canary", share=0.3)
    await plant.pass_time(1)
    await plant.swap_directly("direct", Target(modules=[MODULE]))
    await rotate(plant)
    await plant.pass_time(1)
    assert plant.now(deployment).state is DeploymentState.SUPERSEDED


async def test_order_to_one_agent_is_superseded_by_a_later_one_to_its_module(plant: Plant) -> None:
    agents = await plant.enrol("a1", "a2", "a3")
    command_store = plant.control.state.command_store
    await plant.swap_directly("old", Target(modules=[MODULE]))
    await plant.deploy(plant.model("new"), "canary", share=0.3)
    await plant.pass_time(1)
    (canary,) = [one for one in command_store.commands.values() if one.command.target.agent_ids]
    await plant.deploy(plant.model("new"), "production")
    await plant.pass_time(1)
    await plant.deploy(plant.model("new"), "rollback")
    await plant.pass_time(1)
    assert [
        (issued.command.model.model_id, list(issued.command.target.modules))
        for issued in command_store.in_force(plant.clock())
    ] == [("old", [MODULE])]
    view = views.command(canary, command_store, deliveries=True)
    assert view["superseded_by"] in command_store.commands
    assert view["deliveries"][0]["superseded_by"] == command_store.in_force(0)[0].command.id
    before = len(plant.swaps())
    await rotate(plant)
    assert plant.swaps()[before:] == [("production", "old", MODULE)]
    await plant.restart()
    assert len(plant.control.state.command_store.in_force(plant.clock())) == 1
    plant.hear()
    assert {agent.model() for agent in agents} == {"old"}


async def test_order_to_several_agents_is_issued_again_to_those_without_a_newer_one(
    plant: Plant,
) -> None:
    agents = await plant.enrol("a1", "a2")
    await plant.enrol("b1", module="other")
    await plant.swap_directly("one", Target(agent_ids=["a1", "a2", "b1"]))
    await plant.swap_directly("two", Target(agent_ids=["a1"]))
    await plant.swap_directly("three", Target(modules=["other"]))
    plant.hear()
    before = len(plant.swaps())
    await rotate(plant)
    assert plant.swaps()[before:] == [
        ("production", "one", "a2"),
        ("production", "two", "a1"),
        ("production", "three", "other"),
    ]
    plant.hear()
    assert [agent.model() for agent in agents] == ["two", "one"]


async def test_level_of_one_agent_is_not_superseded_by_one_of_all_agents(plant: Plant) -> None:
    await plant.enrol("a1")
    stop = level(HALTED)
    stop.target.CopyFrom(Target(agent_ids=["a1"]))
    await plant.control.lower(stop)
    await plant.control.raise_level(level(ACTIVE))
    await rotate(plant)
    in_force = plant.control.state.command_store.in_force(plant.clock())
    assert [issued.command.level.level for issued in in_force] == [HALTED, ACTIVE]
