"""Evaluation of a deployment's rules from the answers and reports of its agents."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mev.control.command_store import CommandRecord, Delivery, DeliveryState
from mev.control.control_state import ControlState
from mev.control.fleet import EnrolledAgent
from mev.core.text import shown
from mev.rollout import plan
from mev.rollout.model import Deployment, DeploymentState, RuleResult, RuleVerdict
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, ModelUse

_NS = 1_000_000_000
_MOST_SAID = 200
_CANARIES = "canaries"
_MOST = 1 << 53  # larger integers are not exact in JSON
# Reasons that say nothing about the model; it is sent again with the commands in force.
_LATE = frozenset({"expired", "rolled_back", "unknown_epoch", "unknown_key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Aggregated figures of live agents for one model in one role.

    Latencies and PSI are those of the worst agent.
    """

    agents: int
    scored: int
    failed: int
    latency_p50_us: float
    latency_p99_us: float
    score_psi: float | None
    feature_psi: float | None
    feature: str

    @property
    def error_rate(self) -> float | None:
        """Return the share of opportunities that could not be scored."""
        total = self.scored + self.failed
        return self.failed / total if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRollout:
    """Progress of one agent with an order: its answer, liveness and reported use of the model."""

    agent_id: str
    command_id: str
    state: DeliveryState
    alive: bool
    delivery: Delivery
    use: ModelUse | None = None

    @property
    def refused(self) -> bool:
        """Return whether the agent rejected this model."""
        return self.state is DeliveryState.ERROR and self.delivery.reason_code not in _LATE

    @property
    def due(self) -> bool:
        """Return whether the agent is alive and has the order without having obeyed it."""
        return (
            self.alive
            and not self.refused
            and self.state not in {DeliveryState.SYNCED, DeliveryState.NOT_SENT}
        )


def figures(uses: Iterable[ModelUse]) -> Figures:
    """Return the aggregate of `uses`."""
    uses = list(uses)
    features = [
        (value, said(name))
        for use in uses
        for name, value in use.feature_psi.items()
        if math.isfinite(value)
    ]
    worst_psi, worst_feature = max(features, default=(None, ""))
    return Figures(
        agents=len(uses),
        scored=min(_MOST, sum(use.scored for use in uses)),
        failed=min(_MOST, sum(use.failed for use in uses)),
        latency_p50_us=max(
            (use.latency_p50_us for use in uses if math.isfinite(use.latency_p50_us)), default=0.0
        ),
        latency_p99_us=max(
            (use.latency_p99_us for use in uses if math.isfinite(use.latency_p99_us)), default=0.0
        ),
        score_psi=max(
            (
                use.score_psi
                for use in uses
                if use.HasField("score_psi") and math.isfinite(use.score_psi)
            ),
            default=None,
        ),
        feature_psi=worst_psi,
        feature=worst_feature,
    )


def said(text: str) -> str:
    """Return an agent's text sanitised for logs, files and answers: one line, limited length."""
    return shown(text[:_MOST_SAID]).replace("\n", "\\n")[:_MOST_SAID]


def is_alive(agent: EnrolledAgent, now_ns: int, silent_ns: int) -> bool:
    """Return whether an agent has reported recently."""
    return now_ns - agent.last_seen_ns < silent_ns


def standings(
    deployment: Deployment,
    step: int,
    number: int,
    control_state: ControlState,
    now_ns: int,
    silent_ns: int,
) -> list[AgentRollout]:
    """Return the progress of each enrolled agent that an order targets."""
    order = deployment.steps[step].orders[number]
    role = SHADOW if order.shadow else PRODUCTION
    found = []
    for agent in _meant(deployment, order.agent_ids, control_state):
        scope = f"agent:{agent.id}" if order.agent_ids else f"module:{deployment.module}"
        issued, delivery = _answer(
            agent.id, plan.current(deployment, step, number, (scope,), control_state.command_store)
        )
        found.append(
            AgentRollout(
                agent_id=agent.id,
                command_id=issued.command.id if issued else "",
                state=issued.state(delivery) if issued else DeliveryState.NOT_SENT,
                alive=is_alive(agent, now_ns, silent_ns),
                delivery=delivery,
                use=_use(agent, role, deployment),
            )
        )
    return found


