"""The registry's names for what a deployment does: `shadow`, `challenger` for canaries, `champion` for production."""

import logging

from mev.core.errors import MevError
from mev.deploy.model import Deployment, Stage, State
from mev.models.registry import Registry

LOG = logging.getLogger(__name__)
SHADOW, CHALLENGER, CHAMPION = "shadow", "challenger", "champion"
_OF = {Stage.SHADOW: SHADOW, Stage.CANARY: CHALLENGER, Stage.PRODUCTION: CHAMPION}


def follow(registry: Registry, deployment: Deployment) -> None:
    """Move the aliases to where the latest step of `deployment` has put its model. Blocks; may be repeated.

    An alias that cannot be moved is said in the log: it must not keep a model from being taken back.
    """
    model_id, step = deployment.artifact.model_id, deployment.step
    try:
        if step.stage is Stage.ROLLBACK:
            _leave(registry, model_id, SHADOW, CHALLENGER)
            if deployment.state is not State.SUPERSEDED and deployment.stage is Stage.PRODUCTION:
                _return(registry, deployment)
            return
        registry.point(_OF[step.stage], model_id)
        if step.stage is Stage.PRODUCTION:
            _leave(registry, model_id, SHADOW, CHALLENGER)
    except (MevError, OSError) as error:
        LOG.error("aliases do not follow deployment %s: %s", deployment.id, error, extra={"action": "deployment_alias"})


def _return(registry: Registry, deployment: Deployment) -> None:
    """Give `champion` back to the model before, where that is a model of the registry."""
    if CHAMPION not in registry.get(deployment.artifact.model_id).aliases:
        return
    try:
        registry.point(CHAMPION, deployment.previous.model_id if deployment.previous else None)
    except MevError as error:
        LOG.warning("no model is %s now: %s", CHAMPION, error, extra={"action": "deployment_alias"})
        registry.point(CHAMPION, None)


def _leave(registry: Registry, model_id: str, *aliases: str) -> None:
    """Take `aliases` from the model; where they name another one, that belongs to somebody else."""
    for alias in set(aliases) & set(registry.get(model_id).aliases):
        registry.point(alias, None)
