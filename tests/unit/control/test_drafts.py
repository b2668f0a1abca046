"""Drafts of commands: what is filled in that the request left out."""

import pytest

from mev.control import drafts
from mev.control.errors import InvalidCommandError
from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.requests import KillSwitchIn, ModelSwapIn, PolicyIn, TargetIn
from mev.wire.pb.control_pb2 import Enrolment

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        (f"{DIGEST}.mevt", None, DIGEST),
        (f"{DIGEST}.so", None, DIGEST),
        (f"models/{DIGEST}.mevt", None, DIGEST),
        (f"{DIGEST}.mevt", OTHER, OTHER),  # two digests: agents refuse it
        (f"{DIGEST}.ubj", None, ""),
        (f"{DIGEST[1:]}.mevt", None, ""),
        ("champion.mevt", None, ""),
    ],
)
def test_the_digest_of_a_model_is_in_the_name_of_its_file(
    path: str, given: str | None, expected: str
) -> None:
    request = ModelSwapIn(model_id="m", model_path=path, version="1", sha256=given)
    assert drafts.model_swap(request, Fleet()).model.sha256.hex() == expected


@pytest.mark.parametrize(("scope", "name"), [("module", "gone"), ("agent", "a1")])
def test_agents_that_were_let_go_can_be_stopped(scope: str, name: str) -> None:
    fleet, enrolment = (
        Fleet(),
        Enrolment(agent_id="a1", module="gone", public_key=bytes(31) + b"\1", enrolled_at_ns=1),
    )
    fleet.enrol(enrolment)
    fleet.enrol(
        Enrolment.FromString(
            enrolment.SerializeToString() + Enrolment(revoked=True).SerializeToString()
        )
    )
    assert not fleet.agents
    draft = drafts.level(stop(scope, name), fleet)
    assert [*draft.target.modules, *draft.target.agent_ids] == [name]
    with pytest.raises(InvalidCommandError):
        drafts.level(stop(scope, "unknown"), fleet)
    with pytest.raises(InvalidCommandError):
        drafts.target(
            TargetIn(
                modules=[name] if scope == "module" else [],
                agent_ids=[name] if scope == "agent" else [],
            ),
            fleet,
        )


@pytest.mark.parametrize(("scope", "name"), [("module", CONTROL_PLANE), ("agent", "api-1")])
def test_level_of_the_control_plane_is_refused(scope: str, name: str) -> None:
    fleet = Fleet()
    fleet.enrol(
        Enrolment(agent_id="api-1", module=CONTROL_PLANE, public_key=bytes(32), enrolled_at_ns=1)
    )
    with pytest.raises(InvalidCommandError, match="levels are for agents"):
        drafts.level(stop(scope, name), fleet)


def stop(scope: str, target: str) -> KillSwitchIn:
    return KillSwitchIn.model_validate({"scope": scope, "target": target, "reason": "test"})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("slot", "1000", "1000"),
        ("probability", "0.5", "0.5"),
        ("simulated", "true", "true"),
        ("kind", '"a"', "a"),
    ],
)
def test_value_of_a_rule_is_kept_as_it_is_written(field: str, value: str, expected: str) -> None:
    rule = f'{{"field": "{field}", "operator": "==", "value": {value}}}'
    text = f'{{"policy_id": "p", "policy_type": "risk", "rules": [{rule}]}}'
    draft = drafts.policy(PolicyIn.model_validate_json(text), Fleet())
    assert [each.value for each in draft.policy.rules] == [expected]
