"""Training service: trainings as jobs, on a dataset or an existing export."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from mev.auth.audit import DONE, AuditCallback, no_audit
from mev.core.confine import NOT_CONFINED, Confinement
from mev.core.errors import NotFoundError
from mev.datasets.catalog import DATASETS, EXAMPLES, Format
from mev.datasets.errors import ExportNotReadyError
from mev.datasets.query import ONLY_REAL, Labels, Query, checked
from mev.datasets.service import Exports
from mev.jobs.model import Job, JobState, Owner
from mev.jobs.runner import Runner
from mev.registry.c_compiler import c_compiler
from mev.settings import Settings
from mev.training.columns import SIMULATED, check_request
from mev.training.errors import (
    DistributedUnavailableError,
    InvalidTrainingError,
    SearchUnavailableError,
    TrainingQuotaError,
    TrainingUnavailableError,
)
from mev.training.job import KIND, REGISTERED, check_scheduler
from mev.training.spec import TrainSpec

_RESULT = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQuota:
    """Limits of one person: queued and running trainings, and duration of a search."""

    jobs: int
    search_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selection of the rows and labels to export for a training."""

    filter: tuple[str, ...] = ()
    labels: Labels | None = None
    label_slots: int | None = None


NOTHING_SELECTED = Selection()


