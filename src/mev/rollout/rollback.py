"""Rollback progress: pending agents, permanent refusals, and the orders that follow.

An agent that cannot load the previous model would stay on the withdrawn one unless a further order
clears the role.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mev.control.audit import SYSTEM
from mev.control.command_store import CommandStore, DeliveryState
from mev.control.fleet import EnrolledAgent, Fleet
from mev.rollout import plan, rules
from mev.rollout.model import Deployment, DeploymentStep, Stage, StepOrder
from mev.rollout.rules import AgentRollout
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW

_AT_ONCE = 1000  # agents, which bounds the size of a command


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackOutcome:
    """Outcome of the rollback orders so far.

    `refused` are permanent refusals; `stuck` are the refusing agents that run a wrong model.
    """

    waits: bool
    """True while an agent has not answered, or only answered that the order was late."""
    refused: tuple[AgentRollout, ...]
    stuck: tuple[str, ...]

    @property
    def orders(self) -> tuple[StepOrder, ...]:
        """Return the orders that clear the role of the stuck agents."""
        parts = (
            self.stuck[start : start + _AT_ONCE] for start in range(0, len(self.stuck), _AT_ONCE)
        )
        return tuple(StepOrder(shadow=False, artifact=None, agent_ids=part) for part in parts)


def placed(deployment: Deployment) -> list[tuple[int, int]]:
    """Return step and index of each issued rollback order."""
    back = (
        (number, step)
        for number, step in enumerate(deployment.steps)
        if step.stage is Stage.ROLLBACK
    )
    return [
        (number, place)
        for number, step in back
        for place, order in enumerate(step.orders)
        if order.command_id
    ]


def outcome(
    deployment: Deployment,
    found: Sequence[tuple[int, int, list[AgentRollout]]],
    command_store: CommandStore,
    fleet: Fleet,
) -> RollbackOutcome:
    """Return the outcome of the orders, given by step, index and the rollout of each agent."""
    waits, refused, stuck = False, dict[str, AgentRollout](), list[str]()
    for step, number, standings in found:
        order = deployment.steps[step].orders[number]
        for one in standings:
            if one.refused and one.agent_id in deployment.refused:
                refused[one.agent_id] = one  # recorded already; reported again with new refusals
            if one.state is DeliveryState.SYNCED or not _is_in_force(
                deployment, step, number, one.agent_id, command_store
            ):
                continue
            if not one.refused or not one.alive:  # the running model is known after its report
                waits = True
            elif not _has(fleet.agents[one.agent_id], order):
                refused[one.agent_id] = one
                stuck += [one.agent_id] if order.artifact is not None else []
    return RollbackOutcome(waits=waits, refused=tuple(refused.values()), stuck=tuple(stuck))


def noted(
    deployment: Deployment, found: RollbackOutcome, at_ns: int, base: tuple[int, int]
) -> Deployment:
    """Return the deployment with refusals recorded and, where needed, a step that clears roles."""
    row = rules.refusal("given_back", found.refused)
    rows = (*(one for one in deployment.rows if one.rule != row.rule), row)
    news = sorted({one.agent_id for one in found.refused} - set(deployment.refused))
    known = replace(deployment, rows=rows, refused=(*deployment.refused, *news))
    if not found.orders:
        return known
    step = DeploymentStep(
        stage=Stage.ROLLBACK,
        at_ns=at_ns,
        by=SYSTEM,
        reason=f"refused: {row.detail}",
        orders=found.orders,
    )
    return replace(known, base=base, steps=(*known.steps, step))


def _is_in_force(
    deployment: Deployment, step: int, number: int, agent_id: str, command_store: CommandStore
) -> bool:
    """Return whether the order is the newest command for this agent."""
    about = (
        plan.SHADOW_SUBJECT
        if deployment.steps[step].orders[number].shadow
        else plan.PRODUCTION_SUBJECT
    )
    found = plan.newest(command_store, about, deployment.module, [agent_id])
    return found is not None and found.command.request_sha256 == deployment.request_sha256(
        step, number
    )


def _has(agent: EnrolledAgent, order: StepOrder) -> bool:
    """Return whether an agent runs what was ordered, for example because it never changed."""
    uses = [
        use for use in agent.running.models if use.role == (SHADOW if order.shadow else PRODUCTION)
    ]
    if order.artifact is None:
        return not uses
    return any(
        use.model_id == order.artifact.model_id and order.artifact.sha256 in {use.sha256.hex(), ""}
        for use in uses
    )
