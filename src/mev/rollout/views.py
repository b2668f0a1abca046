"""API schemas of deployments."""

from dataclasses import asdict

from pydantic import BaseModel

from mev.control.views import time
from mev.rollout import min_score, rules
from mev.rollout.model import (
    Artifact,
    Deployment,
    DeploymentState,
    DeploymentStep,
    RuleResult,
    RuleVerdict,
    Stage,
    StepOrder,
)
from mev.rollout.service import Deployments
from mev.wire.pb.control_pb2 import SHADOW, ModelUse

DELIVERIES_OF = 5
"""Number of newest steps shown with each agent's answer.

A deployment has up to 100 steps, and a fleet thousands of agents.
"""


class DeliveryOut(BaseModel):
    """Delivery of a command to one agent."""

    agent_id: str
    state: str
    """NOT_SENT, STALE (sent, no answer), SYNCED or ERROR."""
    alive: bool
    """True if the agent reported recently; agents that are away are not waited for."""
    command_id: str | None
    reason_code: str | None
    detail: str | None
    reported_at: str | None
    latency_ms: float | None


class CommandOut(BaseModel):
    """One command of a step; without a model it clears the role."""

    command_id: str | None
    """None until the command is issued."""
    role: str
    model_id: str | None
    share: float | None
    module: str | None
    agent_ids: list[str]
    deliveries: list[DeliveryOut] | None = None
    """None in a list, and for older steps."""


class StepOut(BaseModel):
    """A change of stage."""

    stage: Stage
    at: str | None
    by: str
    reason: str
    skipped: list[Stage]
    early: bool
    """True if a person advanced before the rules passed."""
    settled: bool
    """True once its commands are issued and the aliases moved."""
    commands: list[CommandOut]


class RuleOut(BaseModel):
    """A rule with its value, bound and verdict."""

    rule: str
    value: float | None
    bound: float | None
    verdict: RuleVerdict
    detail: str | None


class FiguresOut(BaseModel):
    """Aggregated figures of live agents for a model in a role.

    Latencies and PSI are those of the worst agent.
    """

    role: str
    model_id: str
    deployed: bool
    """True if it is the model of this deployment."""
    agents: int
    scored: int
    failed: int
    error_rate: float | None
    latency_p50_us: float
    latency_p99_us: float
    score_psi: float | None
    worst_feature_psi: float | None
    worst_feature: str | None


class WarningOut(BaseModel):
    """A condition that keeps agents from trading, and the command that corrects it."""

    code: str
    """`min_score_without_model` or `min_score_of_another_model`."""
    detail: str
    agent_ids: list[str]
    command: str


class DeploymentOut(BaseModel):
    """A deployment; deliveries, figures and warnings are included when one is shown."""

    id: str
    model_id: str
    module: str
    form: str
    file: str
    stage: Stage
    state: DeploymentState
    promote: bool
    created_at: str | None
    state_since: str | None
    canaries: list[str]
    previous_model_id: str | None
    because: str | None
    """Reason for which it was rolled back, superseded or failed."""
    rules: list[RuleOut]
    steps: list[StepOut]
    figures: list[FiguresOut] | None = None
    warnings: list[WarningOut] | None = None


class DeploymentsOut(BaseModel):
    """A page of deployments."""

    items: list[DeploymentOut]
    next_cursor: str | None


def shown(deployments: Deployments, deployment: Deployment, *, detail: bool) -> DeploymentOut:
    """Return a deployment in the schema of the API."""
    judged = deployments.observer.judged(deployment)
    told = len(judged.steps) - DELIVERIES_OF if detail else len(judged.steps)
    return DeploymentOut(
        id=judged.id,
        model_id=judged.artifact.model_id,
        module=judged.module,
        form=judged.form,
        file=judged.artifact.path,
        stage=judged.stage,
        state=judged.state,
        promote=judged.promote,
        created_at=time(judged.created_ns),
        state_since=time(judged.since_ns),
        canaries=list(judged.agent_ids),
        previous_model_id=judged.previous.model_id if judged.previous else None,
        because=judged.because or None,
        rules=[_rule(row) for row in judged.rows],
        steps=[
            _step(deployments, judged, number, step, detail=number >= told)
            for number, step in enumerate(judged.steps)
        ],
        figures=_figures(deployments, judged) if detail else None,
        warnings=[
            WarningOut(**asdict(one))
            for one in min_score.warnings(judged, deployments.control_state)
        ]
        if detail
        else None,
    )


def _rule(row: RuleResult) -> RuleOut:
    return RuleOut(
        rule=row.rule,
        value=row.value,
        bound=row.bound,
        verdict=row.verdict,
        detail=row.detail or None,
    )


def _step(
    deployments: Deployments,
    deployment: Deployment,
    number: int,
    step: DeploymentStep,
    *,
    detail: bool,
) -> StepOut:
    return StepOut(
        stage=step.stage,
        at=time(step.at_ns),
        by=step.by,
        reason=step.reason,
        skipped=list(step.skipped),
        early=step.early,
        settled=step.settled,
        commands=[
            _command(deployments, deployment, number, place, order, detail=detail)
            for place, order in enumerate(step.orders)
        ],
    )


def _command(
    deployments: Deployments,
    deployment: Deployment,
    step: int,
    number: int,
    order: StepOrder,
    *,
    detail: bool,
) -> CommandOut:
    return CommandOut(
        command_id=order.command_id or None,
        role="shadow" if order.shadow else "production",
        model_id=order.artifact.model_id if order.artifact else None,
        share=order.share if order.shadow and order.artifact else None,
        module=None if order.agent_ids else deployment.module,
        agent_ids=list(order.agent_ids),
        deliveries=[
            _delivery(one) for one in deployments.observer.standings(deployment, step, number)
        ]
        if detail
        else None,
    )


def _delivery(one: rules.AgentRollout) -> DeliveryOut:
    answer = one.delivery
    return DeliveryOut(
        agent_id=one.agent_id,
        state=one.state.value,
        alive=one.alive,
        command_id=one.command_id or None,
        reason_code=rules.said(answer.reason_code) or None,
        detail=rules.said(answer.detail) or None,
        reported_at=time(answer.arrived_at_ns),
        latency_ms=round(answer.latency_ns / 1e6, 3) if answer.result else None,
    )


def _figures(deployments: Deployments, deployment: Deployment) -> list[FiguresOut]:
    uses: dict[tuple[int, str], list[ModelUse]] = {}
    for agent in deployments.observer.live(deployment.module):
        for use in agent.running.models:
            uses.setdefault((use.role, use.model_id), []).append(use)
    return [
        _figure(role, model_id, found, deployment.artifact)
        for (role, model_id), found in sorted(uses.items())
    ]


def _figure(role: int, model_id: str, uses: list[ModelUse], ours: Artifact) -> FiguresOut:
    sums = rules.figures(uses)
    return FiguresOut(
        role="shadow" if role == SHADOW else "production",
        model_id=model_id,
        deployed=model_id == ours.model_id,
        agents=sums.agents,
        scored=sums.scored,
        failed=sums.failed,
        error_rate=sums.error_rate,
        latency_p50_us=sums.latency_p50_us,
        latency_p99_us=sums.latency_p99_us,
        score_psi=sums.score_psi,
        worst_feature_psi=sums.feature_psi,
        worst_feature=sums.feature or None,
    )
