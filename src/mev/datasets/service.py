"""What there is, what an export would be, and exports as jobs."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mev.auth.audit import DONE, Audit, no_audit
from mev.datasets import manifest
from mev.datasets.catalog import DATASETS, Dataset
from mev.datasets.errors import ExportNotReadyError, ExportQuotaError, InvalidExportError, UnknownFileError
from mev.datasets.export import KIND, Limits, make_export
from mev.datasets.query import Format, Query, Statements
from mev.jobs.errors import UnknownJobError
from mev.jobs.model import Job, Kind, Owner, State
from mev.jobs.runner import Runner
from mev.store.clickhouse import ClickHouse

_FIXED_BYTES = {"UInt64": 8, "Int64": 8, "Float64": 8, "UInt32": 4, "Int32": 4, "Float32": 4, "Bool": 1}
_OTHER_BYTES = 24
_TEXT = 2.5  # numbers as text, and names with every value


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one person may have, and the least rows of a file."""

    jobs: int
    size_bytes: int
    part_rows_min: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an export would be: `rows` as of now, `size_bytes` roughly."""

    rows: int
    size_bytes: int
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is stored of a dataset; repeats that are not merged yet count."""

    dataset: Dataset
    rows: int | None
    slots: tuple[int, int] | None
    time_ns: tuple[int, int] | None


def export_kind(clickhouse: ClickHouse, limits: Limits, *, expires_s: float, folder: Path | None) -> Kind:
    """Return the kind of job that exports; its files go below `folder`, or into the job's own when None."""
    work = make_export(clickhouse, limits)
    return Kind(name=KIND, run=work, concurrency=1, resumable=True, in_thread=True, expires_s=expires_s, outputs=folder)