def evaluate_rules(
    deployment: Deployment, found: list[AgentRollout], unanswered_s: float, now_ns: int
) -> tuple[RuleResult, ...]:
    """Return the results of all rules of the stage.

    `unanswered_s` is the longest time that a live agent has left its order unanswered.
    """
    rules, live = deployment.rules, [one for one in found if one.alive]
    sums = figures(one.use for one in live if one.use is not None)
    refusals = [one for one in found if one.refused]
    running = sum(one.use is not None and one.state is DeliveryState.SYNCED for one in live)
    enough, counted = (
        sums.scored + sums.failed >= rules.min_scored,
        _counted(live, rules.min_scored),
    )
    # files of older versions lack watched_ns
    watched_ns = deployment.watched_ns or deployment.since_ns
    held_s = (
        (now_ns - watched_ns) / _NS if deployment.state is not DeploymentState.ROLLING_OUT else 0.0
    )
    drifts = deployment.has_baseline
    return (
        RuleResult(
            rule="agents",
            value=running,
            bound=len(live),
            verdict=_reached(running, max(1, len(live))),
        ),
        refusal("refusals", refusals),
        _unanswered(unanswered_s, rules.ack_timeout_s, waiting=running < len(live)),
        RuleResult(
            rule="min_scored",
            value=counted,
            bound=rules.min_scored,
            verdict=_reached(counted, rules.min_scored),
        ),
        _errors(live, sums, rules.max_error_rate, rules.min_scored),
        _bounded(
            "max_latency_p99_us",
            sums.latency_p99_us if sums.scored else None,
            rules.max_latency_p99_us,
            enough=enough,
        ),
        _bounded(
            "max_score_psi", sums.score_psi, rules.max_score_psi if drifts else None, enough=enough
        ),
        _bounded(
            "max_feature_psi",
            sums.feature_psi,
            rules.max_feature_psi if drifts else None,
            enough=enough,
            detail=sums.feature,
        ),
        RuleResult(
            rule="hold_s",
            value=round(held_s, 3),
            bound=rules.hold_s,
            verdict=_held(held_s, deployment),
        ),
    )


def choice(agents: int) -> RuleResult:
    """Return whether a canary can be chosen among this number of agents."""
    detail = (
        ""
        if agents
        else (
            "no agent is alive, was there before the deployment began, and is enrolled for long"
            " enough"
        )
    )
    return RuleResult(
        rule=_CANARIES, value=agents, bound=1, verdict=_reached(agents, 1), detail=detail
    )


def breach(rows: Iterable[RuleResult]) -> str:
    """Return a description of the first breached rule, or an empty string."""
    for row in rows:
        if row.verdict is RuleVerdict.BREACHED:
            value, bound = (
                f"{number:g}" if number is not None else "" for number in (row.value, row.bound)
            )
            return f"{row.rule}: {value}, bound {bound}{f' ({row.detail})' if row.detail else ''}"
    return ""


def _meant(
    deployment: Deployment, agent_ids: tuple[str, ...], control_state: ControlState
) -> list[EnrolledAgent]:
    if agent_ids:
        return [
            agent
            for name in agent_ids
            if (agent := control_state.fleet.agents.get(name)) is not None
        ]
    return [
        agent for agent in control_state.fleet.agents.values() if agent.module == deployment.module
    ]


def _answer(agent_id: str, commands: list[CommandRecord]) -> tuple[CommandRecord | None, Delivery]:
    """Return the command that an agent obeyed, else the newest one, with the agent's answer."""
    for issued in commands:
        delivery = issued.deliveries.get(agent_id)
        if delivery is not None and issued.state(delivery) is DeliveryState.SYNCED:
            return issued, delivery
    if not commands:
        return None, Delivery(agent_id)
    # An agent that enrolled later gets the command with all those in force.
    return commands[-1], commands[-1].deliveries.get(agent_id, Delivery(agent_id))


