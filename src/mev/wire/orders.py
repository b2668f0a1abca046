"""Rules shared by control plane and agents: subjects and order of commands, and thresholds.

A threshold is `min_` or `max_` followed by a number of an opportunity, or by one of a step of its
route (`route.amount_in`).
"""

from functools import cache
from typing import Literal, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mev.wire.pb.control_pb2 import SHADOW, Command, Target, Version
from mev.wire.pb.events_pb2 import Opportunity

Tighter = Literal["higher", "lower", "neither"]
"""The direction in which a value is stricter for an agent; `neither`: no value raises risk."""
ALIASES = {"profit_lamports": "expected_profit_lamports"}
INTEGERS = frozenset(
    {
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_SINT32,
    }
)
FLOATS = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})


def scopes(target: Target) -> list[str]:
    """Return the scopes of a target: ``all``, ``module:<name>``, ``agent:<id>``."""
    if target.all:
        return ["all"]
    return [
        *(f"module:{name}" for name in target.modules),
        *(f"agent:{name}" for name in target.agent_ids),
    ]


def is_for(target: Target, agent_id: str, module: str) -> bool:
    """Return whether the target includes the agent."""
    return target.all or module in target.modules or agent_id in target.agent_ids


def subject(command: Command) -> str:
    """Return the subject of a command: the latest command on a subject is the active one.

    Actions are never active.
    """
    match command.WhichOneof("body"):
        case "level":
            return "level"
        case "policy":
            return f"policy:{command.policy.policy_id}"
        case "model":
            return "model:shadow" if command.model.role == SHADOW else "model"
        case "config":
            return f"config:{command.config.config_key}"
        case _:
            return "action"


def version_key(version: Version) -> tuple[int, int]:
    """Return a comparable key for a version."""
    return version.epoch, version.counter


@cache
def threshold_directions() -> dict[str, Tighter]:
    """Return every threshold on an opportunity, with its stricter direction."""
    names = [*_paths(cast("Descriptor", Opportunity.DESCRIPTOR)), *ALIASES]
    found: dict[str, Tighter] = {}
    for name in names:
        found[f"min_{name}"], found[f"max_{name}"] = "higher", "lower"
    return found


def _paths(descriptor: Descriptor) -> list[str]:
    paths = []
    for field in descriptor.fields:
        if field.message_type is not None:
            paths += [
                f"{field.name}.{inner.name}"
                for inner in field.message_type.fields
                if inner.type in INTEGERS | FLOATS
            ]
        elif not field.is_repeated and field.type in INTEGERS | FLOATS:
            paths.append(field.name)
    return paths