class Exports:
    """Exports of the datasets in `clickhouse`."""

    def __init__(self, runner: Runner, clickhouse: ClickHouse, quota: Quota) -> None:
        self._runner = runner
        self._clickhouse = clickhouse
        self._quota = quota
        self._accepting = asyncio.Lock()

    def summaries(self) -> list[Summary]:
        """Return what is stored. Blocks."""
        return [self._summary(dataset) for dataset in DATASETS.values()]

    def estimate(self, query: Query) -> Estimate:
        """Return what an export would be. Blocks.

        :raises InvalidExportError: when it would not be accepted.
        """
        self._check(query)
        statements = Statements(query, self._clickhouse.database)
        count = statements.count(None, None)
        rows = int(self._clickhouse.rows(count.sql, count.values)[0][0])
        width = sum(self._widths(statements))
        if query.format in {Format.CSV, Format.NDJSON}:
            width *= _TEXT if query.compression == "none" else _TEXT / 4
        return Estimate(rows=rows, size_bytes=int(rows * width), parts=-(-rows // query.part_rows))

    async def submit(self, query: Query, *, owner: Owner, audit: Audit = no_audit) -> Job:
        """Accept an export, which is in the audit trail by then.

        :raises InvalidExportError: when its files would have too few rows.
        :raises ExportQuotaError: when the person has enough.
        """
        self._check(query)
        async with self._accepting:
            jobs = self._runner.jobs(kind=KIND, person=owner.person)
            active = sum(not job.state.ended for job in jobs)
            if active >= self._quota.jobs:
                detail = f"{active} exports of yours wait or run, as many as one may have (EXPORT_JOBS_PER_PRINCIPAL); wait, or cancel one"
                raise ExportQuotaError(detail, retry_after_s=10)
            done = [job for job in jobs if job.state is State.SUCCEEDED]
            kept = await asyncio.to_thread(lambda: sum(map(self._size, done)))
            if kept >= self._quota.size_bytes:
                bound = f"{self._quota.size_bytes} (EXPORT_BYTES_PER_PRINCIPAL)"
                detail = f"your exports take {kept} bytes, of {bound}; delete some, or wait until they expire"
                raise ExportQuotaError(detail, retry_after_s=3600)
            details = {"type": query.type, "format": query.format.value}
            return await self._runner.submit(
                KIND,
                query.as_json(),
                owner=owner,
                first=lambda export_id: audit(owner.id, "datasets.export", export_id, DONE, details),
            )

    async def remove(self, export_id: str) -> Job:
        """Remove an export that has ended, with its files, and return its job.

        :raises UnknownJobError: when there is none.
        :raises JobNotEndedError: when it waits or runs.
        """
        return await self._runner.remove(self.get(export_id).id)

    def get(self, export_id: str) -> Job:
        """Return an export's job.

        :raises UnknownJobError: when there is none.
        """
        job = self._runner.get(export_id)
        if job.kind != KIND:
            raise UnknownJobError(f"no export {export_id}; there is a job of kind {job.kind} of that name")
        return job

    def manifest(self, export_id: str) -> Mapping[str, Any] | None:
        """Return the manifest of an export that has succeeded, else None. Blocks a little."""
        job = self.get(export_id)
        return manifest.read(self._runner.output(job.id)) if job.state is State.SUCCEEDED else None

    def file(self, export_id: str, name: str) -> tuple[Path, str | None]:
        """Return a file of an export and its SHA-256, None for the manifest. Blocks a little.

        :raises ExportNotReadyError, UnknownFileError: when it is not there.
        """
        content = self.manifest(export_id)
        if content is None:
            raise ExportNotReadyError(f"the export is {self.get(export_id).state}; it has files once it has succeeded")
        digests: dict[str, str | None] = {manifest.NAME: None} | {part["file"]: part["sha256"] for part in content["parts"]}
        if name not in digests:
            raise UnknownFileError(f"no file {name!r}; there are {', '.join([*digests][:5])}")
        return self._runner.output(export_id) / name, digests[name]

    def _check(self, query: Query) -> None:
        if query.part_rows < (least := self._quota.part_rows_min):
            raise InvalidExportError(f"part_rows: at least {least} (EXPORT_PART_ROWS_MIN)", field="part_rows")

    def _size(self, job: Job) -> int:
        progress = self._runner.progress(job.id)
        return int(str(progress.figures.get("bytes", 0))) if progress else 0

    def _summary(self, dataset: Dataset) -> Summary:
        if dataset.features is not None:
            return Summary(dataset=dataset, rows=None, slots=None, time_ns=None)
        names = [name for name in ("slot" if dataset.has_slots else None, dataset.time_field) if name]
        spans = ", ".join(f"minIf(`{name}`, `{name}` > 0), max(`{name}`)" for name in names)
        table = f"`{self._clickhouse.database}`.`{dataset.event.table}`"
        ((rows, *ends),) = self._clickhouse.rows(f"SELECT count(), {spans} FROM {table}")  # noqa: S608 - names of ours
        by_name = {name: (int(low), int(high)) for name, low, high in zip(names, ends[::2], ends[1::2], strict=True) if rows}
        return Summary(
            dataset=dataset,
            rows=int(rows),
            slots=by_name.get("slot"),
            time_ns=by_name.get(dataset.time_field) if dataset.time_field else None,
        )

    def _widths(self, statements: Statements) -> list[float]:
        """Return the bytes a row takes in each column: as the table stores it, else by its type."""
        dataset, values = statements.dataset, {"database": self._clickhouse.database, "table": statements.dataset.event.table}
        sql = "SELECT name, data_compressed_bytes FROM system.columns WHERE database = {database:String} AND table = {table:String}"
        sizes = {name: int(size) for name, size in self._clickhouse.rows(sql, values)}
        rows = int(self._clickhouse.rows(f"SELECT count() FROM `{values['database']}`.`{values['table']}`")[0][0])  # noqa: S608 - as above
        return [
            sizes[column.name] / rows
            if rows and dataset.features is None and sizes.get(column.name)
            else _FIXED_BYTES.get(column.type, _OTHER_BYTES)
            for column in statements.columns
        ]
