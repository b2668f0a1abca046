"""Start of the registry; with an object store, its models are shared until the context ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mev.core.confine import Confinement
from mev.core.errors import MevError
from mev.core.tasks import background
from mev.crypto.trust import TrustStore
from mev.registry.registry import Registry
from mev.settings import Settings
from mev.store.objects import ObjectStore

LOG = logging.getLogger(__name__)
_PAUSE_S = 5.0


@asynccontextmanager
async def running_registry(
    settings: Settings,
    data: Path,
    trust: TrustStore,
    confinement: Confinement,
    objects: ObjectStore | None,
) -> AsyncIterator[Registry]:
    """Open the registry in MODEL_DIR, or in the data folder `data`.

    If `objects` does not answer, that delays nothing: its models follow once it does.
    """
    registry = Registry(settings.model_dir or data / "models", trust, confinement, objects=objects)
    if objects is None:
        yield registry
        return
    async with background(_sharing(registry, objects.place)):
        yield registry


async def _sharing(registry: Registry, place: str) -> None:
    """Share the models again and again, and log when this begins or ceases to fail."""
    failed = ""
    while True:
        try:
            await asyncio.to_thread(registry.share)
        except MevError as error:
            if error.code != failed:
                LOG.error(
                    "models are not shared: %s: %s",
                    error.code,
                    error.detail,
                    extra={"action": "models_not_shared"},
                )
            failed = error.code
        except Exception:
            LOG.exception("models are not shared", extra={"action": "models_not_shared"})
            failed = "internal"
        else:
            if failed:
                LOG.info("models are shared in %s again", place, extra={"action": "models_shared"})
            failed = ""
        await asyncio.sleep(_PAUSE_S)


def store_checks(registry: Registry) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the readiness check of the object store, none without one."""
    if not registry.is_shared:
        return {}
    return {"objects": lambda: asyncio.to_thread(registry.check_shared)}
