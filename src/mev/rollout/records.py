"""Deployment records: in memory, and on disk first."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from mev.control.errors import IdempotencyConflictError
from mev.core.errors import NotFoundError
from mev.core.paging import InvalidCursorError, page_of
from mev.rollout.folder import Folder
from mev.rollout.model import Deployment, DeploymentState, Stage

KEPT = 1000


class Records:
    """Deployments stored in `path`; of the ended ones, the newest are retained."""

    def __init__(self, path: Path) -> None:
        self._folder = Folder(path)
        self._known: dict[str, Deployment] = {}

    async def read(self) -> None:
        """Load all deployments."""
        self._known = {
            one.id: one for one in await asyncio.to_thread(lambda: list(self._folder.read_all()))
        }

    def get(self, deployment_id: str) -> Deployment:
        """Return a deployment.

        :raises NotFoundError: when there is none.
        """
        try:
            return self._known[deployment_id]
        except KeyError:
            raise NotFoundError(
                f"no deployment {deployment_id[:100]!r}; the newest {KEPT} are kept",
                code="unknown_deployment",
            ) from None

    def knows(self, model_id: str) -> bool:
        """Return whether a model was ever deployed."""
        return any(one.artifact.model_id == model_id for one in self._known.values())

    def newest(self) -> list[Deployment]:
        """Return all deployments, newest first."""
        return sorted(self._known.values(), key=lambda one: one.id, reverse=True)

    def unfinished(self, module: str | None = None) -> list[Deployment]:
        """Return the deployments that need further work, oldest first."""
        found = [
            one for one in self._known.values() if not one.finished and module in {None, one.module}
        ]
        return sorted(found, key=lambda one: one.id)

    def page(
        self,
        *,
        module: str | None = None,
        state: DeploymentState | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[Sequence[Deployment], str | None]:
        """Return a page of matching deployments, newest first, and the next cursor."""
        if cursor is not None and cursor not in self._known:
            raise InvalidCursorError
        wanted = [
            one
            for one in self.newest()
            if module in {None, one.module} and state in {None, one.state}
        ]
        found = [one for one in wanted if cursor is None or one.id < cursor]
        return page_of(found, limit, lambda one: one.id)

    def active(self, module: str) -> Deployment | None:
        """Return the active deployment of a module, or None."""
        return next(
            (one for one in self.newest() if one.module == module and one.state.active), None
        )

    def emptied(self, module: str) -> list[Deployment]:
        """Return the deployments that left agents of a module without a model."""
        return [one for one in self._known.values() if one.module == module and one.refused]

    def arrived(self, module: str, model_id: str) -> Deployment | None:
        """Return the deployment that last brought a model into production."""
        ends = {DeploymentState.DONE, DeploymentState.SUPERSEDED}
        ours = (
            one
            for one in self.newest()
            if (one.module, one.artifact.model_id, one.stage)
            == (module, model_id, Stage.PRODUCTION)
        )
        return next((one for one in ours if one.state in ends), None)

    def repeated(self, by: str, key: str, sha256: str) -> Deployment | None:
        """Return the deployment requested by a user under an idempotency key.

        :raises IdempotencyConflictError: when the key was used with another request.
        """
        asked = (
            (one, step)
            for one in self.newest()
            for step in one.steps
            if key and (step.by, step.request_key) == (by, key)
        )
        for deployment, step in asked:
            if step.request_sha256 != sha256:
                raise IdempotencyConflictError(
                    f"Idempotency-Key {key!r} belongs to deployment {deployment.id}, which asked"
                    " for something else"
                )
            return deployment
        return None

    async def save(self, deployment: Deployment) -> Deployment:
        """Store a deployment and return it."""
        if deployment.id not in self._known:
            await self._forget_oldest()
        await asyncio.to_thread(self._folder.write, deployment)
        self._known[deployment.id] = deployment
        return deployment

    async def _forget_oldest(self) -> None:
        ended = [one for one in self.newest() if one.finished]
        for one in ended[KEPT - 1 :]:
            await asyncio.to_thread(self._folder.remove, one.id)
            del self._known[one.id]
