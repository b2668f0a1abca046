"""What became of the orders that took a model back: who has not obeyed yet, who refuses for good, and what is ordered then.

An agent that cannot load the model of before keeps the one that was taken back, unless it is told to have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mev.control.audit import SYSTEM
from mev.control.fleet import Agent, Fleet
from mev.control.ledger import Ledger, State
from mev.deploy import plan, watch
from mev.deploy.model import Deployment, Order, Stage, Step
from mev.deploy.watch import Standing
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW

_AT_ONCE = 1000  # agents, so that a command does not become too large


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`refused` are the answers of agents that refuse for good; `stuck` those of them that have another model than they should."""

    waits: bool
    """Whether an agent has not answered, or only that it was late."""
    refused: tuple[Standing, ...]
    stuck: tuple[str, ...]

    @property
    def orders(self) -> tuple[Order, ...]:
        """What is ordered where the model of before cannot be loaded: none at all."""
        parts = (self.stuck[start : start + _AT_ONCE] for start in range(0, len(self.stuck), _AT_ONCE))
        return tuple(Order(shadow=False, artifact=None, agent_ids=part) for part in parts)


def placed(deployment: Deployment) -> list[tuple[int, int]]:
    """Return step and number of each order that takes the model back and was issued."""
    back = ((number, step) for number, step in enumerate(deployment.steps) if step.stage is Stage.ROLLBACK)
    return [(number, place) for number, step in back for place, order in enumerate(step.orders) if order.command_id]


def outcome(deployment: Deployment, found: Sequence[tuple[int, int, list[Standing]]], ledger: Ledger, fleet: Fleet) -> Outcome:
    """Return what came of the orders, given by step, number and where each agent is with it."""
    waits, refused, stuck = False, dict[str, Standing](), list[str]()
    for step, number, standings in found:
        order = deployment.steps[step].orders[number]
        for one in standings:
            if one.refused and one.agent_id in deployment.refused:
                refused[one.agent_id] = one  # known, and told of with those that follow
            if one.state is State.SYNCED or not _is_in_force(deployment, step, number, one.agent_id, ledger):
                continue
            if not one.refused or not one.alive:  # what it runs is known once it reports
                waits = True
            elif not _has(fleet.agents[one.agent_id], order):
                refused[one.agent_id] = one
                stuck += [one.agent_id] if order.artifact is not None else []
    return Outcome(waits=waits, refused=tuple(refused.values()), stuck=tuple(stuck))


def noted(deployment: Deployment, found: Outcome, at_ns: int, base: tuple[int, int]) -> Deployment:
    """Return the deployment that knows who refuses, with a step more where somebody is left without a model."""
    row = watch.refusal("given_back", found.refused)
    rows = (*(one for one in deployment.rows if one.rule != row.rule), row)
    news = sorted({one.agent_id for one in found.refused} - set(deployment.refused))
    known = replace(deployment, rows=rows, refused=(*deployment.refused, *news))
    if not found.orders:
        return known
    step = Step(stage=Stage.ROLLBACK, at_ns=at_ns, by=SYSTEM, reason=f"refused: {row.detail}", orders=found.orders)
    return replace(known, base=base, steps=(*known.steps, step))


def _is_in_force(deployment: Deployment, step: int, number: int, agent_id: str, ledger: Ledger) -> bool:
    """Say whether nothing newer was ordered at this agent, by whomever."""
    about = plan.SHADOW_SUBJECT if deployment.steps[step].orders[number].shadow else plan.PRODUCTION_SUBJECT
    found = plan.newest(ledger, about, deployment.module, [agent_id])
    return found is not None and found.command.request_sha256 == deployment.request_sha256(step, number)


def _has(agent: Agent, order: Order) -> bool:
    """Say whether an agent has what was ordered all the same, for instance because it never took the model that is taken back."""
    uses = [use for use in agent.running.models if use.role == (SHADOW if order.shadow else PRODUCTION)]
    if order.artifact is None:
        return not uses
    return any(use.model_id == order.artifact.model_id and order.artifact.sha256 in {use.sha256.hex(), ""} for use in uses)
