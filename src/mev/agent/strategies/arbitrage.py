"""Reference strategy: takes opportunities that pass policies and model, on paper only.

It sends nothing to any chain. Whether a paper bundle lands is drawn from the opportunity's
probability, and the cost of a failure from :mod:`mev.core.failures`; the draw is deterministic per
opportunity. All its events are marked as simulated.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from mev.agent.level import Level
from mev.agent.policy import Policies, PolicyType
from mev.agent.strategy import Action, Decision, Param, Strategy, StrategyContext, Value
from mev.core.failures import draw_failure
from mev.core.text import sol
from mev.wire.pb.events_pb2 import Bundle, Opportunity

_LAMPORTS = Param(
    type="integer",
    description="Least expected profit, lamports.",
    minimum=0,
    maximum=2**62,
    tighter="higher",
    initial=0,
)
_SCORE = Param(
    type="number",
    description="Least score of the model; above 0 nothing is taken that no model scored.",
    minimum=0,
    maximum=1,
    tighter="higher",
    initial=0,
)
MIN_SCORE_WITHOUT_MODEL = "min_score_without_model"
"""Reported while `min_score` is above 0 without a production model: nothing is sent then."""


class Arbitrage(Strategy):
    """Paper bundles for opportunities with a minimum net profit and a minimum score.

    The net profit after fee and tip must be `min_profit_lamports` or more, the score `min_score` or
    more.
    """

    module = "arbitrage"
    actions = (
        Action(
            name="set_min_profit",
            description="Take only what earns at least so much.",
            params={"lamports": _LAMPORTS},
        ),
        Action(name="reset_counters", description="Count from zero again.", raises_risk=False),
        Action(
            name="cancel_all",
            description="Take back every bundle that may still land.",
            raises_risk=False,
        ),
    )
    policy_types = (PolicyType("risk", "Limits that every opportunity must keep."),)
    configs: Mapping[str, Param] = {"min_profit_lamports": _LAMPORTS, "min_score": _SCORE}

    def __init__(self, *, simulated: bool = True) -> None:
        self._min_by_action = 0
        self._min_by_config = 0
        self.min_score = 0.0
        self.seen = 0
        self.taken = 0
        self._simulated = simulated
        self._policies = Policies()
        self._context: StrategyContext | None = None

    @property
    def min_profit_lamports(self) -> int:
        """Minimum net profit: the higher value of the action and the configuration."""
        return max(self._min_by_action, self._min_by_config)

    def on_start(self, context: StrategyContext) -> None:
        self._context = context

    def on_opportunity(self, opportunity: Opportunity, score: float | None) -> Iterable[Decision]:
        self.seen += 1
        assert self._context is not None  # noqa: S101
        now_ns = self._context.clock()
        # Simulated opportunities have no deadline.
        if (
            not opportunity.simulated
            and opportunity.deadline_ns
            and now_ns > opportunity.deadline_ns
        ):
            return ()
        if (
            _net_profit(opportunity) < self.min_profit_lamports
            or self._policies.refusal(opportunity) is not None
        ):
            return ()
        if not self._scores_enough(score) or self._context.level() != Level.ACTIVE:
            return ()
        self.taken += 1
        return (Decision.opens(self._bundle(opportunity, now_ns)),)

    def on_action(self, name: str, params: Mapping[str, Value]) -> str:
        if name == "set_min_profit":
            self._min_by_action = int(params["lamports"])
            return f"takes {sol(self.min_profit_lamports, exact=True)} or more"
        if name == "reset_counters":
            seen, taken, self.seen, self.taken = self.seen, self.taken, 0, 0
            return f"had seen {seen} and taken {taken}"
        # A paper bundle has landed or failed when it is published.
        return "nothing is open: paper bundles are settled at once"

    def on_policies(self, policies: Policies) -> None:
        self._policies = policies

    def on_config(self, key: str, value: Value) -> None:
        if key == "min_score":
            self.min_score = float(value)
        else:
            self._min_by_config = int(value)

    def blocked_by(self, *, has_model: bool) -> Sequence[str]:
        return (MIN_SCORE_WITHOUT_MODEL,) if self.min_score and not has_model else ()

    def _scores_enough(self, score: float | None) -> bool:
        """Return whether the score is sufficient; with `min_score` set, a missing score is not."""
        return not self.min_score or (score is not None and score >= self.min_score)

    def _bundle(self, opportunity: Opportunity, now_ns: int) -> Bundle:
        assert self._context is not None  # noqa: S101
        draw = random.Random(opportunity.id)  # noqa: S311 - a simulation, not a secret
        landed = draw.random() < opportunity.probability
        failure = None if landed else draw_failure(draw, leader_runs_jito=True)
        fee, tip = opportunity.fee_lamports, opportunity.tip_lamports
        decided_ns = min(now_ns, opportunity.deadline_ns or now_ns)
        return Bundle(
            bundle_id=f"{self._context.agent_id}:{opportunity.id}",
            opportunity_id=opportunity.id,
            agent_id=self._context.agent_id,
            slot=opportunity.slot + 1,
            landed=landed,
            profit_lamports=failure.profit_lamports(fee, tip)
            if failure
            else _net_profit(opportunity),
            tip_lamports=failure.tip_paid_lamports(tip) if failure else tip,
            latency_ns=max(0, decided_ns - opportunity.detected_at_ns),
            error=f"{failure.error}, on paper" if failure else "",
            simulated=self._simulated,
        )


def _net_profit(opportunity: Opportunity) -> int:
    return (
        opportunity.expected_profit_lamports - opportunity.fee_lamports - opportunity.tip_lamports
    )
