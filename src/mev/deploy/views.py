"""Deployments as the API shows them."""

from pydantic import BaseModel

from mev.control.views import time
from mev.deploy import watch
from mev.deploy.model import Artifact, Deployment, Order, Row, Stage, State, Step, Verdict
from mev.deploy.service import Deployments
from mev.wire.pb.control_pb2 import SHADOW, ModelUse

DELIVERIES_OF = 5
"""Of so many newest steps it is told what each agent answered: a deployment has up to 100 steps, and a fleet thousands of agents."""


class DeliveryOut(BaseModel):
    """Where one agent is with a command."""

    agent_id: str
    state: str
    """NOT_SENT, STALE (sent, no answer), SYNCED or ERROR."""
    alive: bool
    """Whether it has reported of late; one that is away is waited for by nobody."""
    command_id: str | None
    reason_code: str | None
    detail: str | None
    reported_at: str | None
    latency_ms: float | None


class CommandOut(BaseModel):
    """One command of a step; without a model the role is emptied."""

    command_id: str | None
    """None until it is issued."""
    role: str
    model_id: str | None
    share: float | None
    module: str | None
    agent_ids: list[str]
    deliveries: list[DeliveryOut] | None = None
    """None in a list, and for steps before the newest ones."""


class StepOut(BaseModel):
    """A change of stage."""

    stage: Stage
    at: str | None
    by: str
    reason: str
    skipped: list[Stage]
    early: bool
    """Whether a person went on before the rules held."""
    settled: bool
    """Whether its commands are issued, and the aliases moved."""
    commands: list[CommandOut]


class RuleOut(BaseModel):
    """A rule, its value now or at the end, its bound, and what comes of it."""

    rule: str
    value: float | None
    bound: float | None
    verdict: Verdict
    detail: str | None


class FiguresOut(BaseModel):
    """What living agents report of a model in a role, together; latencies and PSI are those of the agent where they are worst."""

    role: str
    model_id: str
    deployed: bool
    """Whether it is the model of this deployment."""
    agents: int
    scored: int
    failed: int
    error_rate: float | None
    latency_p50_us: float
    latency_p99_us: float
    score_psi: float | None
    worst_feature_psi: float | None
    worst_feature: str | None


class DeploymentOut(BaseModel):
    """A deployment; with deliveries and figures where one is shown."""

    id: str
    model_id: str
    module: str
    form: str
    file: str
    stage: Stage
    state: State
    promote: bool
    created_at: str | None
    state_since: str | None
    canaries: list[str]
    previous_model_id: str | None
    because: str | None
    """Why it was rolled back, superseded or failed."""
    rules: list[RuleOut]
    steps: list[StepOut]
    figures: list[FiguresOut] | None = None


class DeploymentsOut(BaseModel):
    """A page of deployments."""

    items: list[DeploymentOut]
    next_cursor: str | None


def shown(deployments: Deployments, deployment: Deployment, *, detail: bool) -> DeploymentOut:
    """Return a deployment as the API shows it."""
    judged = deployments.judged(deployment)
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
        steps=[_step(deployments, judged, number, step, detail=number >= told) for number, step in enumerate(judged.steps)],
        figures=_figures(deployments, judged) if detail else None,
    )


def _rule(row: Row) -> RuleOut:
    return RuleOut(rule=row.rule, value=row.value, bound=row.bound, verdict=row.verdict, detail=row.detail or None)


def _step(deployments: Deployments, deployment: Deployment, number: int, step: Step, *, detail: bool) -> StepOut:
    return StepOut(
        stage=step.stage,
        at=time(step.at_ns),
        by=step.by,
        reason=step.reason,
        skipped=list(step.skipped),
        early=step.early,
        settled=step.settled,
        commands=[_command(deployments, deployment, number, place, order, detail=detail) for place, order in enumerate(step.orders)],
    )


def _command(deployments: Deployments, deployment: Deployment, step: int, number: int, order: Order, *, detail: bool) -> CommandOut:
    return CommandOut(
        command_id=order.command_id or None,
        role="shadow" if order.shadow else "production",
        model_id=order.artifact.model_id if order.artifact else None,
        share=order.share if order.shadow and order.artifact else None,
        module=None if order.agent_ids else deployment.module,
        agent_ids=list(order.agent_ids),
        deliveries=[_delivery(one) for one in deployments.standings(deployment, step, number)] if detail else None,
    )


def _delivery(one: watch.Standing) -> DeliveryOut:
    answer = one.delivery
    return DeliveryOut(
        agent_id=one.agent_id,
        state=one.state.value,
        alive=one.alive,
        command_id=one.command_id or None,
        reason_code=watch.said(answer.reason_code) or None,
        detail=watch.said(answer.detail) or None,
        reported_at=time(answer.arrived_at_ns),
        latency_ms=round(answer.latency_ns / 1e6, 3) if answer.result else None,
    )


def _figures(deployments: Deployments, deployment: Deployment) -> list[FiguresOut]:
    uses: dict[tuple[int, str], list[ModelUse]] = {}
    for agent in deployments.living(deployment.module):
        for use in agent.running.models:
            uses.setdefault((use.role, use.model_id), []).append(use)
    return [_figure(role, model_id, found, deployment.artifact) for (role, model_id), found in sorted(uses.items())]


def _figure(role: int, model_id: str, uses: list[ModelUse], ours: Artifact) -> FiguresOut:
    sums = watch.figures(uses)
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
