"""Start of the jobs of a data folder, and the confinement of their processes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from mev.core.confine import NOT_CONFINED, Confinement
from mev.core.tasks import background
from mev.jobs.announce import Announce, no_announcement
from mev.jobs.model import JobKind
from mev.jobs.runner import Pinned, Runner, nothing_pinned
from mev.settings import Settings

LOG = logging.getLogger(__name__)


@asynccontextmanager
async def running_jobs(
    path: Path,
    kinds: Iterable[JobKind],
    *,
    announce: Announce = no_announcement,
    pinned: Pinned = nothing_pinned,
    confinement: Confinement = NOT_CONFINED,
) -> AsyncIterator[Runner]:
    """Run the jobs in `path` until the context ends."""
    runner = Runner(path, kinds, announce=announce, pinned=pinned, confinement=confinement)
    await runner.start()
    try:
        async with background(runner.expire(), runner.watch()):
            yield runner
    finally:
        await runner.close()


async def find_confinement(settings: Settings) -> Confinement:
    """Return the confinement of trainings on this system, and log it."""
    found = await asyncio.to_thread(settings.confinement)
    log = LOG.info if found.holds else LOG.warning
    log(
        "trainings are confined by %s%s",
        found,
        "".join(f"; {why}" for why in found.missing),
        extra={"action": "confinement"},
    )
    return found
