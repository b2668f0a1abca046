"""Requests to deploy, advance and roll back. Confined to one event loop.

Every change is on disk before its commands are issued, and their keys are derived from the stored
deployment: after a crash in between they are issued exactly once. A module has one active
deployment; requests are serialised.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from mev.auth.audit import DONE, AuditCallback, no_audit, note
from mev.auth.model import Permission
from mev.control.proposals import Pending
from mev.control.service import Control
from mev.core.clock import now_ns
from mev.core.errors import ConflictError, MevError
from mev.core.ids import new_id
from mev.registry.registry import Registry, RegistryEntry
from mev.rollout import admission, plan
from mev.rollout.admission import RAISE, DeploymentRequest
from mev.rollout.errors import (
    AlreadyDeployedError,
    NoAgentsError,
    NothingToRollBackError,
    OtherFormError,
)
from mev.rollout.model import (
    FORWARD,
    Artifact,
    Deployment,
    DeploymentState,
    Rules,
    Stage,
    audit_details,
)
from mev.rollout.observer import Observer
from mev.rollout.records import Records
from mev.rollout.steps import Steps
from mev.rollout.watch import Watch
from mev.wire.pb.control_pb2 import Command, Proposal, Target

MAX_STEPS = 100


class Deployments:
    """Requests about the deployments in `records`; `silent_s` as in :class:`Observer`."""

    def __init__(
        self,
        records: Records,
        control: Control,
        registry: Registry,
        *,
        silent_s: float,
        audit: AuditCallback = no_audit,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.records = records
        self.control_state = control.state
        self._control = control
        self._registry = registry
        self._audit = audit
        self._clock = clock
        self._busy = asyncio.Lock()
        self.observer = Observer(control.state, silent_s=silent_s, clock=clock)
        self._steps = Steps(records, control, registry, self.observer, clock)
        self.watch = Watch(
            records,
            control.state,
            self.observer,
            self._steps,
            self._busy,
            audit=audit,
            clock=clock,
        )
        control.approvals.begin_deployment = self._begin_approved

    async def deploy(self, request: DeploymentRequest) -> Deployment | Pending:
        """Begin, advance or roll back a deployment; return it once its commands are queued.

        A request that may raise risk becomes a proposal where approvals are required.

        :raises MevError: when it is refused; then nothing began. A deployment that it would have
            superseded may have ended by then; its trial is withdrawn as soon as possible, and the
            failure is audited.
        """
        if request.stage is Stage.PRODUCTION or request.promote:
            admission.check_may(request, "production", RAISE)
        async with self._busy:
            if (
                known := self.records.repeated(request.by, request.key, request.sha256)
            ) is not None:
                return known
            module = admission.module_of(request.module, self.control_state.fleet)
            await self._steps.settle_all(module)
            if request.stage is Stage.ROLLBACK:
                return await self._roll_back_by_person(request, module)
            entry = await asyncio.to_thread(self._registry.get, request.model)
            file = admission.file_of(entry, request.form)
            admission.check_agents(module, self.control_state.fleet)
            active = self.records.active(module)
            if why := self._unapproved(
                request, admission.raises(request, active, entry.manifest.model_id)
            ):
                return await self._propose(request, module, why)
            if active is not None and active.artifact.model_id == entry.manifest.model_id:
                return await self._move(active, request, file)
            return await self._begin(request, entry, module, file, active)

    def _unapproved(self, request: DeploymentRequest, why: list[str]) -> list[str]:
        return why if self._control.approvals.needed and not request.approvers else []

    async def _propose(self, request: DeploymentRequest, module: str, why: list[str]) -> Pending:
        draft = Command(target=Target(modules=[module]), idempotency_key=request.key)
        draft.issuer.principal, draft.request_sha256 = request.by, bytes.fromhex(request.sha256)
        return await self._control.approvals.propose(
            Proposal(draft=draft, raises=why, deployment_json=request.to_json())
        )

    async def _begin_approved(self, request_json: str, approvers: tuple[str, ...]) -> str:
        begun = await self.deploy(DeploymentRequest.from_json(request_json, approvers))
        assert isinstance(begun, Deployment)  # noqa: S101 - what is approved is not proposed
        return begun.id

    async def _begin(
        self,
        request: DeploymentRequest,
        entry: RegistryEntry,
        module: str,
        file: Artifact,
        active: Deployment | None,
    ) -> Deployment:
        previous = plan.in_production(self.control_state.command_store, module)
        if (
            previous is not None
            and previous.model_id == file.model_id
            and previous.sha256 in {"", file.sha256}
        ):
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
            state=DeploymentState.ROLLING_OUT,
            created_ns=now,
            since_ns=now,
            rules=request.rules_after(Rules()),
            promote=request.promote,
        )
        deployment = replace(deployment, agent_ids=self._canaries(deployment, request))
        if active is not None and active.stage is Stage.PRODUCTION:
            admission.check_may(
                request,
                f"ending the watch over deployment {active.id}, which is in production,",
                RAISE,
            )
        await self._note_first(
            request.actor, "training.deploy", deployment, request.stage, request.reason
        )
        if active is not None:
            why = f"deployment {deployment.id} of model {file.model_id} took its place"
            await self._give_way(active, why, request, "training.deploy", deployment)
            deployment = replace(
                deployment, previous=plan.in_production(self.control_state.command_store, module)
            )
        step = request.step(self._clock(), skipped=FORWARD[: FORWARD.index(request.stage)])
        return await self._steps.advance(deployment, step, request.share)

    async def _move(
        self, active: Deployment, request: DeploymentRequest, file: Artifact
    ) -> Deployment:
        if request.form and file != active.artifact:
            raise OtherFormError(
                f"deployment {active.id} is of the form {active.form}; take it back first",
                field="form",
            )
        rules = request.rules_after(active.rules)
        agent_ids = self._canaries(replace(active, rules=rules), request)
        skipped = admission.skipped_between(active, request.stage, agent_ids)
        if len(active.steps) >= MAX_STEPS:
            raise ConflictError(
                f"deployment {active.id} has {MAX_STEPS} steps; roll it back and start a new one",
                code="too_many_steps",
            )
        await asyncio.to_thread(
            admission.check_can_return, self._registry, active.previous, active.module
        )
        await self._note_first(
            request.actor, "training.promote", active, request.stage, request.reason
        )
        moved = replace(
            active,
            stage=request.stage,
            agent_ids=agent_ids,
            rules=rules,
            promote=request.promote,
        )
        early = active.state is not DeploymentState.READY
        return await self._steps.advance(
            moved, request.step(self._clock(), skipped=skipped, early=early), request.share
        )

    async def _roll_back_by_person(
        self, request: DeploymentRequest, module: str
    ) -> Deployment | Pending:
        model_id = request.model
        # a known model can be rolled back even if its manifest is now refused
        if not self.records.knows(model_id):
            model_id = (await asyncio.to_thread(self._registry.get, model_id)).manifest.model_id
        active, meant = self.records.active(module), self._arrived(model_id, module)
        if active is not None and active.artifact.model_id == model_id:
            meant = active
        if meant is None:
            raise NothingToRollBackError(
                f"no deployment of model {model_id} in {module!r} is under way or in production"
            )
        if meant.stage is Stage.PRODUCTION:
            admission.check_may(
                request, "taking back what is in production", Permission.CONTROL_LOWER, RAISE
            )
        if (
            meant.stage is not Stage.SHADOW
            and meant.previous
            and not plan.was_acknowledged(self.control_state, module, meant.previous)
        ):
            why = [
                (
                    f"no agent of {module!r} has acknowledged model {meant.previous.model_id},"
                    " which would decide again"
                )
            ]
            if self._unapproved(request, why):
                return await self._propose(request, module, why)
        await self._note_first(
            request.actor, "training.rollback", meant, request.stage, request.reason
        )
        if active is not None and active is not meant:
            await self._give_way(
                active,
                f"deployment {meant.id}, which it followed, is rolled back",
                request,
                "training.rollback",
                meant,
            )
        return await self._steps.roll_back(
            meant, request.step(self._clock()), request.reason or "asked for"
        )

    def _arrived(self, model_id: str, module: str) -> Deployment | None:
        """Return the deployment that brought the module's current production model."""
        decides = plan.in_production(self.control_state.command_store, module)
        return (
            self.records.arrived(module, model_id)
            if decides is not None and decides.model_id == model_id
            else None
        )

    def _canaries(self, deployment: Deployment, request: DeploymentRequest) -> tuple[str, ...]:
        """Return the existing and the added canaries of a deployment."""
        if request.stage is not Stage.CANARY:
            return ()
        module, choice = deployment.module, self.observer.eligible(deployment)
        joining = admission.named(
            request.agent_ids, self.observer.live(module), module
        ) or plan.canaries(deployment, choice, request.share)
        if not joining:
            raise NoAgentsError(
                f"no agent of module {module!r} is alive and enrolled for long enough; a canary"
                " needs one",
                field="module",
            )
        together = tuple(dict.fromkeys([*deployment.agent_ids, *joining]))
        admission.check_canaries(request, together, choice)
        return together

    async def _note_first(
        self, actor: str, action: str, deployment: Deployment, stage: Stage, reason: str
    ) -> None:
        """Audit an action before it is done; a failure prevents it."""
        await self._audit(
            actor,
            action,
            deployment.artifact.model_id,
            DONE,
            audit_details(deployment, stage, reason),
        )

    async def _give_way(
        self,
        active: Deployment,
        why: str,
        request: DeploymentRequest,
        action: str,
        following: Deployment,
    ) -> None:
        """End the active deployment; audit the failure of the following one if that fails."""
        try:
            await self._steps.supersede(active, why, request.by)
        except MevError as error:
            about, model_id = (
                audit_details(following, request.stage, error.detail),
                following.artifact.model_id,
            )
            await note(self._audit, request.actor, action, model_id, error.code, **about)
            raise
