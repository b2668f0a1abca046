"""Admission checks of a deployment request: module, file, agents and permissions."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from mev.auth.errors import ForbiddenError
from mev.auth.model import Permission
from mev.control.fleet import CONTROL_PLANE, EnrolledAgent, Fleet
from mev.registry.errors import UnknownModelError
from mev.registry.registry import Registry, RegistryEntry
from mev.rollout import plan
from mev.rollout.errors import (
    AmbiguousModuleError,
    ArchivedModelError,
    FormMissingError,
    NoAgentsError,
    PreviousRefusedError,
    StageBackwardsError,
)
from mev.rollout.model import FORWARD, Artifact, Deployment, DeploymentStep, Rules, Stage
from mev.scoring.errors import ModelError

DEFAULT_SHARE = 0.1
RAISE = Permission.CONTROL_RAISE


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRequest:
    """A request to deploy a model.

    `by` is the user, `actor` the name in the audit trail; `rules` holds changed rules only.
    `permissions` are the user's further permissions beside the one to deploy. `key` and `sha256`
    make the request idempotent.
    """

    model: str
    stage: Stage
    by: str
    actor: str
    permissions: frozenset[Permission] = frozenset()
    module: str | None = None
    share: float = DEFAULT_SHARE
    agent_ids: tuple[str, ...] = ()
    """Canaries by name, instead of a share."""
    form: str | None = None
    rules: Mapping[str, float | None] | None = None
    promote: bool = False
    reason: str = ""
    key: str = ""
    sha256: str = ""
    approvers: tuple[str, ...] = ()
    """Users who approved the request, where approvals are required."""

    def to_json(self) -> str:
        """Return the request as JSON, as a proposal stores it."""
        return json.dumps(asdict(self) | {"permissions": sorted(self.permissions)})

    @classmethod
    def from_json(cls, text: str, approvers: tuple[str, ...]) -> "DeploymentRequest":
        """Return a stored request, approved by `approvers`."""
        known = json.loads(text)
        known |= {
            "stage": Stage(known["stage"]),
            "permissions": frozenset(map(Permission, known["permissions"])),
        }
        return cls(**known | {"agent_ids": tuple(known["agent_ids"]), "approvers": approvers})

    def rules_after(self, rules: Rules) -> Rules:
        """Return `rules` with the changes of this request."""
        return replace(rules, **(self.rules or {}))  # type: ignore[arg-type]  # the API checks

    def step(
        self, at_ns: int, *, skipped: Iterable[Stage] = (), early: bool = False
    ) -> DeploymentStep:
        """Return the next step, without its orders."""
        return DeploymentStep(
            stage=self.stage,
            at_ns=at_ns,
            by=self.by,
            reason=self.reason,
            skipped=tuple(skipped),
            early=early,
            request_key=self.key,
            request_sha256=self.sha256,
            approvers=self.approvers,
        )


def check_may(request: DeploymentRequest, what: str, *any_of: Permission) -> None:
    """Check that the user has one of these permissions for `what`.

    :raises ForbiddenError: when the user has none.
    """
    if not request.permissions.intersection(any_of):
        raise ForbiddenError(
            f"{what} needs the permission {' or '.join(any_of)}", permission=any_of[0].value
        )


def raises(request: DeploymentRequest, active: Deployment | None, model_id: str) -> list[str]:
    """Return the reasons why a stage may raise risk, so that `APPROVALS_REQUIRED` applies.

    A shadow raises none, because it decides nothing.
    """
    found = []
    if request.stage is not Stage.SHADOW:
        found.append(f"model {model_id} decides in stage {request.stage}")
    if request.promote:
        found.append(f"model {model_id} advances to production automatically")
    if (
        active is not None
        and active.stage is Stage.PRODUCTION
        and active.artifact.model_id != model_id
    ):
        found.append(f"deployment {active.id}, which is in production, is not watched any more")
    return found


def check_canaries(
    request: DeploymentRequest, agent_ids: Collection[str], choice: Collection[str]
) -> None:
    """Check that the user may choose canaries that are more than half of the candidates.

    :raises ForbiddenError: when they are, and the user may not deploy to production.
    """
    if 2 * len(agent_ids) > len(choice):
        check_may(
            request,
            f"a canary at {len(agent_ids)} of {len(choice)} agents, more than half, is"
            " production and",
            RAISE,
        )


def eligible(live: Iterable[EnrolledAgent], deployment: Deployment, now_ns: int) -> tuple[str, ...]:
    """Return the agents eligible as canaries.

    They were enrolled before the deployment began, and for at least the minimum age.
    """
    newest_ns = min(deployment.created_ns, now_ns - round(deployment.rules.canary_min_age_s * 1e9))
    return tuple(agent.id for agent in live if agent.enrolment.enrolled_at_ns <= newest_ns)


def named(agent_ids: Iterable[str], live: Iterable[EnrolledAgent], module: str) -> tuple[str, ...]:
    """Return the canaries given by name.

    :raises NoAgentsError: when one of them is not alive.
    """
    there = {agent.id for agent in live}
    if absent := [name for name in agent_ids if name not in there]:
        raise NoAgentsError(
            f"agent_ids: no agent of module {module!r} that is alive is called"
            f" {', '.join(absent[:10])}",
            field="agent_ids",
        )
    return tuple(dict.fromkeys(agent_ids))


def module_of(named: str | None, fleet: Fleet) -> str:
    """Return the named module, or the only one in the fleet.

    :raises AmbiguousModuleError, NoAgentsError: when there are several modules, or none.
    """
    modules = _modules(fleet)
    if named is None and len(modules) > 1:
        raise AmbiguousModuleError(
            f"module: name one of {', '.join(modules)}", field="module", modules=modules
        )
    if named is None and not modules:
        raise NoAgentsError("the fleet has no agents; start one first")
    return named or modules[0]


def check_agents(module: str, fleet: Fleet) -> None:
    """Check that the module has agents.

    :raises NoAgentsError: when it has none.
    """
    if module not in _modules(fleet):
        raise NoAgentsError(
            f"module {module!r} has no agents; there are"
            f" {', '.join(_modules(fleet)) or 'none yet'}",
            field="module",
        )


def file_of(entry: RegistryEntry, form: str | None) -> Artifact:
    """Return the file of a model in `form`, by default the data-only form where there is one.

    :raises ArchivedModelError, FormMissingError: when the model is archived or lacks the form.
    """
    manifest = entry.manifest
    if entry.archived_at is not None:
        raise ArchivedModelError(f"model {manifest.model_id} is archived; restore it first")
    form = form or ("mevt" if manifest.mevt_sha256 else "so")
    file = plan.artifact(manifest, form)
    if file is None:
        raise FormMissingError(f"form: model {manifest.model_id} has no {form} file", field="form")
    return file


def check_can_return(registry: Registry, previous: Artifact | None, module: str) -> None:
    """Check that the previous model can be restored on a rollback. Blocks.

    A model of another registry is not checked.

    :raises PreviousRefusedError: when the manifest of the previous model is refused.
    """
    if previous is None:
        return
    try:
        registry.get(previous.model_id)
    except UnknownModelError:
        return
    except ModelError as error:
        name = previous.model_id
        raise PreviousRefusedError(
            f"model {name}, which is given back to {module!r} on a rollback, is refused"
            f" ({error.code}: {error.detail}); sign it again: mev models sign {name}",
            model_id=name,
        ) from None


def skipped_between(active: Deployment, to: Stage, agent_ids: Iterable[str]) -> tuple[Stage, ...]:
    """Return the stages that are skipped.

    A shadow may be repeated, and the set of canaries may grow.

    :raises StageBackwardsError: when the deployment is at that stage already, or further.
    """
    at, wanted = FORWARD.index(active.stage), FORWARD.index(to)
    is_wider = to is Stage.CANARY and not set(agent_ids) <= set(active.agent_ids)
    if wanted < at or (wanted == at and not (is_wider or to is Stage.SHADOW)):
        raise StageBackwardsError(
            f"deployment {active.id} is in {active.stage} already; a rollback takes it back",
            field="stage",
        )
    return FORWARD[at + 1 : wanted]


def _modules(fleet: Fleet) -> list[str]:
    return sorted({agent.module for agent in fleet.agents.values()} - {CONTROL_PLANE})
