"""Whether what is asked for can be done, and by whom: which module, which file, which agents."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from mev.auth.errors import ForbiddenError
from mev.auth.model import Permission
from mev.control.fleet import CONTROL_PLANE, Agent, Fleet
from mev.deploy import plan
from mev.deploy.errors import (
    AmbiguousModuleError,
    ArchivedModelError,
    FormMissingError,
    NoAgentsError,
    PreviousRefusedError,
    StageBackwardsError,
)
from mev.deploy.model import FORWARD, Artifact, Deployment, Rules, Stage, Step
from mev.models.errors import UnknownModelError
from mev.models.registry import Entry, Registry
from mev.predict.errors import ModelError

DEFAULT_SHARE = 0.1
RAISE = Permission.CONTROL_RAISE


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks for. `by` is the person, `actor` who the audit trail names; `rules` those that differ from what they were.

    `permissions` are those that somebody has beside the one to deploy. `key` and `sha256` mark the request: the same one again changes
    nothing.
    """

    model: str
    stage: Stage
    by: str
    actor: str
    permissions: frozenset[Permission] = frozenset()
    module: str | None = None
    share: float = DEFAULT_SHARE
    agent_ids: tuple[str, ...] = ()
    """Canaries by name, in the place of a share."""
    form: str | None = None
    rules: Mapping[str, float | None] | None = None
    promote: bool = False
    reason: str = ""
    key: str = ""
    sha256: str = ""

    def rules_after(self, rules: Rules) -> Rules:
        """Return `rules` with what is asked for."""
        return replace(rules, **(self.rules or {}))  # type: ignore[arg-type]  # names and types are checked at the edge

    def step(self, at_ns: int, *, skipped: Iterable[Stage] = (), early: bool = False) -> Step:
        """Return the step that follows, without its orders."""
        return Step(
            stage=self.stage,
            at_ns=at_ns,
            by=self.by,
            reason=self.reason,
            skipped=tuple(skipped),
            early=early,
            request_key=self.key,
            request_sha256=self.sha256,
        )


def check_may(request: Request, what: str, *any_of: Permission) -> None:
    """Refuse `what` to somebody who has none of these permissions.

    :raises ForbiddenError: when it is not for them.
    """
    if not request.permissions.intersection(any_of):
        raise ForbiddenError(f"{what} needs the permission {' or '.join(any_of)}", permission=any_of[0].value)


def check_canaries(request: Request, agent_ids: Collection[str], choice: Collection[str]) -> None:
    """Refuse canaries that are more than half of those there are to choose from to who may not bring a model into production.

    :raises ForbiddenError: when it is not for them.
    """
    if 2 * len(agent_ids) > len(choice):
        check_may(request, f"a canary at {len(agent_ids)} of {len(choice)} agents, more than half, is production and", RAISE)


def eligible(living: Iterable[Agent], deployment: Deployment, now_ns: int) -> tuple[str, ...]:
    """Return the agents that may be chosen as canaries: those enrolled before the deployment began, and for long enough."""
    newest_ns = min(deployment.created_ns, now_ns - round(deployment.rules.canary_min_age_s * 1e9))
    return tuple(agent.id for agent in living if agent.enrolment.enrolled_at_ns <= newest_ns)


def named(agent_ids: Iterable[str], living: Iterable[Agent], module: str) -> tuple[str, ...]:
    """Return the canaries that were named.

    :raises NoAgentsError: when one is not there.
    """
    there = {agent.id for agent in living}
    if absent := [name for name in agent_ids if name not in there]:
        raise NoAgentsError(f"agent_ids: no agent of module {module!r} that is alive is called {', '.join(absent[:10])}", field="agent_ids")
    return tuple(dict.fromkeys(agent_ids))


def module_of(named: str | None, fleet: Fleet) -> str:
    """Return the module that is meant: the one that was named, or the only one there is.

    :raises AmbiguousModuleError, NoAgentsError: when there is no telling, or nobody.
    """
    modules = _modules(fleet)
    if named is None and len(modules) > 1:
        raise AmbiguousModuleError(f"module: name one of {', '.join(modules)}", field="module", modules=modules)
    if named is None and not modules:
        raise NoAgentsError("the fleet has no agents; start one first")
    return named or modules[0]


def check_agents(module: str, fleet: Fleet) -> None:
    """Refuse a module that nobody belongs to."""
    if module not in _modules(fleet):
        raise NoAgentsError(f"module {module!r} has no agents; there are {', '.join(_modules(fleet)) or 'none yet'}", field="module")


def file_of(entry: Entry, form: str | None) -> Artifact:
    """Return the file of a model that is not archived: in that form, or data only where there is such a one.

    :raises ArchivedModelError, FormMissingError: when there is none to be deployed.
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
    """Refuse to take the place of a model that agents would not load again. One of another registry is not known here. Blocks.

    :raises PreviousRefusedError: when its manifest is refused.
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
            f"model {name}, which is given back to {module!r} on a rollback, is refused ({error.code}: {error.detail}); "
            f"sign it again: mev models sign {name}",
            model_id=name,
        ) from None


def skipped_between(active: Deployment, to: Stage, agent_ids: Iterable[str]) -> tuple[Stage, ...]:
    """Return the stages that are passed over. A shadow may be set again, and a canary made wider.

    :raises StageBackwardsError: when the deployment is there already, or further.
    """
    at, wanted = FORWARD.index(active.stage), FORWARD.index(to)
    is_wider = to is Stage.CANARY and not set(agent_ids) <= set(active.agent_ids)
    if wanted < at or (wanted == at and not (is_wider or to is Stage.SHADOW)):
        raise StageBackwardsError(f"deployment {active.id} is in {active.stage} already; a rollback takes it back", field="stage")
    return FORWARD[at + 1 : wanted]


def _modules(fleet: Fleet) -> list[str]:
    return sorted({agent.module for agent in fleet.agents.values()} - {CONTROL_PLANE})
