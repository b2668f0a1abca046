"""Deployments: taken, watched, carried on and taken back. Belongs to one event loop.

Every change is on the disk before its commands are issued, and the commands have keys that follow from what is there: after a crash
between the two they are issued, and never twice. One deployment of a module is active; one thing happens at a time.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from prometheus_client import Counter

from mev.auth.audit import DONE, Audit, no_audit, note
from mev.auth.model import Permission
from mev.control.audit import SYSTEM
from mev.control.fleet import Agent
from mev.control.service import Control
from mev.core.clock import now_ns
from mev.core.errors import MevError
from mev.core.ids import new_id
from mev.deploy import admission, plan, returns, watch
from mev.deploy.admission import DEFAULT_SHARE, RAISE, Request
from mev.deploy.aliases import follow
from mev.deploy.errors import AlreadyDeployedError, NoAgentsError, NothingToRollBackError, OtherFormError, TooManyStepsError
from mev.deploy.model import FORWARD, Artifact, Deployment, Order, Rules, Stage, State, Step, Verdict
from mev.deploy.records import Records
from mev.deploy.watch import Standing
from mev.models.registry import Entry, Registry
from mev.wire.orders import order as version_of

LOG = logging.getLogger(__name__)
ROLLBACKS = Counter("mev_deployment_rollbacks_total", "Deployments that were taken back because a rule was broken.")
REFUSALS = Counter("mev_deployment_rollback_refusals_total", "Agents that refused for good what took a model back from them.")
MAX_STEPS = 100
_UNAVAILABLE = 503
_NS = 1_000_000_000


class Deployments:
    """The deployments in `records`. An agent that was not heard of for `silent_s` is away: nobody waits for it."""

    def __init__(
        self,
        records: Records,
        control: Control,
        registry: Registry,
        *,
        silent_s: float,
        audit: Audit = no_audit,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.records = records
        self.book = control.book
        self._control = control
        self._registry = registry
        self._silent_ns = round(silent_s * _NS)
        self._audit = audit
        self._clock = clock
        self._unanswered: dict[tuple[str, int, str], int] = {}
        self._busy = asyncio.Lock()

    async def deploy(self, request: Request) -> Deployment:
        """Begin a deployment, bring it to another stage, or take it back; return it once its commands are issued, or will be.

        :raises MevError: when it cannot be; then nothing began. What was to give way may have ended by then; its trial is taken back as
            soon as that can be, and the audit trail says of what was asked for that it failed.
        """
        if request.stage is Stage.PRODUCTION or request.promote:
            admission.check_may(request, "production", RAISE)
        async with self._busy:
            if (known := self.records.repeated(request.by, request.key, request.sha256)) is not None:
                return known
            module = admission.module_of(request.module, self.book.fleet)
            await self._settle_all(module)
            if request.stage is Stage.ROLLBACK:
                return await self._roll_back_by_person(request, module)
            entry = await asyncio.to_thread(self._registry.get, request.model)
            file = admission.file_of(entry, request.form)
            admission.check_agents(module, self.book.fleet)
            active = self.records.active(module)
            if active is not None and active.artifact.model_id == entry.manifest.model_id:
                return await self._move(active, request, file)
            return await self._begin(request, entry, module, file, active)

    async def tick(self) -> None:
        """Look at every deployment that is not at its end, and do what follows."""
        for deployment in self.records.unfinished():
            async with self._busy:
                try:
                    await self._look(self.records.get(deployment.id))
                except (MevError, OSError) as error:
                    LOG.warning("deployment %s waits: %s", deployment.id, error, extra={"action": "deployment_waits"})
                except Exception:  # whatever it is, the others are watched on, and this one is looked at again
                    LOG.exception("deployment %s is not watched", deployment.id, extra={"action": "deployment_failed"})

    async def run(self, interval_s: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(interval_s)

    def standings(self, deployment: Deployment, step: int, number: int) -> list[Standing]:
        """Return where each agent is that an order was for."""
        return watch.standings(deployment, step, number, self.book, self._clock(), self._silent_ns)

    def living(self, module: str) -> list[Agent]:
        """Return the agents of a module that were heard of of late."""
        now, members = self._clock(), self.book.fleet.agents.values()
        return [agent for agent in members if agent.module == module and watch.is_alive(agent, now, self._silent_ns)]

    def judged(self, deployment: Deployment) -> Deployment:
        """Return a deployment with what its rules say now; one that has ended as it was then."""
        if not deployment.state.active:
            return deployment
        step = len(deployment.steps) - 1  # while it is active, the latest one places the model
        found = self.standings(deployment, step, 0)
        unanswered_s = self._unanswered_s(deployment, step, found)
        rows = watch.judge(deployment, found, unanswered_s, self._clock())
        if deployment.promote and deployment.stage is Stage.SHADOW:  # else it would wait and nobody could tell for what
            rows = (*rows, watch.choice(len(self._eligible(deployment))))
        return replace(deployment, rows=rows)

    # What people ask for.

    async def _begin(self, request: Request, entry: Entry, module: str, file: Artifact, active: Deployment | None) -> Deployment:
        previous = plan.in_production(self.book.ledger, module)
        if previous is not None and previous.model_id == file.model_id and previous.sha256 in {"", file.sha256}:
            raise AlreadyDeployedError(f"model {file.model_id} decides in {module!r} already")
        await asyncio.to_thread(admission.check_can_return, self._registry, previous, module)
        now = self._clock()
        deployment = Deployment(
            id=new_id(),
            module=module,
            form=file.path.rpartition(".")[2],
            artifact=file,
            previous=previous,
            has_baseline=entry.manifest.baseline is not None,
            stage=request.stage,
            state=State.ROLLING_OUT,
            created_ns=now,
            since_ns=now,
            rules=request.rules_after(Rules()),
            promote=request.promote,
        )
        deployment = replace(deployment, agent_ids=self._canaries(deployment, request))
        if active is not None and active.stage is Stage.PRODUCTION:
            admission.check_may(request, f"ending the watch over deployment {active.id}, which is in production,", RAISE)
        await self._note_first(request.actor, "training.deploy", deployment, request.stage, request.reason)
        if active is not None:
            why = f"deployment {deployment.id} of model {file.model_id} took its place"
            await self._give_way(active, why, request, "training.deploy", deployment)
            deployment = replace(deployment, previous=plan.in_production(self.book.ledger, module))
        step = request.step(self._clock(), skipped=FORWARD[: FORWARD.index(request.stage)])
        return await self._advance(deployment, step, request.share)

    async def _move(self, active: Deployment, request: Request, file: Artifact) -> Deployment:
        if request.form and file != active.artifact:
            raise OtherFormError(f"deployment {active.id} is of the form {active.form}; take it back first", field="form")
        rules = request.rules_after(active.rules)
        agent_ids = self._canaries(replace(active, rules=rules), request)
        skipped = admission.skipped_between(active, request.stage, agent_ids)
        if len(active.steps) >= MAX_STEPS:
            raise TooManyStepsError(f"deployment {active.id} has {MAX_STEPS} steps; take it back and begin anew")
        await asyncio.to_thread(admission.check_can_return, self._registry, active.previous, active.module)
        await self._note_first(request.actor, "training.promote", active, request.stage, request.reason)
        moved = replace(
            active,
            stage=request.stage,
            agent_ids=agent_ids,
            rules=rules,
            promote=request.promote,
        )
        early = active.state is not State.READY
        return await self._advance(moved, request.step(self._clock(), skipped=skipped, early=early), request.share)

    async def _roll_back_by_person(self, request: Request, module: str) -> Deployment:
        model_id = request.model
        if not self.records.knows(model_id):  # one whose manifest is refused by now can be taken back all the same
            model_id = (await asyncio.to_thread(self._registry.get, model_id)).manifest.model_id
        active, meant = self.records.active(module), self._arrived(model_id, module)
        if active is not None and active.artifact.model_id == model_id:
            meant = active
        if meant is None:
            raise NothingToRollBackError(f"no deployment of model {model_id} in {module!r} is under way or in production")
        if meant.stage is Stage.PRODUCTION:
            admission.check_may(request, "taking back what is in production", Permission.CONTROL_LOWER, RAISE)
        await self._note_first(request.actor, "training.rollback", meant, request.stage, request.reason)
        if active is not None and active is not meant:
            await self._give_way(active, f"deployment {meant.id}, which it followed, is rolled back", request, "training.rollback", meant)
        return await self._roll_back(meant, request.step(self._clock()), request.reason or "asked for")

    def _arrived(self, model_id: str, module: str) -> Deployment | None:
        """Return the deployment that brought to a module the model that decides there now."""
        decides = plan.in_production(self.book.ledger, module)
        return self.records.arrived(module, model_id) if decides is not None and decides.model_id == model_id else None

    def _canaries(self, deployment: Deployment, request: Request) -> tuple[str, ...]:
        """Return the canaries of a deployment and those who join them."""
        if request.stage is not Stage.CANARY:
            return ()
        module, choice = deployment.module, self._eligible(deployment)
        joining = admission.named(request.agent_ids, self.living(module), module) or plan.canaries(deployment, choice, request.share)
        if not joining:
            raise NoAgentsError(f"no agent of module {module!r} is alive and enrolled for long enough; a canary needs one", field="module")
        together = tuple(dict.fromkeys([*deployment.agent_ids, *joining]))
        admission.check_canaries(request, together, choice)
        return together

    def _eligible(self, deployment: Deployment) -> tuple[str, ...]:
        return admission.eligible(self.living(deployment.module), deployment, self._clock())

    async def _note_first(self, actor: str, action: str, deployment: Deployment, stage: Stage, reason: str) -> None:
        """Write down what is about to be done; where that fails it is not done."""
        await self._audit(actor, action, deployment.artifact.model_id, DONE, _details(deployment, stage, reason))

    async def _give_way(self, active: Deployment, why: str, request: Request, action: str, following: Deployment) -> None:
        """End the deployment under way, or write down that what was to follow did not come about."""
        try:
            await self._supersede(active, why, request.by)
        except MevError as error:
            about, model_id = _details(following, request.stage, error.detail), following.artifact.model_id
            await note(self._audit, request.actor, action, model_id, error.code, **about)
            raise

    # What follows from it.

    async def _look(self, deployment: Deployment) -> None:
        if deployment.state.active and await self._is_taken_over(deployment):
            return
        if not deployment.step.settled:
            deployment = await self._settle(deployment)
        if deployment.returning:
            await self._look_back(deployment)
        if not deployment.state.active:
            return
        judged = self.judged(deployment)
        if why := watch.breach(judged.rows):
            await self._roll_back_by_itself(judged, why)
        elif judged.state is State.ROLLING_OUT and judged.rows[0].verdict is Verdict.HOLDS:
            now = self._clock()
            await self.records.save(replace(judged, state=State.WATCHING, since_ns=now, watched_ns=now))
        elif judged.state is State.WATCHING and watch.passed(judged.rows):
            state = State.DONE if judged.stage is Stage.PRODUCTION else State.READY
            watched_ns = judged.watched_ns or judged.since_ns
            await self._end_or_keep(replace(judged, state=state, since_ns=self._clock(), watched_ns=watched_ns))
            LOG.info("deployment %s: %s %s", judged.id, judged.stage, state, extra={"action": "deployment"})
        elif judged.state is State.READY and judged.promote and watch.passed(judged.rows):  # they may all be away by now
            await self._go_on(judged)

    async def _look_back(self, deployment: Deployment) -> None:
        """See whether the model is given back, and leave an agent without one that refuses for good what it had before."""
        found = [(step, number, self.standings(deployment, step, number)) for step, number in returns.placed(deployment)]
        outcome = returns.outcome(deployment, found, self.book.ledger, self.book.fleet)
        looked = returns.noted(deployment, outcome, self._clock(), plan.base(self.book, deployment.module))
        news = len(looked.refused) - len(deployment.refused)
        if not news and not outcome.orders:
            if not outcome.waits:
                await self.records.save(replace(deployment, returning=False))
            return
        await self.records.save(looked)
        REFUSALS.inc(news)
        LOG.error("deployment %s is not given back: %s", looked.id, looked.rows[-1].detail, extra={"action": "deployment_rollback_refused"})
        if outcome.orders:
            await self._settle(looked)

    async def _go_on(self, deployment: Deployment) -> None:
        stage = FORWARD[FORWARD.index(deployment.stage) + 1]
        chosen = plan.canaries(deployment, self._eligible(deployment), DEFAULT_SHARE) if stage is Stage.CANARY else ()
        if stage is Stage.CANARY and not chosen:
            return
        reason = "the rules hold"
        await self._note_first(SYSTEM, "training.promote", deployment, stage, reason)
        step = Step(stage=stage, at_ns=self._clock(), by=SYSTEM, reason=reason)
        await self._advance(replace(deployment, stage=stage, agent_ids=chosen), step, DEFAULT_SHARE)

    async def _is_taken_over(self, deployment: Deployment) -> bool:
        """Say whether somebody else's command is in force now; then the deployment has ended."""
        found = plan.intruder(deployment, self.book, self.records.emptied(deployment.module))
        if found is None:
            return False
        if plan.is_repeated(deployment, found, self.book.ledger):
            await self.records.save(replace(deployment, base=version_of(found.command.version)))
            return False
        await self._supersede(deployment, f"{found.command.issuer.principal} swapped the model by command {found.command.id}", SYSTEM)
        return True

    async def _supersede(self, deployment: Deployment, why: str, by: str) -> None:
        """End a deployment that gives way, and its trial with it.

        :raises MevError: when the trial cannot be ended now, but later.
        """
        LOG.info("deployment %s is superseded: %s", deployment.id, why, extra={"action": "deployment"})
        step = Step(stage=Stage.ROLLBACK, at_ns=self._clock(), by=by, reason=why, orders=plan.withdrawal(deployment, self.book.ledger))
        await self._settle(await self._end(self._judged_at_last(deployment), State.SUPERSEDED, step, why))

    async def _roll_back_by_itself(self, deployment: Deployment, why: str) -> None:
        LOG.warning("deployment %s is rolled back: %s", deployment.id, why, extra={"action": "deployment_rollback"})
        ended = await self._rolled_back(deployment, Step(stage=Stage.ROLLBACK, at_ns=self._clock(), by=SYSTEM, reason=why), why)
        ROLLBACKS.inc()  # what could not be written down is tried again
        await self._settled(ended)
        about, model_id = _details(deployment, deployment.stage, why), deployment.artifact.model_id
        await note(self._audit, SYSTEM, "training.rollback", model_id, DONE, **about)

    async def _roll_back(self, deployment: Deployment, step: Step, why: str) -> Deployment:
        return await self._settled(await self._rolled_back(deployment, step, why))

    async def _rolled_back(self, deployment: Deployment, step: Step, why: str) -> Deployment:
        orders = plan.backward(deployment, self.book.ledger)
        return await self._end(self._judged_at_last(deployment), State.ROLLED_BACK, replace(step, orders=orders), why)

    async def _end(self, deployment: Deployment, state: State, step: Step, why: str) -> Deployment:
        """Write down that a deployment has ended, with what is to be ordered."""
        base, steps = plan.base(self.book, deployment.module), (*deployment.steps, step)
        ended = replace(deployment, state=state, since_ns=self._clock(), because=why, base=base, steps=steps)
        return await self._end_or_keep(replace(ended, returning=bool(step.orders), refused=()))

    def _judged_at_last(self, deployment: Deployment) -> Deployment:
        """Return a deployment that ends, with what its rules say, where that can be said: nothing must keep it from being taken back."""
        try:
            return self.judged(deployment)
        except Exception:
            LOG.exception("deployment %s ends unjudged", deployment.id, extra={"action": "deployment_unjudged"})
            return deployment

    async def _advance(self, deployment: Deployment, step: Step, share: float) -> Deployment:
        """Write down a step forward, then issue its commands."""
        orders = plan.forward(deployment, step.stage, share, self.book.ledger)
        base, steps = plan.base(self.book, deployment.module), (*deployment.steps, replace(step, orders=orders))
        moved = replace(deployment, state=State.ROLLING_OUT, since_ns=self._clock(), watched_ns=0, base=base, steps=steps, rows=())
        return await self._settled(await self.records.save(moved))

    async def _settle_all(self, module: str) -> None:
        """Finish what was begun before: nothing of it may come after what is asked for now."""
        for deployment in self.records.unfinished(module):
            if not deployment.step.settled and not (deployment.state.active and await self._is_taken_over(deployment)):
                await self._settle(deployment)

    async def _settled(self, deployment: Deployment) -> Deployment:
        """Issue what can be issued now; the watch does the rest."""
        try:
            return await self._settle(deployment)
        except MevError as error:
            LOG.warning("deployment %s waits: %s", deployment.id, error, extra={"action": "deployment_waits"})
            return self.records.get(deployment.id)

    async def _settle(self, deployment: Deployment) -> Deployment:
        """Issue the commands of the latest step that were not issued yet, and let the aliases follow.

        :raises MevError: when a command cannot be issued now, but later.
        """
        last = len(deployment.steps) - 1
        for number, order in enumerate(deployment.step.orders):
            if order.command_id or (due := self._due(deployment, number)) is None:
                continue
            if due != order:
                deployment = await self.records.save(deployment.with_order(number, due))
            try:
                issued = await self._control.issue(deployment.command(last, number))
            except MevError as error:
                if error.status == _UNAVAILABLE:
                    raise
                return await self._fail(deployment, error)
            deployment = await self.records.save(deployment.with_order(number, replace(due, command_id=issued.command.id)))
        if not deployment.refused:  # else they have followed, and what is ordered now is for some agents only
            await asyncio.to_thread(follow, self._registry, deployment)
        return await self.records.save(deployment.with_step(replace(deployment.step, settled=True)))

    def _due(self, deployment: Deployment, number: int) -> Order | None:
        """Return what is left to be ordered; forward, whatever was not overtaken as a whole."""
        order = deployment.step.orders[number]
        due = plan.still_due(deployment, order, self.book.ledger) if deployment.step.stage is Stage.ROLLBACK else order
        if due != order:
            LOG.warning("deployment %s does not take back what was swapped meanwhile", deployment.id, extra={"action": "deployment_late"})
        return due

    async def _fail(self, deployment: Deployment, error: MevError) -> Deployment:
        """Give up what can never be issued, and take back what was."""
        LOG.error("deployment %s fails: %s", deployment.id, error, extra={"action": "deployment_failed"})
        why = f"{error.code}: {error.detail}"
        if deployment.step.stage is Stage.ROLLBACK:
            failed = replace(deployment, state=State.FAILED, since_ns=self._clock(), because=why, returning=False)
            return await self._end_or_keep(failed.with_step(replace(failed.step, settled=True)))
        orders = plan.backward(deployment, self.book.ledger)
        step = Step(stage=Stage.ROLLBACK, at_ns=self._clock(), by=SYSTEM, reason=why, orders=orders)
        return await self._settle(await self._end(deployment, State.FAILED, step, why))

    async def _end_or_keep(self, deployment: Deployment) -> Deployment:
        if not deployment.state.active:
            self._unanswered = {key: since for key, since in self._unanswered.items() if key[0] != deployment.id}
        return await self.records.save(deployment)

    def _unanswered_s(self, deployment: Deployment, step: int, found: list[Standing]) -> float:
        """Return how long a living agent has left its order unanswered; for one that is away no time passes."""
        now_ns, longest_ns = self._clock(), 0
        for one in found:
            key = (deployment.id, step, one.agent_id)
            if one.due:
                longest_ns = max(longest_ns, now_ns - self._unanswered.setdefault(key, now_ns))
            else:
                self._unanswered.pop(key, None)
        return longest_ns / _NS


@asynccontextmanager
async def running(deployments: Deployments, *, interval_s: float) -> AsyncIterator[Deployments]:
    """Read what is there, go on with it, and watch until the end."""
    await deployments.records.read()
    task = asyncio.create_task(deployments.run(interval_s), name="deployments")
    try:
        yield deployments
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _details(deployment: Deployment, stage: Stage, reason: str) -> dict[str, object]:
    return {"deployment": deployment.id, "module": deployment.module, "stage": stage.value, "reason": reason}
