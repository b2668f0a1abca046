"""The reference strategy: takes every opportunity that the policies and the model let pass, on paper.

It sends nothing to any chain. Whether a paper bundle lands is drawn from the opportunity's own probability, the same for the same
opportunity, and every one of its events is marked simulated.
"""

import random
from collections.abc import Iterable, Mapping

from mev.agent.level import Level
from mev.agent.policy import Policies, PolicyType
from mev.agent.strategy import Action, Decision, Desk, Param, Strategy, Value
from mev.wire.pb.events_pb2 import Bundle, Opportunity

_LAMPORTS = Param(type="integer", description="Least expected profit, lamports.", minimum=0, maximum=2**62)
_SCORE = Param(type="number", description="Least score of the model; above 0 nothing is taken that no model scored.", minimum=0, maximum=1)


class Arbitrage(Strategy):
    """Paper bundles for opportunities worth `min_profit_lamports` or more after fee and tip, and scored `min_score` or more."""

    module = "arbitrage"
    actions = (
        Action(name="set_min_profit", description="Take only what earns at least so much.", params={"lamports": _LAMPORTS}),
        Action(name="reset_counters", description="Count from zero again."),
        Action(name="cancel_all", description="Take back every bundle that may still land."),
    )
    policy_types = (PolicyType("risk", "Limits that every opportunity must keep."),)
    configs: Mapping[str, Param] = {"min_profit_lamports": _LAMPORTS, "min_score": _SCORE}

    def __init__(self, *, simulated: bool = True) -> None:
        self.min_profit_lamports = 0
        self.min_score = 0.0
        self.seen = 0
        self.taken = 0
        self._simulated = simulated
        self._policies = Policies()
        self._desk: Desk | None = None

    def on_start(self, desk: Desk) -> None:
        self._desk = desk

    def on_opportunity(self, opportunity: Opportunity, score: float | None) -> Iterable[Decision]:
        self.seen += 1
        assert self._desk is not None  # noqa: S101 - the agent starts a strategy before anything else
        now_ns = self._desk.clock()
        # Nothing that was made up ever lands late.
        if not opportunity.simulated and opportunity.deadline_ns and now_ns > opportunity.deadline_ns:
            return ()
        if _net_profit(opportunity) < self.min_profit_lamports or self._policies.refusal(opportunity) is not None:
            return ()
        if not self._scores_enough(score) or self._desk.level() != Level.ACTIVE:
            return ()
        self.taken += 1
        return (Decision.opens(self._bundle(opportunity, now_ns)),)

    def on_action(self, name: str, params: Mapping[str, Value]) -> str:
        if name == "set_min_profit":
            self.min_profit_lamports = int(params["lamports"])
            return f"takes {self.min_profit_lamports} lamports or more"
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
            self.min_profit_lamports = int(value)

    def _scores_enough(self, score: float | None) -> bool:
        """Whoever asks for a score wants nothing that has none: a model that is gone must not open the door."""
        return not self.min_score or (score is not None and score >= self.min_score)

    def _bundle(self, opportunity: Opportunity, now_ns: int) -> Bundle:
        assert self._desk is not None  # noqa: S101 - the agent starts a strategy before anything else
        landed = random.Random(opportunity.id).random() < opportunity.probability  # noqa: S311 - a simulation, not a secret
        decided_ns = min(now_ns, opportunity.deadline_ns or now_ns)
        return Bundle(
            bundle_id=f"{self._desk.agent_id}:{opportunity.id}",
            opportunity_id=opportunity.id,
            agent_id=self._desk.agent_id,
            slot=opportunity.slot + 1,
            landed=landed,
            profit_lamports=_net_profit(opportunity) if landed else 0,
            tip_lamports=opportunity.tip_lamports if landed else 0,
            latency_ns=max(0, decided_ns - opportunity.detected_at_ns),
            error="" if landed else "not landed, on paper",
            simulated=self._simulated,
        )


def _net_profit(opportunity: Opportunity) -> int:
    return opportunity.expected_profit_lamports - opportunity.fee_lamports - opportunity.tip_lamports
