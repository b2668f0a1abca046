"""Observation of deployments: the progress of each agent, and the results of the rules."""

import logging
from collections.abc import Callable
from dataclasses import replace

from mev.control.control_state import ControlState
from mev.control.fleet import EnrolledAgent
from mev.rollout import admission, rules
from mev.rollout.model import Deployment, Stage
from mev.rollout.rules import AgentRollout

LOG = logging.getLogger(__name__)
_NS = 1_000_000_000


class Observer:
    """Observes the agents of deployments.

    An agent that was not heard from for `silent_s` counts as away and is not waited for.
    """

    def __init__(self, state: ControlState, *, silent_s: float, clock: Callable[[], int]) -> None:
        self._state = state
        self._silent_ns = round(silent_s * _NS)
        self._clock = clock
        self._unanswered: dict[tuple[str, int, str], int] = {}

    def standings(self, deployment: Deployment, step: int, number: int) -> list[AgentRollout]:
        """Return the progress of each agent that an order targets."""
        return rules.standings(
            deployment, step, number, self._state, self._clock(), self._silent_ns
        )

    def live(self, module: str) -> list[EnrolledAgent]:
        """Return the agents of a module that reported recently."""
        now, members = self._clock(), self._state.fleet.agents.values()
        return [
            agent
            for agent in members
            if agent.module == module and rules.is_alive(agent, now, self._silent_ns)
        ]

    def judged(self, deployment: Deployment) -> Deployment:
        """Return a deployment with current rule results; an ended one is returned unchanged."""
        if not deployment.state.active:
            return deployment
        step = len(deployment.steps) - 1  # while it is active, the latest one places the model
        found = self.standings(deployment, step, 0)
        unanswered_s = self._unanswered_s(deployment, step, found)
        rows = rules.evaluate_rules(deployment, found, unanswered_s, self._clock())
        # shows why a promotion waits
        if deployment.promote and deployment.stage is Stage.SHADOW:
            rows = (*rows, rules.choice(len(self.eligible(deployment))))
        return replace(deployment, rows=rows)

    def eligible(self, deployment: Deployment) -> tuple[str, ...]:
        """Return the agents that may become canaries."""
        return admission.eligible(self.live(deployment.module), deployment, self._clock())

    def judged_at_last(self, deployment: Deployment) -> Deployment:
        """Return an ending deployment with its rule results; errors must not prevent a rollback."""
        try:
            return self.judged(deployment)
        except Exception:
            LOG.exception(
                "deployment %s ends unjudged",
                deployment.id,
                extra={"action": "deployment_unjudged"},
            )
            return deployment

    def forget(self, deployment: Deployment) -> None:
        """Forget since when agents have not answered; call it when a deployment ends."""
        self._unanswered = {
            key: since for key, since in self._unanswered.items() if key[0] != deployment.id
        }

    def _unanswered_s(self, deployment: Deployment, step: int, found: list[AgentRollout]) -> float:
        """Return the longest time a live agent has left its order unanswered."""
        now_ns, longest_ns = self._clock(), 0
        for one in found:
            key = (deployment.id, step, one.agent_id)
            if one.due:
                longest_ns = max(longest_ns, now_ns - self._unanswered.setdefault(key, now_ns))
            else:
                self._unanswered.pop(key, None)
        return longest_ns / _NS
