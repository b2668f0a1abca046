"""What the agents of a deployment have answered and report, and what its rules make of that."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mev.control import ledger as ledger_module
from mev.control.book import Book
from mev.control.fleet import Agent
from mev.control.ledger import Delivery, Issued
from mev.core.text import shown
from mev.deploy import plan
from mev.deploy.model import Deployment, Row, State, Verdict
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, ModelUse

_NS = 1_000_000_000
_MOST_SAID = 200
_CANARIES = "canaries"
_MOST = 1 << 53  # an agent may say more than a file or a program that reads JSON can hold
# The agent was late or had other keys, and says nothing of the model; it learns of it again with everything that is in force.
_LATE = frozenset({"expired", "rolled_back", "unknown_epoch", "unknown_key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What living agents together report of one model in one role. Latencies and PSI are those of the agent where they are worst."""

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
        """Opportunities that could not be scored, of all."""
        total = self.scored + self.failed
        return self.failed / total if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one agent is with an order: its answer, whether it is alive, and what it reports of the model."""

    agent_id: str
    command_id: str
    state: ledger_module.State
    alive: bool
    delivery: Delivery
    use: ModelUse | None = None

    @property
    def refused(self) -> bool:
        """Whether the agent does not want this model."""
        return self.state is ledger_module.State.ERROR and self.delivery.reason_code not in _LATE

    @property
    def due(self) -> bool:
        """Whether the agent is alive, has the order, and has not obeyed it."""
        return self.alive and not self.refused and self.state not in {ledger_module.State.SYNCED, ledger_module.State.NOT_SENT}


def figures(uses: Iterable[ModelUse]) -> Figures:
    """Return what `uses` come to together."""
    uses = list(uses)
    features = [(value, said(name)) for use in uses for name, value in use.feature_psi.items() if math.isfinite(value)]
    worst_psi, worst_feature = max(features, default=(None, ""))
    return Figures(
        agents=len(uses),
        scored=min(_MOST, sum(use.scored for use in uses)),
        failed=min(_MOST, sum(use.failed for use in uses)),
        latency_p50_us=max((use.latency_p50_us for use in uses if math.isfinite(use.latency_p50_us)), default=0.0),
        latency_p99_us=max((use.latency_p99_us for use in uses if math.isfinite(use.latency_p99_us)), default=0.0),
        score_psi=max((use.score_psi for use in uses if use.HasField("score_psi") and math.isfinite(use.score_psi)), default=None),
        feature_psi=worst_psi,
        feature=worst_feature,
    )


def said(text: str) -> str:
    """Return what an agent says as it may stand in logs, files and answers: on one line, nothing hidden, and not for ever."""
    return shown(text[:_MOST_SAID]).replace("\n", "\\n")[:_MOST_SAID]


def is_alive(agent: Agent, now_ns: int, silent_ns: int) -> bool:
    """Say whether an agent has reported of late."""
    return now_ns - agent.last_seen_ns < silent_ns


def standings(deployment: Deployment, step: int, number: int, book: Book, now_ns: int, silent_ns: int) -> list[Standing]:
    """Return where each enrolled agent is that an order is for."""
    order = deployment.steps[step].orders[number]
    role = SHADOW if order.shadow else PRODUCTION
    found = []
    for agent in _meant(deployment, order.agent_ids, book):
        scope = f"agent:{agent.id}" if order.agent_ids else f"module:{deployment.module}"
        issued, delivery = _answer(agent.id, plan.current(deployment, step, number, (scope,), book.ledger))
        found.append(
            Standing(
                agent_id=agent.id,
                command_id=issued.command.id if issued else "",
                state=issued.state(delivery) if issued else ledger_module.State.NOT_SENT,
                alive=is_alive(agent, now_ns, silent_ns),
                delivery=delivery,
                use=_use(agent, role, deployment),
            )
        )
    return found


def judge(deployment: Deployment, found: list[Standing], unanswered_s: float, now_ns: int) -> tuple[Row, ...]:
    """Return what every rule says of the stage, given how long a living agent has left its order unanswered at most."""
    rules, living = deployment.rules, [one for one in found if one.alive]
    sums = figures(one.use for one in living if one.use is not None)
    refusals = [one for one in found if one.refused]
    running = sum(one.use is not None and one.state is ledger_module.State.SYNCED for one in living)
    enough, counted = sums.scored + sums.failed >= rules.min_scored, _counted(living, rules.min_scored)
    watched_ns = deployment.watched_ns or deployment.since_ns  # one that was written down before there was such a field has the other
    held_s = (now_ns - watched_ns) / _NS if deployment.state is not State.ROLLING_OUT else 0.0
    drifts = deployment.has_baseline
    return (
        Row(rule="agents", value=running, bound=len(living), verdict=_reached(running, max(1, len(living)))),
        refusal("refusals", refusals),
        _unanswered(unanswered_s, rules.ack_timeout_s, waiting=running < len(living)),
        Row(rule="min_scored", value=counted, bound=rules.min_scored, verdict=_reached(counted, rules.min_scored)),
        _errors(living, sums, rules.max_error_rate, rules.min_scored),
        _bounded("max_latency_p99_us", sums.latency_p99_us if sums.scored else None, rules.max_latency_p99_us, enough=enough),
        _bounded("max_score_psi", sums.score_psi, rules.max_score_psi if drifts else None, enough=enough),
        _bounded("max_feature_psi", sums.feature_psi, rules.max_feature_psi if drifts else None, enough=enough, detail=sums.feature),
        Row(rule="hold_s", value=round(held_s, 3), bound=rules.hold_s, verdict=_held(held_s, deployment)),
    )


def choice(agents: int) -> Row:
    """Return whether a canary can be chosen among so many agents."""
    detail = "" if agents else "no agent is alive, was there before the deployment began, and is enrolled for long enough"
    return Row(rule=_CANARIES, value=agents, bound=1, verdict=_reached(agents, 1), detail=detail)


def breach(rows: Iterable[Row]) -> str:
    """Return which rule is broken and by what, empty where none is."""
    for row in rows:
        if row.verdict is Verdict.BREACHED:
            value, bound = (f"{number:g}" if number is not None else "" for number in (row.value, row.bound))
            return f"{row.rule}: {value}, bound {bound}{f' ({row.detail})' if row.detail else ''}"
    return ""


def _meant(deployment: Deployment, agent_ids: tuple[str, ...], book: Book) -> list[Agent]:
    if agent_ids:
        return [agent for name in agent_ids if (agent := book.fleet.agents.get(name)) is not None]
    return [agent for agent in book.fleet.agents.values() if agent.module == deployment.module]


def _answer(agent_id: str, commands: list[Issued]) -> tuple[Issued | None, Delivery]:
    """Return the command that an agent obeyed, else the newest of them and what it answered."""
    for issued in commands:
        delivery = issued.deliveries.get(agent_id)
        if delivery is not None and issued.state(delivery) is ledger_module.State.SYNCED:
            return issued, delivery
    if not commands:
        return None, Delivery(agent_id)
    # An agent that came later than the command learns of it with everything that is in force.
    return commands[-1], commands[-1].deliveries.get(agent_id, Delivery(agent_id))


def _use(agent: Agent, role: int, deployment: Deployment) -> ModelUse | None:
    wanted = bytes.fromhex(deployment.artifact.sha256)
    for use in agent.running.models:
        if use.role == role and use.model_id == deployment.artifact.model_id and use.sha256 == wanted:
            return use
    return None


def _reached(value: float, bound: float) -> Verdict:
    return Verdict.HOLDS if value >= bound else Verdict.WAITING


def _held(held_s: float, deployment: Deployment) -> Verdict:
    return Verdict.WAITING if deployment.state is State.ROLLING_OUT else _reached(held_s, deployment.rules.hold_s)


def refusal(rule: str, refusals: Sequence[Standing]) -> Row:
    """Return who refuses, and why the first of them do."""
    detail = "; ".join(f"{one.agent_id}: {said(one.delivery.reason_code)} {said(one.delivery.detail)}".strip() for one in refusals[:3])
    verdict = Verdict.BREACHED if refusals else Verdict.HOLDS
    return Row(rule=rule, value=len(refusals), bound=0, verdict=verdict, detail=detail)


def _unanswered(seconds: float, bound: float, *, waiting: bool) -> Row:
    verdict = Verdict.BREACHED if seconds > bound else Verdict.WAITING if waiting else Verdict.HOLDS
    return Row(rule="ack_timeout_s", value=round(seconds, 3), bound=bound, verdict=verdict)


def _counted(living: list[Standing], min_scored: int) -> int:
    """Return how many scored opportunities count: of one agent only so many that it takes more than half of them to reach the bound."""
    part = math.ceil(min_scored / (len(living) // 2 + 1))
    return sum(min(one.use.scored, part) for one in living if one.use is not None)


def _errors(living: list[Standing], sums: Figures, bound: float | None, min_scored: int) -> Row:
    """Judge the worst agent, whose failures no other can hide, and all together."""
    each = [(one.use.failed, one.use.scored, one.agent_id) for one in living if one.use is not None]
    everybody = [(sums.failed, sums.scored, ""), *each]
    # Of `min_scored` at least: what is above the bound stays there even if all that is still wanted succeeds.
    rate, worst = max(((failed / max(failed + scored, min_scored, 1), name) for failed, scored, name in everybody), key=lambda one: one[0])
    if bound is None:
        verdict = Verdict.OFF
    elif rate > bound:
        verdict = Verdict.BREACHED
    else:
        verdict = _reached(sums.scored + sums.failed, min_scored)
    return Row(rule="max_error_rate", value=rate if sums.scored + sums.failed else None, bound=bound, verdict=verdict, detail=worst)


def _bounded(rule: str, value: float | None, bound: float | None, *, enough: bool, detail: str = "") -> Row:
    if bound is None:
        verdict = Verdict.OFF
    elif value is None or not enough:
        verdict = Verdict.WAITING
    else:
        verdict = Verdict.BREACHED if value > bound else Verdict.HOLDS
    return Row(rule=rule, value=value, bound=bound, verdict=verdict, detail=detail)


def passed(rows: Iterable[Row]) -> bool:
    """Say whether every rule of the stage holds; who may be a canary is for the next one."""
    return all(row.verdict in {Verdict.HOLDS, Verdict.OFF} for row in rows if row.rule != _CANARIES)