class Trainings:
    """Training jobs of this machine."""

    def __init__(
        self,
        runner: Runner,
        exports: Exports,
        quota: TrainingQuota,
        confinement: Confinement = NOT_CONFINED,
    ) -> None:
        self._runner = runner
        self._exports = exports
        self._quota = quota
        self._confinement = confinement
        self._accepting = asyncio.Lock()

    async def submit(
        self,
        dataset: str,
        training: TrainSpec,
        *,
        compiled: bool,
        owner: Owner,
        selection: Selection = NOTHING_SELECTED,
        audit: AuditCallback = no_audit,
    ) -> Job:
        """Accept a training on `dataset`, the id of an export or the name of a dataset.

        Of a dataset, `selection` is exported first. Both jobs are audited before this returns.

        :raises TrainingQuotaError: when the person's quota is used up.
        :raises MevError: when the request is refused.
        """
        _can_be_done(training)
        if compiled:
            c_compiler()
        self._confinement.check()
        if dataset not in DATASETS:
            await self._exports.find(dataset)
        await asyncio.to_thread(self._check_columns, dataset, training)
        if training.search and training.search.timeout_s > (most := self._quota.search_s):
            raise InvalidTrainingError(
                f"search.timeout_s: up to {most:g} (TRAIN_SEARCH_MAX_S)", field="search.timeout_s"
            )
        async with self._accepting:
            self._check_quota(owner)
            export, notes = await self._export(dataset, selection, training, owner, audit)
            details = {"dataset": dataset, "export": export.id, "target": training.target}
            return await self._runner.submit(
                KIND,
                self._spec(export, training, compiled=compiled, owner_name=owner.name)
                | {"notes": notes},
                owner=owner,
                first=lambda job_id: audit(owner.id, "training.train", job_id, DONE, details),
            )

    def _check_columns(self, dataset: str, training: TrainSpec) -> None:
        """Check early for errors that would otherwise occur only after the export."""
        query = checked(dataset) if dataset in DATASETS else self._exports.query(dataset)
        if query.format is not Format.PARQUET:
            raise InvalidTrainingError(
                f"export {dataset} is {query.format}; trainings read Parquet: export again with"
                " --format parquet",
                field="dataset",
            )
        check_request(DATASETS[query.type], query.columns, training)

    def _check_quota(self, owner: Owner) -> None:
        active = sum(
            not job.state.ended for job in self._runner.jobs(kind=KIND, person=owner.person)
        )
        if active >= self._quota.jobs:
            detail = (
                f"{active} trainings of yours wait or run, as many as one may have"
                " (TRAIN_JOBS_PER_PRINCIPAL); wait, or cancel one"
            )
            raise TrainingQuotaError(detail, retry_after_s=60)

    async def _export(
        self,
        dataset: str,
        selection: Selection,
        training: TrainSpec,
        owner: Owner,
        audit: AuditCallback,
    ) -> tuple[Job, list[str]]:
        """Return the export to train on, and notes about its rows."""
        if dataset in DATASETS:
            query = checked(
                dataset,
                filter=selection.filter,
                labels=selection.labels,
                label_slots=selection.label_slots,
            )
            query, notes = await asyncio.to_thread(self._without_simulated, query, training)
            return await self._exports.submit(query, owner=owner, audit=audit), notes
        export = self._exports.get(dataset)
        if selection != NOTHING_SELECTED:
            raise InvalidTrainingError(
                f"filter, labels, label_slots: export {export.id} has its rows already; give them"
                " to the export",
                field="filter",
            )
        if export.state in {JobState.FAILED, JobState.CANCELLED}:
            raise ExportNotReadyError(f"export {export.id} {export.state}")
        return export, []

    def _without_simulated(self, query: Query, training: TrainSpec) -> tuple[Query, list[str]]:
        """Return the query, by default without simulated rows where real ones exist."""
        decided = training.include_simulated or any(
            text.startswith(f"{SIMULATED} ") for text in query.filter
        )
        if query.type != EXAMPLES or decided:
            return query, []
        real = self._exports.has_real_rows(query)
        if real is None:
            return query, [
                (
                    "ClickHouse does not answer now; the log of the training says how many rows are"
                    " simulated"
                )
            ]
        if not real:
            return query, [
                "all rows are simulated: the figures of the model are those of a simulated market"
            ]
        note = (
            "simulated rows are left out, because there are real ones; include_simulated"
            " (--include-simulated) learns from both"
        )
        return replace(query, filter=(*query.filter, ONLY_REAL)), [note]

    def _spec(
        self, export: Job, training: TrainSpec, *, compiled: bool, owner_name: str
    ) -> dict[str, Any]:
        return {
            "export_id": export.id,
            "export_folder": str(self._runner.output(export.id).resolve()),
            "export_state": str(self._runner.log(export.id).with_name("state.json").resolve()),
            "training": training.model_dump(mode="json"),
            "compiled": compiled,
            "owner_name": owner_name,
        }

    def get(self, job_id: str) -> Job:
        """Return the job of a training.

        :raises NotFoundError: when it is not a training.
        """
        job = self._runner.get(job_id)
        if job.kind != KIND:
            raise NotFoundError(f"job {job_id} is of kind {job.kind}", code="unknown_training")
        return job

    def notes(self, job_id: str) -> list[str]:
        """Return the notes about the rows of a training. Blocks briefly."""
        return [str(note) for note in self._runner.spec(job_id).get("notes", ())]

    def result(self, job_id: str) -> tuple[str, Mapping[str, Any]] | None:
        """Return model id and result, or None before the job has succeeded. Blocks briefly."""
        if self.get(job_id).state is not JobState.SUCCEEDED:
            return None
        folder = self._runner.output(job_id)
        model: str = orjson.loads((folder / REGISTERED).read_bytes())["model_id"]
        return model, orjson.loads((folder / _RESULT).read_bytes())

    def pictures(self, job_id: str) -> list[str]:
        """Return the names of a training's plots, as PNG; each exists as SVG too."""
        if self.get(job_id).state is not JobState.SUCCEEDED:
            return []
        return sorted(path.name for path in self._runner.output(job_id).glob("*.png"))

    def picture(self, job_id: str, name: str) -> Path:
        """Return the file of a plot, PNG or SVG.

        :raises NotFoundError: when it does not exist.
        """
        there = {
            each
            for png in self.pictures(job_id)
            for each in (png, f"{png.removesuffix('.png')}.svg")
        }
        path = self._runner.output(job_id) / name
        if name not in there or not path.is_file():
            raise NotFoundError(
                f"training {job_id} has no picture {name[:100]!r}", code="unknown_training"
            )
        return path


def _can_be_done(training: TrainSpec) -> None:
    """Check that the required extras are installed and the scheduler is trusted."""
    if find_spec("xgboost") is None:
        raise TrainingUnavailableError(
            "XGBoost is not installed; run `.venv/bin/pip install -e '.[train]'`"
        )
    if training.search and find_spec("optuna") is None:
        raise SearchUnavailableError(
            "Optuna is not installed; run `.venv/bin/pip install -e '.[search]'`, "
            "or leave search out"
        )
    if training.distributed is None:
        return
    if find_spec("distributed") is None or find_spec("dask") is None:
        raise DistributedUnavailableError(
            "Dask is not installed; run `.venv/bin/pip install -e '.[dist]'`, "
            "or leave distributed out"
        )
    check_scheduler(training)


def make_trainings(
    settings: Settings, runner: Runner, exports: Exports, confinement: Confinement
) -> Trainings:
    """Return the trainings, which are jobs of `runner` on the data of `exports`."""
    quota = TrainingQuota(
        jobs=settings.train_jobs_per_principal, search_s=settings.train_search_max_s
    )
    return Trainings(runner, exports, quota, confinement)
