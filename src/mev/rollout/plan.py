"""Planning of a step's orders from the commands in force. Issues nothing.

An agent obeys one command per role: the newest that targets it, whatever its scope.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mev.control.command_store import CommandRecord, CommandStore
from mev.control.control_state import ControlState
from mev.rollout.model import Artifact, Deployment, Stage, StepOrder
from mev.scoring.manifest import Manifest
from mev.wire.orders import scopes
from mev.wire.orders import version_key as version_of
from mev.wire.pb.control_pb2 import ACK, SHADOW, Command, SwapModel

PRODUCTION_SUBJECT, SHADOW_SUBJECT = "model", "model:shadow"
_VERSION_DIGITS = 12


def artifact(manifest: Manifest, form: str) -> Artifact | None:
    """Return the file of a model in that form, or None where it has none."""
    digest = manifest.digest(form)
    if digest is None:
        return None
    return Artifact(
        model_id=manifest.model_id,
        path=f"{digest}.{form}",
        version=manifest.model_id[:_VERSION_DIGITS],
        sha256=digest,
    )


def canaries(deployment: Deployment, agent_ids: Iterable[str], share: float) -> tuple[str, ...]:
    """Return a deterministic share of the agents as canaries, at least one if there is any.

    The ranking depends on the deployment's id, which is unknown in advance, so an agent's name
    cannot be chosen to rank first.
    """
    ranked = sorted(
        agent_ids, key=lambda name: hashlib.sha256(f"{deployment.id}\n{name}".encode()).digest()
    )
    return tuple(ranked[: max(1, int(share * len(ranked) + 1e-9))])


def newest(
    command_store: CommandStore, about: str, module: str, agent_ids: Iterable[str] = ()
) -> CommandRecord | None:
    """Return the newest command on a subject that targets the module or one of `agent_ids`."""
    return next(iter(_newest_first(command_store, about, module, agent_ids)), None)


def in_production(command_store: CommandStore, module: str) -> Artifact | None:
    """Return the model last ordered into production for the module."""
    issued = newest(command_store, PRODUCTION_SUBJECT, module)
    return _ordered(issued.command.model) if issued is not None else None


def was_acknowledged(control_state: ControlState, module: str, file: Artifact) -> bool:
    """Return whether an agent of the module acknowledged the model in production."""
    members = [agent.id for agent in control_state.fleet.agents.values() if agent.module == module]
    placed = [
        one
        for one in control_state.command_store.history(PRODUCTION_SUBJECT)
        if one.command.model.model_id == file.model_id
    ]
    return any(
        one.deliveries[name].result == ACK
        for one in placed
        for name in members
        if name in one.deliveries
    )


def has_shadow(command_store: CommandStore, module: str) -> bool:
    """Return whether the module has a model in the shadow role."""
    issued = newest(command_store, SHADOW_SUBJECT, module)
    return issued is not None and bool(issued.command.model.model_id)


def base(control_state: ControlState, module: str) -> tuple[int, int]:
    """Return the newest version of any model command that targets the module."""
    members = [agent.id for agent in control_state.fleet.agents.values() if agent.module == module]
    found = [
        newest(control_state.command_store, about, module, members)
        for about in (PRODUCTION_SUBJECT, SHADOW_SUBJECT)
    ]
    return max(
        (version_of(issued.command.version) for issued in found if issued is not None),
        default=(0, 0),
    )


def forward(
    deployment: Deployment, stage: Stage, share: float, command_store: CommandStore
) -> tuple[StepOrder, ...]:
    """Return the orders that advance a deployment to a stage; the first places the model."""
    if stage is Stage.SHADOW:
        return (StepOrder(shadow=True, artifact=deployment.artifact, share=share),)
    placing = StepOrder(shadow=False, artifact=deployment.artifact, agent_ids=deployment.agent_ids)
    empties = stage is Stage.PRODUCTION and has_shadow(command_store, deployment.module)
    return (placing, StepOrder(shadow=True, artifact=None)) if empties else (placing,)


def backward(deployment: Deployment, command_store: CommandStore) -> tuple[StepOrder, ...]:
    """Return the orders that restore the previous models."""
    orders = []
    if deployment.stage is not Stage.SHADOW:
        agent_ids = deployment.agent_ids if deployment.stage is Stage.CANARY else ()
        orders.append(StepOrder(shadow=False, artifact=deployment.previous, agent_ids=agent_ids))
    return (*orders, *_shadow_withdrawn(deployment, command_store))


def withdrawal(deployment: Deployment, command_store: CommandStore) -> tuple[StepOrder, ...]:
    """Return the orders that end a trial: withdraw its shadow and canaries where still ours."""
    orders = []
    if deployment.stage is Stage.CANARY:
        left = tuple(
            name
            for name in deployment.agent_ids
            if _is_in_production_at(deployment, command_store, name)
        )
        if left:
            orders.append(
                StepOrder(
                    shadow=False,
                    artifact=in_production(command_store, deployment.module),
                    agent_ids=left,
                )
            )
    return (*orders, *_shadow_withdrawn(deployment, command_store))


def still_due(
    deployment: Deployment, order: StepOrder, command_store: CommandStore
) -> StepOrder | None:
    """Return the part of a delayed rollback order that is still due.

    Targets that received a newer command of another user since are left out. An order for the
    module stays whole unless the module itself received another model, because a bad model must not
    stay at the other agents.
    """
    about = SHADOW_SUBJECT if order.shadow else PRODUCTION_SUBJECT
    if not order.agent_ids:
        return (
            None
            if _is_foreign(
                deployment, newest(command_store, about, deployment.module), command_store
            )
            else order
        )
    found = {
        name: newest(command_store, about, deployment.module, [name]) for name in order.agent_ids
    }
    left = tuple(
        name for name, issued in found.items() if not _is_foreign(deployment, issued, command_store)
    )
    return replace(order, agent_ids=left) if left else None


def intruder(
    deployment: Deployment, control_state: ControlState, emptied: Sequence[Deployment] = ()
) -> CommandRecord | None:
    """Return a foreign command in force that replaces what this deployment ordered or found.

    Commands of `emptied` deployments, which end after this one began, do not count as foreign.
    """
    members = [
        agent.id
        for agent in control_state.fleet.agents.values()
        if agent.module == deployment.module
    ]
    subjects = (
        (PRODUCTION_SUBJECT, SHADOW_SUBJECT)
        if deployment.stage is Stage.SHADOW
        else (PRODUCTION_SUBJECT,)
    )
    for about in subjects:
        for found in _newest_first(control_state.command_store, about, deployment.module, members):
            if version_of(found.command.version) <= deployment.base or is_ours(
                deployment, found.command
            ):
                break
            if not any(is_ours(one, found.command) for one in emptied):
                return found
    return None


def is_ours(deployment: Deployment, command: Command) -> bool:
    """Return whether a command is of this deployment, also after re-issue with rotated keys."""
    return any(
        command.request_sha256 == deployment.request_sha256(step, number)
        for step, each in enumerate(deployment.steps)
        for number in range(len(each.orders))
    )


def is_repeated(deployment: Deployment, found: CommandRecord, command_store: CommandStore) -> bool:
    """Return whether a command repeats one that the deployment found, after a key rotation."""
    command = found.command
    return any(
        version_of(one.command.version) <= deployment.base
        and one.command.version.epoch < command.version.epoch
        and one.command.request_sha256 == command.request_sha256
        and one.command.issuer.principal == command.issuer.principal
        and set(scopes(command.target)) <= set(scopes(one.command.target))
        and one.command.model == command.model
        for one in command_store.history(
            SHADOW_SUBJECT if command.model.role == SHADOW else PRODUCTION_SUBJECT
        )
    )


def current(
    deployment: Deployment,
    step: int,
    number: int,
    scopes: Sequence[str],
    command_store: CommandStore,
) -> list[CommandRecord]:
    """Return the commands of an order that agents may answer, first issued first."""
    order = deployment.steps[step].orders[number]
    about, marked = (
        SHADOW_SUBJECT if order.shadow else PRODUCTION_SUBJECT,
        deployment.request_sha256(step, number),
    )
    found = {order.command_id: command_store.commands.get(order.command_id)}
    for scope in scopes:
        issued = command_store.latest(about, scope)
        if issued is not None and issued.command.request_sha256 == marked:
            found[issued.command.id] = issued
    return [issued for issued in found.values() if issued is not None]


def _newest_first(
    command_store: CommandStore, about: str, module: str, agent_ids: Iterable[str]
) -> list[CommandRecord]:
    scopes = ["all", f"module:{module}", *(f"agent:{name}" for name in agent_ids)]
    found = [
        issued for scope in scopes if (issued := command_store.latest(about, scope)) is not None
    ]
    return sorted(found, key=lambda issued: version_of(issued.command.version), reverse=True)


def _is_foreign(
    deployment: Deployment, found: CommandRecord | None, command_store: CommandStore
) -> bool:
    if found is None or version_of(found.command.version) <= deployment.base:
        return False
    return not is_ours(deployment, found.command) and not is_repeated(
        deployment, found, command_store
    )


def _is_in_production_at(
    deployment: Deployment, command_store: CommandStore, agent_id: str
) -> bool:
    found = newest(command_store, PRODUCTION_SUBJECT, deployment.module, [agent_id])
    return found is not None and is_ours(deployment, found.command)


def _shadow_withdrawn(deployment: Deployment, command_store: CommandStore) -> tuple[StepOrder, ...]:
    found = newest(command_store, SHADOW_SUBJECT, deployment.module)
    is_left = found is not None and found.command.model.model_id == deployment.artifact.model_id
    return (StepOrder(shadow=True, artifact=None),) if is_left else ()


def _ordered(swap: SwapModel) -> Artifact | None:
    if not swap.model_id:
        return None
    return Artifact(
        model_id=swap.model_id, path=swap.model_path, version=swap.version, sha256=swap.sha256.hex()
    )
