"""What control plane and agents must read alike: which object a command is about, and which of two commands is newer."""

from mev.wire.pb.control_pb2 import SHADOW, Command, Target, Version


def scopes(target: Target) -> list[str]:
    """Return who is meant, one name a scope: ``all``, ``module:<name>``, ``agent:<id>``."""
    if target.all:
        return ["all"]
    return [*(f"module:{name}" for name in target.modules), *(f"agent:{name}" for name in target.agent_ids)]


def is_for(target: Target, agent_id: str, module: str) -> bool:
    """Say whether an agent is meant."""
    return target.all or module in target.modules or agent_id in target.agent_ids


def subject(command: Command) -> str:
    """Return what a command is about: the latest command on a subject is the one in force. Actions are never in force."""
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


def order(version: Version) -> tuple[int, int]:
    """Return a version as something to compare."""
    return version.epoch, version.counter