def _use(agent: EnrolledAgent, role: int, deployment: Deployment) -> ModelUse | None:
    wanted = bytes.fromhex(deployment.artifact.sha256)
    for use in agent.running.models:
        if (
            use.role == role
            and use.model_id == deployment.artifact.model_id
            and use.sha256 == wanted
        ):
            return use
    return None


def _reached(value: float, bound: float) -> RuleVerdict:
    return RuleVerdict.HOLDS if value >= bound else RuleVerdict.WAITING


def _held(held_s: float, deployment: Deployment) -> RuleVerdict:
    return (
        RuleVerdict.WAITING
        if deployment.state is DeploymentState.ROLLING_OUT
        else _reached(held_s, deployment.rules.hold_s)
    )


def refusal(rule: str, refusals: Sequence[AgentRollout]) -> RuleResult:
    """Return the number of refusals with the first reasons."""
    detail = "; ".join(
        f"{one.agent_id}: {said(one.delivery.reason_code)} {said(one.delivery.detail)}".strip()
        for one in refusals[:3]
    )
    verdict = RuleVerdict.BREACHED if refusals else RuleVerdict.HOLDS
    return RuleResult(rule=rule, value=len(refusals), bound=0, verdict=verdict, detail=detail)


def _unanswered(seconds: float, bound: float, *, waiting: bool) -> RuleResult:
    verdict = (
        RuleVerdict.BREACHED
        if seconds > bound
        else RuleVerdict.WAITING
        if waiting
        else RuleVerdict.HOLDS
    )
    return RuleResult(rule="ack_timeout_s", value=round(seconds, 3), bound=bound, verdict=verdict)


def _counted(live: list[AgentRollout], min_scored: int) -> int:
    """Return the number of scored opportunities that count.

    Each agent's share is capped, so that more than half of the agents are needed to reach the
    bound.
    """
    part = math.ceil(min_scored / (len(live) // 2 + 1))
    return sum(min(one.use.scored, part) for one in live if one.use is not None)


def _errors(
    live: list[AgentRollout], sums: Figures, bound: float | None, min_scored: int
) -> RuleResult:
    """Return the error rate result: the worst of each agent and of all together."""
    each = [(one.use.failed, one.use.scored, one.agent_id) for one in live if one.use is not None]
    everybody = [(sums.failed, sums.scored, ""), *each]
    # Divided by at least `min_scored`: a rate above the bound stays above it.
    rate, worst = max(
        (
            (failed / max(failed + scored, min_scored, 1), name)
            for failed, scored, name in everybody
        ),
        key=lambda one: one[0],
    )
    if bound is None:
        verdict = RuleVerdict.OFF
    elif rate > bound:
        verdict = RuleVerdict.BREACHED
    else:
        verdict = _reached(sums.scored + sums.failed, min_scored)
    return RuleResult(
        rule="max_error_rate",
        value=rate if sums.scored + sums.failed else None,
        bound=bound,
        verdict=verdict,
        detail=worst,
    )


def _bounded(
    rule: str, value: float | None, bound: float | None, *, enough: bool, detail: str = ""
) -> RuleResult:
    if bound is None:
        verdict = RuleVerdict.OFF
    elif value is None or not enough:
        verdict = RuleVerdict.WAITING
    else:
        verdict = RuleVerdict.BREACHED if value > bound else RuleVerdict.HOLDS
    return RuleResult(rule=rule, value=value, bound=bound, verdict=verdict, detail=detail)


def passed(rows: Iterable[RuleResult]) -> bool:
    """Return whether all rules of the stage pass, except the one about canaries."""
    return all(
        row.verdict in {RuleVerdict.HOLDS, RuleVerdict.OFF} for row in rows if row.rule != _CANARIES
    )
