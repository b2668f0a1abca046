"""Checks of actions against what each agent declared."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest

from mev.control.actions import ActionChecks, narrowed
from mev.control.errors import InvalidCommandError
from mev.control.fleet import Fleet
from mev.wire.pb.control_pb2 import Command, DeclaredAction, Enrolment, ModuleAction, Target

MODULE = "m"
MINIMUM = {"properties": {"lamports": {"type": "integer", "minimum": 0}}, "required": ["lamports"]}


def fleet(**schemas: Mapping[str, object] | None) -> Fleet:
    """Return a fleet of agents by their schema of the action ``set``; None leaves it undeclared."""
    found = Fleet()
    for number, (name, schema) in enumerate(schemas.items(), start=1):
        declared = (
            [DeclaredAction(name="set", params_schema_json=json.dumps(schema))]
            if schema is not None
            else []
        )
        declared.append(
            DeclaredAction(
                name="cancel_all", params_schema_json=json.dumps({"required": ["impossible"]})
            )
        )
        key = number.to_bytes(32, "big")
        found.enrol(
            Enrolment(
                agent_id=name,
                module=MODULE,
                public_key=key,
                actions=declared,
                enrolled_at_ns=number,
            )
        )
    return found


def draft(action: str = "set", **params: object) -> Command:
    body = ModuleAction(module=MODULE, action=action, params_json=json.dumps(params))
    return Command(action=body, target=Target(modules=[MODULE]))


@pytest.fixture
async def checks() -> AsyncIterator[ActionChecks]:
    found = ActionChecks(timeout_s=60, max_schema_bytes=16 << 10)
    yield found
    found.close()


async def test_each_agent_is_held_to_its_own_schema(checks: ActionChecks) -> None:
    several = fleet(good=MINIMUM, refuses={"required": ["impossible"]}, lacks=None, same=MINIMUM)
    found = await checks.check(order := draft(lamports=5), several)
    assert [agent.id for agent in found.accepted] == ["good", "same"]
    assert [(one.agent_id, one.reason_code, one.field) for one in found.refusals] == [
        ("refuses", "bad_params", "params"),
        ("lacks", "unknown_action", ""),
    ]
    assert sorted(found.groups.values()) == [["good", "same"], ["refuses"]]
    assert narrowed(order.target, found) == Target(agent_ids=["good", "same"])
    assert several.conflicts(several.agents["good"]) == ["set"]


async def test_target_stays_when_every_agent_accepts(checks: ActionChecks) -> None:
    agreeing = fleet(one=MINIMUM, two=MINIMUM)
    found = await checks.check(order := draft(lamports=5), agreeing)
    assert narrowed(order.target, found) == order.target
    assert found.view()["schema_conflicts"] == []
    assert agreeing.conflicts(agreeing.agents["one"]) == []


async def test_parameters_that_every_agent_refuses_are_refused_by_name(
    checks: ActionChecks,
) -> None:
    with pytest.raises(InvalidCommandError, match="minimum") as refused:
        await checks.check(draft(lamports=-1), fleet(one=MINIMUM, two=MINIMUM, lacks=None))
    assert refused.value.fields["field"] == "params['lamports']"
    with pytest.raises(InvalidCommandError, match="there are cancel_all, set"):
        await checks.check(draft("format_disk"), fleet(one=MINIMUM))


async def test_stop_is_sent_to_every_agent_whatever_its_schema_says(checks: ActionChecks) -> None:
    found = await checks.check(draft("cancel_all"), fleet(one=MINIMUM, two=None))
    assert [agent.id for agent in found.accepted] == ["one", "two"]


async def test_schema_of_an_earlier_version_that_is_not_allowed_has_no_say(
    checks: ActionChecks,
) -> None:
    found = await checks.check(
        draft(lamports=5), fleet(veto={"not": {}}, slow={"pattern": "^(a+)+$"}, good=MINIMUM)
    )
    assert [agent.id for agent in found.accepted] == ["veto", "slow", "good"]


async def test_agents_that_are_not_checked_in_time_get_the_command() -> None:
    checks = ActionChecks(timeout_s=0, max_schema_bytes=16 << 10)
    found = await checks.check(draft(lamports=-1), fleet(one=MINIMUM, two=MINIMUM))
    assert found.unchecked == ["one", "two"]
    assert [agent.id for agent in found.accepted] == ["one", "two"]
    checks.close()


async def test_stop_waits_for_no_check(checks: ActionChecks) -> None:
    heavy = {"items": {"enum": list(range(100))}}
    slow = fleet(**{f"a{n}": {"properties": {"a": heavy | {"title": str(n)}}} for n in range(50)})
    checking = asyncio.create_task(checks.check(draft(a=[99] * 990), slow))
    await asyncio.sleep(0)
    await checks.check(draft("cancel_all"), slow)
    assert not checking.done()
    assert len((await checking).accepted) == 50


def test_declarations_are_forgotten_with_the_agent() -> None:
    two = fleet(one=MINIMUM, other={"required": ["impossible"]})
    gone = Enrolment()
    gone.CopyFrom(two.agents["other"].enrolment)
    gone.revoked = True
    gone.enrolled_at_ns += 1
    assert two.enrol(gone)
    assert two.conflicts(two.agents["one"]) == []
    assert two.declares(MODULE, "set")
