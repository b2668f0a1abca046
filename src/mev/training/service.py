"""Trainings as jobs, from a dataset or an export that is there, and what became of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from mev.auth.audit import DONE, Audit, no_audit
from mev.datasets.catalog import DATASETS
from mev.datasets.errors import ExportNotReadyError
from mev.datasets.query import checked
from mev.datasets.service import Exports
from mev.jobs.model import Job, Owner, State
from mev.jobs.runner import Runner
from mev.training.errors import (
    DistributedUnavailableError,
    InvalidTrainingError,
    SearchUnavailableError,
    TrainingQuotaError,
    TrainingUnavailableError,
    UnknownTrainingError,
)
from mev.training.job import KIND, REGISTERED, check_scheduler
from mev.training.spec import TrainSpec

_RESULT = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQuota:
    """What one person may have waiting or running, and for how long a search may go on."""

    jobs: int
    search_s: float


class Trainings:
    """Trainings of this machine; models go to `model_dir`, signed by the key in `control_folder`."""

    def __init__(self, runner: Runner, exports: Exports, quota: TrainingQuota, *, model_dir: Path, control_folder: Path) -> None:
        self._runner = runner
        self._exports = exports
        self._quota = quota
        self._accepting = asyncio.Lock()
        self._places = {"model_dir": str(model_dir.resolve()), "control_folder": str(control_folder.resolve())}

    async def submit(self, dataset: str, training: TrainSpec, *, compiled: bool, owner: Owner, audit: Audit = no_audit) -> Job:
        """Accept a training on `dataset`: the id of an export, or the name of a dataset, of which all is exported first.

        Both are in the audit trail by then.

        :raises TrainingQuotaError: when the person has enough.
        :raises MevError: when it cannot be done.
        """
        _can_be_done(training)
        if training.search and training.search.timeout_s > (most := self._quota.search_s):
            raise InvalidTrainingError(f"search.timeout_s: up to {most:g} (TRAIN_SEARCH_MAX_S)", field="search.timeout_s")
        async with self._accepting:
            self._check_quota(owner)
            export = await self._export(dataset, owner, audit)
            details = {"dataset": dataset, "export": export.id, "target": training.target}
            return await self._runner.submit(
                KIND,
                self._spec(export, training, compiled=compiled, owner_name=owner.name),
                owner=owner,
                first=lambda job_id: audit(owner.id, "training.train", job_id, DONE, details),
            )

    def _check_quota(self, owner: Owner) -> None:
        active = sum(not job.state.ended for job in self._runner.jobs(kind=KIND, person=owner.person))
        if active >= self._quota.jobs:
            detail = f"{active} trainings of yours wait or run, as many as one may have (TRAIN_JOBS_PER_PRINCIPAL); wait, or cancel one"
            raise TrainingQuotaError(detail, retry_after_s=60)

    async def _export(self, dataset: str, owner: Owner, audit: Audit) -> Job:
        if dataset in DATASETS:
            return await self._exports.submit(checked(dataset), owner=owner, audit=audit)
        export = self._exports.get(dataset)
        if export.state in {State.FAILED, State.CANCELLED}:
            raise ExportNotReadyError(f"export {export.id} {export.state}")
        return export

    def _spec(self, export: Job, training: TrainSpec, *, compiled: bool, owner_name: str) -> dict[str, Any]:
        return {
            "export_id": export.id,
            "export_folder": str(self._runner.output(export.id).resolve()),
            "export_state": str(self._runner.log(export.id).with_name("state.json").resolve()),
            "training": training.model_dump(mode="json"),
            "compiled": compiled,
            "owner_name": owner_name,
            **self._places,
        }

    def get(self, job_id: str) -> Job:
        """Return a training's job.

        :raises UnknownTrainingError: when it is none.
        """
        job = self._runner.get(job_id)
        if job.kind != KIND:
            raise UnknownTrainingError(f"job {job_id} is of kind {job.kind}")
        return job

    def result(self, job_id: str) -> tuple[str, Mapping[str, Any]] | None:
        """Return the id of the model and what is known of it, None before the job has succeeded. Blocks a little."""
        if self.get(job_id).state is not State.SUCCEEDED:
            return None
        folder = self._runner.output(job_id)
        model: str = orjson.loads((folder / REGISTERED).read_bytes())["model_id"]
        return model, orjson.loads((folder / _RESULT).read_bytes())

    def pictures(self, job_id: str) -> list[str]:
        """Return the names of a training's pictures; each is there as SVG too."""
        if self.get(job_id).state is not State.SUCCEEDED:
            return []
        return sorted(path.name for path in self._runner.output(job_id).glob("*.png"))

    def picture(self, job_id: str, name: str) -> Path:
        """Return the file of a picture, PNG or SVG.

        :raises UnknownTrainingError: when there is none of that name.
        """
        there = {each for png in self.pictures(job_id) for each in (png, f"{png.removesuffix('.png')}.svg")}
        path = self._runner.output(job_id) / name
        if name not in there or not path.is_file():
            raise UnknownTrainingError(f"training {job_id} has no picture {name[:100]!r}")
        return path


def _can_be_done(training: TrainSpec) -> None:
    """Refuse what needs something that is not installed, or a scheduler that is not trusted here."""
    if find_spec("xgboost") is None:
        raise TrainingUnavailableError("XGBoost is not installed; install mev[train]")
    if training.search and find_spec("optuna") is None:
        raise SearchUnavailableError("Optuna is not installed; install mev[search], or leave search out")
    if training.distributed is None:
        return
    if find_spec("distributed") is None or find_spec("dask") is None:
        raise DistributedUnavailableError("Dask is not installed; install mev[dist], or leave distributed out")
    check_scheduler(training)
