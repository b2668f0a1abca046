"""An agent whose module requires a policy opens no position without an enabled one."""

from pathlib import Path
from typing import Any

import pytest

from mev.agent.level import Level
from mev.agent.policy import PolicyType
from mev.wire.orders import threshold_directions
from mev.wire.pb.control_pb2 import NO_NEW, ModuleAction, SetPolicy
from tests.unit.agent.plane import MODULE, SECOND, Bench, Recorder


@pytest.fixture
def careful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Give an agent that requires a policy of type ``risk``, ordered to be active."""
    monkeypatch.setattr(
        Recorder, "policy_types", (PolicyType("risk", required=True), PolicyType("other"))
    )
    bench = Bench(tmp_path)
    bench.send(bench.plane.level(Level.ACTIVE))
    bench.send(bench.plane.lease())
    return bench


def ordered(bench: Bench, **fields: object) -> list[str]:
    values: Any = {"policy_id": "p", "policy_type": "risk", "enabled": True} | fields
    policy = SetPolicy(**values)
    return bench.send(bench.plane.command(policy))


def test_agent_waits_at_no_new_until_it_holds_the_policy(careful: Bench) -> None:
    standing, running = careful.processor.standing(), careful.processor.running()
    assert (standing.level, standing.ordered) == (Level.NO_NEW, Level.ACTIVE)
    assert standing.stepped_down.startswith("policy_missing: ")
    assert running.level == NO_NEW
    assert list(running.missing_policies) == ["risk"]
    assert ordered(careful) == [""]
    assert careful.level() == Level.ACTIVE
    assert list(careful.processor.running().missing_policies) == []


def test_other_disabled_refused_and_later_policies_do_not_count(careful: Bench) -> None:
    assert ordered(careful, policy_id="o", policy_type="other") == [""]
    assert ordered(careful, policy_id="d", enabled=False) == [""]
    assert ordered(careful, policy_id="r", thresholds={"min_nothing": 1}) == ["bad_policy"]
    assert ordered(careful, policy_id="l", effective_from_ns=careful.clock() + 5 * SECOND) == [""]
    assert careful.level() == Level.NO_NEW
    careful.send(careful.plane.lease())
    assert careful.wait(5) == Level.ACTIVE


def test_agent_that_loses_the_policy_steps_down_and_its_strategy_hears_of_it(
    careful: Bench,
) -> None:
    ordered(careful)
    ordered(careful, enabled=False)
    assert careful.strategy.levels[-2:] == [Level.ACTIVE, Level.NO_NEW]
    assert careful.send(careful.plane.command(ModuleAction(module=MODULE, action="enter"))) == [
        "level_forbids"
    ]


def test_lower_levels_stay_lower(careful: Bench) -> None:
    careful.send(careful.plane.level(Level.HALTED))
    assert careful.processor.standing().level == Level.HALTED
    assert careful.processor.standing().stepped_down == ""


def test_policy_is_held_after_a_restart(careful: Bench) -> None:
    ordered(careful)
    careful.restart()
    careful.send(careful.plane.lease())
    assert careful.level() == Level.ACTIVE


def test_every_declared_threshold_can_be_applied(careful: Bench) -> None:
    for name in threshold_directions():
        assert ordered(careful, thresholds={name: 1}) == [""], name
