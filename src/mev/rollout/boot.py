"""Start of deployments: their records are read, and the active ones are watched."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mev.auth.audit import AuditCallback
from mev.control.service import Control
from mev.core.tasks import background
from mev.registry.registry import Registry
from mev.rollout.records import Records
from mev.rollout.service import Deployments
from mev.settings import Settings

_FOLDER = "deployments"
_MISSED_REPORTS = 3


@asynccontextmanager
async def running_deployments(
    settings: Settings, folder: Path, control: Control, registry: Registry, audit: AuditCallback
) -> AsyncIterator[Deployments]:
    """Load the deployments of the data folder `folder` and watch them until the context ends."""
    deployments = Deployments(
        Records(folder / _FOLDER),
        control,
        registry,
        silent_s=_MISSED_REPORTS * settings.report_interval_s,
        audit=audit,
    )
    await deployments.records.read()
    async with background(deployments.watch.run(settings.deploy_watch_s)):
        yield deployments
