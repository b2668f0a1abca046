"""Dataset summaries, export estimates, and exports as jobs."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mev.auth.audit import DONE, AuditCallback, no_audit
from mev.core.errors import NotFoundError
from mev.core.files import DiskFullError, free_bytes
from mev.datasets import manifest
from mev.datasets.catalog import DATASETS, Dataset, Format
from mev.datasets.errors import (
    ExportNotReadyError,
    ExportQuotaError,
    InvalidExportError,
)
from mev.datasets.export import KIND, ExportLimits, make_export
from mev.datasets.query import ONLY_REAL, Query, Statements
from mev.datasets.shared import SharedExports
from mev.jobs.context import Context
from mev.jobs.errors import UnknownJobError
from mev.jobs.model import Job, JobKind, JobState, Owner
from mev.jobs.runner import Runner
from mev.store.clickhouse import ClickHouse, ClickHouseUnavailableError

LOG = logging.getLogger(__name__)
_FIXED_BYTES = {
    "UInt64": 8,
    "Int64": 8,
    "Float64": 8,
    "UInt32": 4,
    "Int32": 4,
    "Float32": 4,
    "Bool": 1,
}
_OTHER_BYTES = 24
_TEXT = 2.5  # factor for numbers as text, and names with every value


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuota:
    """Limits of exports per principal, and the minimum rows of a file."""

    jobs: int
    size_bytes: int
    part_rows_min: int = 1
    reserve_bytes: int = 0
    """Bytes of the disk that exports leave free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Estimate of an export: current `rows`, approximate `size_bytes`."""

    rows: int
    size_bytes: int
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """Stored data of a dataset; repeats that are not merged yet are counted."""

    dataset: Dataset
    rows: int | None
    slots: tuple[int, int] | None
    time_ns: tuple[int, int] | None


def export_kind(
    clickhouse: ClickHouse,
    limits: ExportLimits,
    *,
    expires_s: float,
    folder: Path | None,
    shared: SharedExports | None = None,
) -> JobKind:
    """Return the job kind of exports; files are stored below `folder`, or in the job's folder.

    Finished exports are added to those that are `shared`.
    """
    work = make_export(clickhouse, limits)

    def export(context: Context) -> None:
        work(context)
        if shared is not None:
            shared.add(context)

    return JobKind(
        name=KIND,
        run=export,
        concurrency=1,
        resumable=True,
        in_thread=True,
        expires_s=expires_s,
        outputs=folder,
    )


class Exports:
    """Exports of the datasets in `clickhouse`, and those of other replicas that are `shared`."""

    def __init__(
        self,
        runner: Runner,
        clickhouse: ClickHouse,
        quota: ExportQuota,
        shared: SharedExports | None = None,
    ) -> None:
        self._runner = runner
        self._shared = shared
        self._clickhouse = clickhouse
        self._quota = quota
        self._accepting = asyncio.Lock()

    def summaries(self) -> list[DatasetSummary]:
        """Return the summaries of all datasets; blocks."""
        return [self._summary(dataset) for dataset in DATASETS.values()]

    def estimate(self, query: Query) -> Estimate:
        """Return an estimate of an export; blocks.

        :raises InvalidExportError: if the export would be refused.
        """
        self._check(query)
        statements = Statements(query, self._clickhouse.database)
        count = statements.count(None, None)
        rows = int(self._clickhouse.rows(count.sql, count.values)[0][0])
        return Estimate(
            rows=rows,
            size_bytes=self._bytes_of(statements, rows),
            parts=-(-rows // query.part_rows),
        )

    def has_real_rows(self, query: Query) -> bool | None:
        """Return whether some examples are not simulated, None if ClickHouse does not answer.

        Blocks.
        """
        real = replace(query, filter=(*query.filter, ONLY_REAL))
        found = Statements(real, self._clickhouse.database).any()
        try:
            return bool(self._clickhouse.rows(found.sql, found.values))
        except ClickHouseUnavailableError as error:
            LOG.warning(
                "whether real examples exist is not known: %s",
                error.detail,
                extra={"action": "export_estimate"},
            )
            return None

    async def submit(self, query: Query, *, owner: Owner, audit: AuditCallback = no_audit) -> Job:
        """Audit and accept an export, and return its job.

        :raises InvalidExportError: if its files would have too few rows.
        :raises ExportQuotaError: if the owner's quota is reached.
        :raises DiskFullError: if its files would probably not fit on the disk.
        """
        self._check(query)
        await asyncio.to_thread(self._check_room, query)
        async with self._accepting:
            jobs = self._runner.jobs(kind=KIND, person=owner.person)
            active = sum(not job.state.ended for job in jobs)
            if active >= self._quota.jobs:
                detail = (
                    f"{active} of your exports wait or run, "
                    "as many as one may have (EXPORT_JOBS_PER_PRINCIPAL); wait, or cancel one"
                )
                raise ExportQuotaError(detail, retry_after_s=10)
            done = [job for job in jobs if job.state is JobState.SUCCEEDED]
            kept = await asyncio.to_thread(lambda: sum(map(self._size, done)))
            if kept >= self._quota.size_bytes:
                bound = f"{self._quota.size_bytes} (EXPORT_BYTES_PER_PRINCIPAL)"
                detail = (
                    f"your exports take {kept} bytes, of {bound}; "
                    "delete some, or wait until they expire"
                )
                raise ExportQuotaError(detail, retry_after_s=3600)
            details = {"type": query.type, "format": query.format.value}
            return await self._runner.submit(
                KIND,
                query.as_json(),
                owner=owner,
                first=lambda export_id: audit(
                    owner.id, "datasets.export", export_id, DONE, details
                ),
            )

    async def remove(self, export_id: str) -> Job:
        """Remove a finished export with its files, and return its job.

        :raises UnknownJobError: if it does not exist.
        :raises JobNotEndedError: if it waits or runs.
        :raises MevError: if the object store does not answer: it is there still.
        """
        job = await self._runner.remove(self.get(export_id).id)
        if self._shared is not None and job.state is JobState.SUCCEEDED:
            await asyncio.to_thread(self._shared.remove, job.id)
        return job

    async def find(self, export_id: str) -> Job:
        """Return an export's job; add it to the jobs here if another replica has shared it.

        :raises UnknownJobError: if it does not exist.
        :raises MevError: if the object store does not answer.
        """
        if self._shared is not None and not self._runner.has(export_id):
            found = await asyncio.to_thread(self._shared.find, export_id)
            async with self._accepting:
                if found is not None and not self._runner.has(export_id):
                    await self._runner.adopt(found.job, found.spec, found.write_manifest)
        return self.get(export_id)

    def get(self, export_id: str) -> Job:
        """Return an export's job.

        :raises UnknownJobError: if it does not exist.
        """
        job = self._runner.get(export_id)
        if job.kind != KIND:
            raise UnknownJobError(
                f"no export {export_id}; there is a job of kind {job.kind} of that name"
            )
        return job

    def query(self, export_id: str) -> Query:
        """Return the query of an export; blocks briefly.

        :raises UnknownJobError: if it does not exist.
        """
        return Query.from_json(self._runner.spec(self.get(export_id).id))

    def manifest(self, export_id: str) -> Mapping[str, Any] | None:
        """Return the manifest of a successful export, else None; blocks briefly."""
        job = self.get(export_id)
        return (
            manifest.read(self._runner.output(job.id)) if job.state is JobState.SUCCEEDED else None
        )

    def file(self, export_id: str, name: str) -> tuple[Path, str | None]:
        """Return a file of an export and its SHA-256 (None for the manifest); blocks briefly.

        :raises ExportNotReadyError, NotFoundError: if it does not exist.
        """
        content = self.manifest(export_id)
        if content is None:
            raise ExportNotReadyError(
                f"the export is {self.get(export_id).state}; it has files once it has succeeded"
            )
        digests: dict[str, str | None] = {manifest.NAME: None} | {
            part["file"]: part["sha256"] for part in content["parts"]
        }
        if name not in digests:
            raise NotFoundError(
                f"no file {name!r}; there are {', '.join([*digests][:5])}",
                code="unknown_export_file",
            )
        output = self._runner.output(export_id)
        if self._shared is not None:
            self._shared.fetch(export_id, output, name)
        return output / name, digests[name]

    def _check(self, query: Query) -> None:
        if query.part_rows < (least := self._quota.part_rows_min):
            raise InvalidExportError(
                f"part_rows: at least {least} (EXPORT_PART_ROWS_MIN)", field="part_rows"
            )

    def _check_room(self, query: Query) -> None:
        """Compare the free disk space with the estimated size; blocks."""
        statements = Statements(query, self._clickhouse.database)
        count = statements.size(None)
        try:
            rows = int(self._clickhouse.rows(count.sql, count.values)[0][0])
            expected = self._bytes_of(statements, rows)
        # The job waits for ClickHouse, and checks the disk before each part.
        except ClickHouseUnavailableError as error:
            LOG.warning(
                "an export is accepted without its estimate: %s",
                error.detail,
                extra={"action": "export_estimate"},
            )
            return
        folder = self._runner.outputs(KIND)
        if expected > (free := free_bytes(folder) - self._quota.reserve_bytes):
            raise DiskFullError(
                f"the export takes about {expected} bytes, "
                f"and {max(0, free)} are free for it in {folder}; ask for fewer columns or "
                f"rows, free space, or set EXPORT_DIR to another disk",
                path=str(folder),
                estimated_bytes=expected,
                free_bytes=max(0, free),
            )

    def _bytes_of(self, statements: Statements, rows: int) -> int:
        query, width = statements.query, sum(self._widths(statements))
        if query.format in {Format.CSV, Format.NDJSON}:
            width *= _TEXT if query.compression == "none" else _TEXT / 4
        return int(rows * width)

    def _size(self, job: Job) -> int:
        progress = self._runner.progress(job.id)
        return int(str(progress.figures.get("bytes", 0))) if progress else 0

    def _summary(self, dataset: Dataset) -> DatasetSummary:
        if dataset.features is not None:
            return DatasetSummary(dataset=dataset, rows=None, slots=None, time_ns=None)
        names = [
            name for name in ("slot" if dataset.has_slots else None, dataset.time_field) if name
        ]
        spans = ", ".join(f"minIf(`{name}`, `{name}` > 0), max(`{name}`)" for name in names)
        table = f"`{self._clickhouse.database}`.`{dataset.event.table}`"
        # Names of ours.
        question = f"SELECT count(), {spans} FROM {table}"  # noqa: S608
        ((rows, *ends),) = self._clickhouse.rows(question)
        by_name = {
            name: (int(low), int(high))
            for name, low, high in zip(names, ends[::2], ends[1::2], strict=True)
            if rows
        }
        return DatasetSummary(
            dataset=dataset,
            rows=int(rows),
            slots=by_name.get("slot"),
            time_ns=by_name.get(dataset.time_field) if dataset.time_field else None,
        )

    def _widths(self, statements: Statements) -> list[float]:
        """Return the bytes per row of each column: as stored in the table, else by its type."""
        dataset, values = (
            statements.dataset,
            {"database": self._clickhouse.database, "table": statements.dataset.event.table},
        )
        sql = (
            "SELECT name, data_compressed_bytes FROM system.columns "
            "WHERE database = {database:String} AND table = {table:String}"
        )
        sizes = {name: int(size) for name, size in self._clickhouse.rows(sql, values)}
        rows = int(
            self._clickhouse.rows(
                f"SELECT count() FROM `{values['database']}`.`{values['table']}`"  # noqa: S608
            )[0][0]
        )
        return [
            sizes[column.name] / rows
            if rows and dataset.features is None and sizes.get(column.name)
            else _FIXED_BYTES.get(column.type, _OTHER_BYTES)
            for column in statements.columns
        ]
