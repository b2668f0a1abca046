"""Status of policies: acknowledgements, refusals, and whether they are in force."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf import json_format

from mev.control.command_store import CommandRecord
from mev.control.control_state import ControlState
from mev.control.errors import NoAcknowledgedVersionError, UnknownPolicyError
from mev.control.fleet import EnrolledAgent
from mev.wire.orders import version_key
from mev.wire.pb.control_pb2 import ACK, NACK, SetPolicy

Online = Callable[[EnrolledAgent], bool]


class PolicyState(StrEnum):
    """State of the newest version of a policy, derived from the agents' results."""

    REQUESTED = "requested"
    """No agent has reported a result."""
    REFUSED = "refused"
    """Some agents have refused it, none has acknowledged it."""
    PARTLY_IN_FORCE = "partly_in_force"
    """Some agents have acknowledged it; others have refused it, or are online without a result."""
    SCHEDULED = "scheduled"
    """Acknowledged; takes effect at `effective_from`."""
    DISABLED = "disabled"
    """Acknowledged; limits nothing."""
    IN_FORCE = "in_force"
    SUPERSEDED = "superseded"
    """Acknowledged, but so was a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatus:
    """Results of the target agents for a version of a policy."""

    issued: CommandRecord
    acknowledged_by: list[str]
    refused_by: list[str]
    waiting_for: list[str]
    """Agents without a result, online or not."""
    state: PolicyState


def status(
    issued: CommandRecord, control_state: ControlState, online: Online, now_ns: int
) -> PolicyStatus:
    """Return the status of a policy version among the agents enrolled now."""
    acknowledged, refused, waiting = [], [], []
    for agent in control_state.fleet.meant(issued.command.target):
        delivery = issued.deliveries.get(agent.id)
        result = delivery.result if delivery else 0
        if result == ACK or _holds(agent, issued):
            acknowledged.append(agent.id)
        elif result == NACK:
            refused.append(agent.id)
        else:
            waiting.append(agent)
    is_complete = not refused and not any(online(agent) for agent in waiting)
    return PolicyStatus(
        issued=issued,
        acknowledged_by=sorted(acknowledged),
        refused_by=sorted(refused),
        waiting_for=sorted(agent.id for agent in waiting),
        state=_state(issued.command.policy, bool(acknowledged), bool(refused), is_complete, now_ns),
    )


def newest(control_state: ControlState) -> dict[str, CommandRecord]:
    """Return the newest version of each policy by policy id."""
    found: dict[str, CommandRecord] = {}
    for issued in control_state.command_store.commands.values():
        if issued.command.WhichOneof("body") == "policy":
            name = issued.command.policy.policy_id
            found[name] = max(found.get(name, issued), issued, key=_version)
    return dict(sorted(found.items()))


def history(control_state: ControlState, policy_id: str) -> list[CommandRecord]:
    """Return the stored versions of a policy, newest first.

    :raises UnknownPolicyError: if it does not exist.
    """
    versions = sorted(
        control_state.command_store.history(f"policy:{policy_id}"), key=_version, reverse=True
    )
    if not versions:
        raise UnknownPolicyError(
            f"policy {policy_id!r} does not exist; GET /api/control/policies lists those that do"
        )
    return versions


def last_acknowledged(versions: list[CommandRecord]) -> CommandRecord | None:
    """Return the newest version that more agents acknowledged than refused, or None.

    `versions` are sorted newest first.
    """
    return next((issued for issued in versions if _is_acknowledged(issued)), None)


def before(versions: list[CommandRecord]) -> CommandRecord:
    """Return the version that a rollback issues again.

    `versions` are sorted newest first; the first one is rolled back.

    :raises NoAcknowledgedVersionError: if no earlier, different version was acknowledged.
    """
    current = versions[0].command
    different = [
        one
        for one in versions[1:]
        if (one.command.policy, one.command.target) != (current.policy, current.target)
    ]
    found = last_acknowledged(different)
    if found is None:
        raise NoAcknowledgedVersionError(
            f"policy {current.policy.policy_id!r} has no earlier version that agents acknowledged; "
            "set the policy you want instead"
        )
    return found


def _is_acknowledged(issued: CommandRecord) -> bool:
    results = [delivery.result for delivery in issued.deliveries.values()]
    # The majority decides, so that no single agent can allow or prevent a rollback.
    return results.count(ACK) > results.count(NACK)


def _holds(agent: EnrolledAgent, issued: CommandRecord) -> bool:
    held, name = agent.running.policies, issued.command.policy.policy_id
    return name in held and held[name] == issued.command.version


def _state(
    policy: SetPolicy, acknowledged: bool, refused: bool, complete: bool, now_ns: int
) -> PolicyState:
    if not acknowledged:
        return PolicyState.REFUSED if refused else PolicyState.REQUESTED
    if not complete:
        return PolicyState.PARTLY_IN_FORCE
    if policy.effective_from_ns > now_ns:
        return PolicyState.SCHEDULED
    return PolicyState.IN_FORCE if policy.enabled else PolicyState.DISABLED


def _version(issued: CommandRecord) -> tuple[int, int]:
    return version_key(issued.command.version)


def changes(before: SetPolicy | None, after: SetPolicy) -> dict[str, list[object]]:
    """Return the old and the new value of every field that differs, each threshold separately."""
    old, new = (_flat(policy) for policy in (before or SetPolicy(), after))
    return {
        name: [old.get(name), new.get(name)]
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _flat(policy: SetPolicy) -> dict[str, object]:
    fields: dict[str, object] = json_format.MessageToDict(
        policy, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    thresholds = fields.pop("thresholds", {})
    named = dict(thresholds).items()  # type: ignore[call-overload]
    return fields | {f"thresholds.{name}": value for name, value in named}
