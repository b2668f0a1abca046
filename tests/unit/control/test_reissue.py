"""Settings that are issued again after a key rotation keep their order."""

from pathlib import Path

import pytest

from mev.control.keys import rotation
from mev.wire.orders import version_key
from mev.wire.pb.control_pb2 import NACK, Command, SetConfig, Target
from tests.unit.control.orders import answer
from tests.unit.rollout.plant import Clock, Plant

NARROW, WIDE = Target(agent_ids=["a1"]), Target(all=True)


def setting(target: Target) -> Command:
    """Return a setting whose value names its scope."""
    value = "9" if target == NARROW else "5"
    draft = Command(target=target, config=SetConfig(config_key="limit", config_value_json=value))
    draft.issuer.principal = "ann"
    return draft


@pytest.mark.parametrize(
    ("targets", "newest"), [((NARROW, WIDE), ["5"]), ((WIDE, NARROW), ["5", "9"])]
)
async def test_disputed_setting_of_all_agents_keeps_its_place_among_narrower_ones(
    tmp_path: Path, targets: tuple[Target, Target], newest: list[str]
) -> None:
    plant = Plant(tmp_path, Clock())
    await plant.start()
    await plant.enrol("a1", "a2")
    store = plant.control.state.command_store
    old = [await plant.control.issue(setting(target)) for target in targets]
    (wide,) = [one for one in old if one.command.target == WIDE]
    store.answer(answer(wide.command, "a2", NACK, reason_code="bad_params"), plant.clock())
    await plant.control.adopt_key_set(rotation(tmp_path / "control", plant.clock()), "ann")
    issued = [one for one in store.history("config:limit") if one not in old]
    issued.sort(key=lambda one: version_key(one.command.version))
    assert [one.command.config.config_value_json for one in issued] == newest
    await plant.control.close()
