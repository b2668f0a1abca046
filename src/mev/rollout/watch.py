"""The watch over unfinished deployments: rules decide, and commands are issued again."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from prometheus_client import Counter

from mev.auth.audit import DONE, AuditCallback, note
from mev.control.audit import SYSTEM
from mev.control.control_state import ControlState
from mev.core.errors import MevError
from mev.rollout import plan, rollback, rules
from mev.rollout.admission import DEFAULT_SHARE
from mev.rollout.model import (
    FORWARD,
    Deployment,
    DeploymentState,
    DeploymentStep,
    RuleVerdict,
    Stage,
    audit_details,
)
from mev.rollout.observer import Observer
from mev.rollout.records import Records
from mev.rollout.steps import Steps

LOG = logging.getLogger(__name__)
ROLLBACKS = Counter(
    "mev_deployment_rollbacks_total", "Deployments rolled back automatically because of a rule."
)
REFUSALS = Counter(
    "mev_deployment_rollback_refusals_total",
    "Agents that permanently refused a rollback command.",
)


class Watch:
    """Watches the deployments in `records`; `busy` keeps requests out meanwhile."""

    def __init__(
        self,
        records: Records,
        state: ControlState,
        observer: Observer,
        steps: Steps,
        busy: asyncio.Lock,
        *,
        audit: AuditCallback,
        clock: Callable[[], int],
    ) -> None:
        self._records = records
        self._state = state
        self._observer = observer
        self._steps = steps
        self._busy = busy
        self._audit = audit
        self._clock = clock

    async def tick(self) -> None:
        """Process every unfinished deployment."""
        for deployment in self._records.unfinished():
            async with self._busy:
                try:
                    await self._look(self._records.get(deployment.id))
                except (MevError, OSError) as error:
                    LOG.warning(
                        "deployment %s waits: %s",
                        deployment.id,
                        error,
                        extra={"action": "deployment_waits"},
                    )
                except Exception:
                    # keep watching the other deployments, and retry this one
                    LOG.exception(
                        "deployment %s is not watched",
                        deployment.id,
                        extra={"action": "deployment_failed"},
                    )

    async def run(self, interval_s: float) -> None:
        """Call `tick` periodically until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(interval_s)

    # Automatic processing.

    async def _look(self, deployment: Deployment) -> None:
        if deployment.state.active and await self._steps.is_taken_over(deployment):
            return
        if not deployment.step.settled:
            deployment = await self._steps.settle(deployment)
        if deployment.step.aliases_due:
            deployment = await self._steps.move_aliases(deployment)
        if deployment.returning:
            await self._look_back(deployment)
        if not deployment.state.active:
            return
        judged = self._observer.judged(deployment)
        if why := rules.breach(judged.rows):
            await self._roll_back_by_itself(judged, why)
        elif (
            judged.state is DeploymentState.ROLLING_OUT
            and judged.rows[0].verdict is RuleVerdict.HOLDS
        ):
            now = self._clock()
            await self._records.save(
                replace(judged, state=DeploymentState.WATCHING, since_ns=now, watched_ns=now)
            )
        elif judged.state is DeploymentState.WATCHING and rules.passed(judged.rows):
            state = (
                DeploymentState.DONE if judged.stage is Stage.PRODUCTION else DeploymentState.READY
            )
            watched_ns = judged.watched_ns or judged.since_ns
            await self._steps.save(
                replace(judged, state=state, since_ns=self._clock(), watched_ns=watched_ns)
            )
            LOG.info(
                "deployment %s: %s %s",
                judged.id,
                judged.stage,
                state,
                extra={"action": "deployment"},
            )
        elif judged.state is DeploymentState.READY and judged.promote and rules.passed(judged.rows):
            # all may be away by now
            await self._go_on(judged)

    async def _look_back(self, deployment: Deployment) -> None:
        """Track the rollback; clear the role of agents that refuse the previous model."""
        found = [
            (step, number, self._observer.standings(deployment, step, number))
            for step, number in rollback.placed(deployment)
        ]
        outcome = rollback.outcome(deployment, found, self._state.command_store, self._state.fleet)
        looked = rollback.noted(
            deployment, outcome, self._clock(), plan.base(self._state, deployment.module)
        )
        news = len(looked.refused) - len(deployment.refused)
        if not news and not outcome.orders:
            if not outcome.waits:
                await self._records.save(replace(deployment, returning=False))
            return
        await self._records.save(looked)
        REFUSALS.inc(news)
        LOG.error(
            "deployment %s is not given back: %s",
            looked.id,
            looked.rows[-1].detail,
            extra={"action": "deployment_rollback_refused"},
        )
        if outcome.orders:
            await self._steps.settle(looked)

    async def _go_on(self, deployment: Deployment) -> None:
        stage = FORWARD[FORWARD.index(deployment.stage) + 1]
        chosen = (
            plan.canaries(deployment, self._observer.eligible(deployment), DEFAULT_SHARE)
            if stage is Stage.CANARY
            else ()
        )
        if stage is Stage.CANARY and not chosen:
            return
        reason = "the rules hold"
        await self._audit(
            SYSTEM,
            "training.promote",
            deployment.artifact.model_id,
            DONE,
            audit_details(deployment, stage, reason),
        )
        step = DeploymentStep(stage=stage, at_ns=self._clock(), by=SYSTEM, reason=reason)
        await self._steps.advance(
            replace(deployment, stage=stage, agent_ids=chosen), step, DEFAULT_SHARE
        )

    async def _roll_back_by_itself(self, deployment: Deployment, why: str) -> None:
        LOG.warning(
            "deployment %s is rolled back: %s",
            deployment.id,
            why,
            extra={"action": "deployment_rollback"},
        )
        ended = await self._steps.store_rollback(
            deployment,
            DeploymentStep(stage=Stage.ROLLBACK, at_ns=self._clock(), by=SYSTEM, reason=why),
            why,
        )
        ROLLBACKS.inc()  # a failed write is retried
        await self._steps.try_settle(ended)
        about, model_id = (
            audit_details(deployment, deployment.stage, why),
            deployment.artifact.model_id,
        )
        await note(self._audit, SYSTEM, "training.rollback", model_id, DONE, **about)
