"""Every deployment that is kept: in memory, and on the disk before that."""

import asyncio
from pathlib import Path

from mev.control.errors import IdempotencyConflictError
from mev.deploy.errors import UnknownDeploymentError
from mev.deploy.folder import Folder
from mev.deploy.model import Deployment, Stage, State
from mev.jobs.errors import InvalidCursorError

KEPT = 1000


class Records:
    """The deployments of `path`, of which the newest that have ended are kept."""

    def __init__(self, path: Path) -> None:
        self._folder = Folder(path)
        self._known: dict[str, Deployment] = {}

    async def read(self) -> None:
        """Read what is there."""
        self._known = {one.id: one for one in await asyncio.to_thread(lambda: list(self._folder.read_all()))}

    def get(self, deployment_id: str) -> Deployment:
        """Return a deployment.

        :raises UnknownDeploymentError: when there is none.
        """
        try:
            return self._known[deployment_id]
        except KeyError:
            raise UnknownDeploymentError(f"no deployment {deployment_id[:100]!r}; the newest {KEPT} are kept") from None

    def knows(self, model_id: str) -> bool:
        """Say whether a model was ever deployed."""
        return any(one.artifact.model_id == model_id for one in self._known.values())

    def newest(self) -> list[Deployment]:
        """Return all, newest first."""
        return sorted(self._known.values(), key=lambda one: one.id, reverse=True)

    def unfinished(self, module: str | None = None) -> list[Deployment]:
        """Return those that somebody has to look after, oldest first."""
        found = [one for one in self._known.values() if not one.finished and module in {None, one.module}]
        return sorted(found, key=lambda one: one.id)

    def page(
        self, *, module: str | None = None, state: State | None = None, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Deployment], str | None]:
        """Return up to `limit` of those deployments after `cursor`, newest first, and where the next page starts."""
        if cursor is not None and cursor not in self._known:
            raise InvalidCursorError("cursor: not one of this list; start again without it", parameter="cursor")
        wanted = [one for one in self.newest() if module in {None, one.module} and state in {None, one.state}]
        found = [one for one in wanted if cursor is None or one.id < cursor]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def active(self, module: str) -> Deployment | None:
        """Return the one deployment of a module that is under way."""
        return next((one for one in self.newest() if one.module == module and one.state.active), None)

    def emptied(self, module: str) -> list[Deployment]:
        """Return those that had to leave agents of a module without a model, for a while longer than they were under way."""
        return [one for one in self._known.values() if one.module == module and one.refused]

    def arrived(self, module: str, model_id: str) -> Deployment | None:
        """Return the deployment that brought a model into production last."""
        ends = {State.DONE, State.SUPERSEDED}
        ours = (one for one in self.newest() if (one.module, one.artifact.model_id, one.stage) == (module, model_id, Stage.PRODUCTION))
        return next((one for one in ours if one.state in ends), None)

    def repeated(self, by: str, key: str, sha256: str) -> Deployment | None:
        """Return the deployment that somebody asked for under an idempotency key.

        :raises IdempotencyConflictError: when they asked for something else.
        """
        asked = ((one, step) for one in self.newest() for step in one.steps if key and (step.by, step.request_key) == (by, key))
        for deployment, step in asked:
            if step.request_sha256 != sha256:
                raise IdempotencyConflictError(
                    f"Idempotency-Key {key!r} belongs to deployment {deployment.id}, which asked for something else"
                )
            return deployment
        return None

    async def save(self, deployment: Deployment) -> Deployment:
        """Keep a deployment as it is now, and return it."""
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
