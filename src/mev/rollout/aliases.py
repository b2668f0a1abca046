"""Registry aliases of deployed models: `shadow`, `challenger` (canary), `champion` (production)."""

import logging

from mev.core.errors import MevError, UnavailableError
from mev.registry.registry import Registry
from mev.rollout.model import Deployment, DeploymentState, Stage

LOG = logging.getLogger(__name__)
SHADOW, CHALLENGER, CHAMPION = "shadow", "challenger", "champion"
_OF = {Stage.SHADOW: SHADOW, Stage.CANARY: CHALLENGER, Stage.PRODUCTION: CHAMPION}


def follow(registry: Registry, deployment: Deployment) -> bool:
    """Move the aliases to match the latest step of `deployment`. Blocks; idempotent.

    A failure is logged and not raised, so that it cannot prevent a rollback. Return False if it is
    to be tried again, because the object store does not answer.
    """
    model_id, step = deployment.artifact.model_id, deployment.step
    try:
        if step.stage is Stage.ROLLBACK:
            _leave(registry, model_id, SHADOW, CHALLENGER)
            if (
                deployment.state is not DeploymentState.SUPERSEDED
                and deployment.stage is Stage.PRODUCTION
            ):
                _return(registry, deployment)
            return True
        registry.point(_OF[step.stage], model_id)
        if step.stage is Stage.PRODUCTION:
            _leave(registry, model_id, SHADOW, CHALLENGER)
    except (MevError, OSError) as error:
        LOG.error(
            "aliases do not follow deployment %s: %s",
            deployment.id,
            error,
            extra={"action": "deployment_alias"},
        )
        return not isinstance(error, UnavailableError)
    return True


def _return(registry: Registry, deployment: Deployment) -> None:
    """Move `champion` back to the previous model, where the registry has it."""
    if CHAMPION not in registry.get(deployment.artifact.model_id).aliases:
        return
    try:
        registry.point(CHAMPION, deployment.previous.model_id if deployment.previous else None)
    except UnavailableError:
        raise
    except MevError as error:
        LOG.warning("no model is %s now: %s", CHAMPION, error, extra={"action": "deployment_alias"})
        registry.point(CHAMPION, None)


def _leave(registry: Registry, model_id: str, *aliases: str) -> None:
    """Delete those of `aliases` that point to the model; others stay."""
    for alias in set(aliases) & set(registry.get(model_id).aliases):
        registry.point(alias, None)
