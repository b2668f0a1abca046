"""Steps of deployments: each is stored first, then its commands are issued.

A command that cannot be issued now is retried with the key of its step, so that it is issued once.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from mev.control.audit import SYSTEM
from mev.control.service import Control
from mev.core.errors import MevError
from mev.registry.registry import Registry
from mev.rollout import plan
from mev.rollout.aliases import follow
from mev.rollout.model import Deployment, DeploymentState, DeploymentStep, Stage, StepOrder
from mev.rollout.observer import Observer
from mev.rollout.records import Records
from mev.wire.orders import version_key as version_of

LOG = logging.getLogger(__name__)
_UNAVAILABLE = 503


class Steps:
    """Advances and ends the deployments in `records`."""

    def __init__(
        self,
        records: Records,
        control: Control,
        registry: Registry,
        observer: Observer,
        clock: Callable[[], int],
    ) -> None:
        self._records = records
        self._control = control
        self._state = control.state
        self._registry = registry
        self._observer = observer
        self._clock = clock

    async def advance(
        self, deployment: Deployment, step: DeploymentStep, share: float
    ) -> Deployment:
        """Store a forward step, then issue its commands."""
        orders = plan.forward(deployment, step.stage, share, self._state.command_store)
        base, steps = (
            plan.base(self._state, deployment.module),
            (*deployment.steps, replace(step, orders=orders)),
        )
        moved = replace(
            deployment,
            state=DeploymentState.ROLLING_OUT,
            since_ns=self._clock(),
            watched_ns=0,
            base=base,
            steps=steps,
            rows=(),
        )
        return await self.try_settle(await self._records.save(moved))

    async def roll_back(self, deployment: Deployment, step: DeploymentStep, why: str) -> Deployment:
        """Store a rollback, then issue its commands."""
        return await self.try_settle(await self.store_rollback(deployment, step, why))

    async def store_rollback(
        self, deployment: Deployment, step: DeploymentStep, why: str
    ) -> Deployment:
        """Store a rollback; :meth:`try_settle` issues its commands."""
        orders = plan.backward(deployment, self._state.command_store)
        return await self._end(
            self._observer.judged_at_last(deployment),
            DeploymentState.ROLLED_BACK,
            replace(step, orders=orders),
            why,
        )

    async def _end(
        self, deployment: Deployment, state: DeploymentState, step: DeploymentStep, why: str
    ) -> Deployment:
        """Store the end of a deployment with the orders that follow."""
        base, steps = plan.base(self._state, deployment.module), (*deployment.steps, step)
        ended = replace(
            deployment, state=state, since_ns=self._clock(), because=why, base=base, steps=steps
        )
        return await self.save(replace(ended, returning=bool(step.orders), refused=()))

    async def supersede(self, deployment: Deployment, why: str, by: str) -> None:
        """End a superseded deployment and its trial.

        :raises MevError: when the trial cannot be ended now; it is retried.
        """
        LOG.info(
            "deployment %s is superseded: %s", deployment.id, why, extra={"action": "deployment"}
        )
        step = DeploymentStep(
            stage=Stage.ROLLBACK,
            at_ns=self._clock(),
            by=by,
            reason=why,
            orders=plan.withdrawal(deployment, self._state.command_store),
        )
        await self.settle(
            await self._end(
                self._observer.judged_at_last(deployment), DeploymentState.SUPERSEDED, step, why
            )
        )

    async def is_taken_over(self, deployment: Deployment) -> bool:
        """End the deployment if a foreign command is in force; return whether it was."""
        found = plan.intruder(deployment, self._state, self._records.emptied(deployment.module))
        if found is None:
            return False
        if plan.is_repeated(deployment, found, self._state.command_store):
            await self._records.save(replace(deployment, base=version_of(found.command.version)))
            return False
        await self.supersede(
            deployment,
            f"{found.command.issuer.principal} swapped the model by command {found.command.id}",
            SYSTEM,
        )
        return True

    async def settle_all(self, module: str) -> None:
        """Finish earlier steps, so that none of their commands follows a new request."""
        for deployment in self._records.unfinished(module):
            if not deployment.step.settled and not (
                deployment.state.active and await self.is_taken_over(deployment)
            ):
                await self.settle(deployment)

    async def try_settle(self, deployment: Deployment) -> Deployment:
        """Issue the commands that can be issued now; the watch retries the rest."""
        try:
            return await self.settle(deployment)
        except MevError as error:
            LOG.warning(
                "deployment %s waits: %s",
                deployment.id,
                error,
                extra={"action": "deployment_waits"},
            )
            return self._records.get(deployment.id)

    async def settle(self, deployment: Deployment) -> Deployment:
        """Issue the outstanding commands of the latest step, then update the aliases.

        :raises MevError: when a command cannot be issued now; it is retried.
        """
        last = len(deployment.steps) - 1
        for number, order in enumerate(deployment.step.orders):
            if order.command_id or (due := self._due(deployment, number)) is None:
                continue
            if due != order:
                deployment = await self._records.save(deployment.with_order(number, due))
            try:
                issued = await self._control.issue(deployment.command(last, number))
            except MevError as error:
                if error.status == _UNAVAILABLE:
                    raise
                return await self._fail(deployment, error)
            deployment = await self._records.save(
                deployment.with_order(number, replace(due, command_id=issued.command.id))
            )
        # with refusals, the step concerns single agents and aliases moved before
        aliases_due = not deployment.refused and not await asyncio.to_thread(
            follow, self._registry, deployment
        )
        return await self._records.save(
            deployment.with_step(replace(deployment.step, settled=True, aliases_due=aliases_due))
        )

    async def move_aliases(self, deployment: Deployment) -> Deployment:
        """Move the aliases that could not be moved before, unless a newer deployment has them."""
        is_newest = self._records.newest()[0].id == deployment.id
        if is_newest and not await asyncio.to_thread(follow, self._registry, deployment):
            return deployment
        return await self._records.save(
            deployment.with_step(replace(deployment.step, aliases_due=False))
        )

    def _due(self, deployment: Deployment, number: int) -> StepOrder | None:
        """Return the part of an order that is still due."""
        order = deployment.step.orders[number]
        due = (
            plan.still_due(deployment, order, self._state.command_store)
            if deployment.step.stage is Stage.ROLLBACK
            else order
        )
        if due != order:
            LOG.warning(
                "deployment %s does not take back what was swapped meanwhile",
                deployment.id,
                extra={"action": "deployment_late"},
            )
        return due

    async def _fail(self, deployment: Deployment, error: MevError) -> Deployment:
        """Fail a deployment whose command can never be issued, and roll back."""
        LOG.error(
            "deployment %s fails: %s", deployment.id, error, extra={"action": "deployment_failed"}
        )
        why = f"{error.code}: {error.detail}"
        if deployment.step.stage is Stage.ROLLBACK:
            failed = replace(
                deployment,
                state=DeploymentState.FAILED,
                since_ns=self._clock(),
                because=why,
                returning=False,
            )
            return await self.save(failed.with_step(replace(failed.step, settled=True)))
        orders = plan.backward(deployment, self._state.command_store)
        step = DeploymentStep(
            stage=Stage.ROLLBACK, at_ns=self._clock(), by=SYSTEM, reason=why, orders=orders
        )
        return await self.settle(await self._end(deployment, DeploymentState.FAILED, step, why))

    async def save(self, deployment: Deployment) -> Deployment:
        """Store a deployment, which may have ended."""
        if not deployment.state.active:
            self._observer.forget(deployment)
        return await self._records.save(deployment)
