"""Exports and their jobs, built from the settings."""

from mev.datasets.export import ExportLimits
from mev.datasets.service import ExportQuota, Exports, export_kind
from mev.datasets.shared import Pinned, SharedExports
from mev.jobs.model import JobKind
from mev.jobs.runner import Runner
from mev.settings import Settings
from mev.store.clickhouse import ClickHouse
from mev.store.objects import ObjectStore


def shared_exports(
    settings: Settings, objects: ObjectStore | None, pinned: Pinned
) -> SharedExports | None:
    """Return the exports in `objects`, None without an object store."""
    if objects is None:
        return None
    return SharedExports(objects, pinned, expires_s=settings.export_expires_s)


def export_jobs(
    settings: Settings, clickhouse: ClickHouse, shared: SharedExports | None
) -> JobKind:
    """Return the job kind of exports from `clickhouse`."""
    limits = ExportLimits(
        memory_bytes=settings.export_memory_bytes,
        size_bytes=settings.export_bytes_per_principal,
        reserve_bytes=settings.export_reserve_bytes,
        retry_s=settings.export_retry_s,
    )
    return export_kind(
        clickhouse,
        limits,
        expires_s=settings.export_expires_s,
        folder=settings.export_dir,
        shared=shared,
    )


def exports(
    settings: Settings, runner: Runner, clickhouse: ClickHouse, shared: SharedExports | None
) -> Exports:
    """Return the exports from `clickhouse`, which are jobs of `runner`."""
    quota = ExportQuota(
        jobs=settings.export_jobs_per_principal,
        size_bytes=settings.export_bytes_per_principal,
        part_rows_min=settings.export_part_rows_min,
        reserve_bytes=settings.export_reserve_bytes,
    )
    return Exports(runner, clickhouse, quota, shared)
