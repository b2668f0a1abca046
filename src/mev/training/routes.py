"""Routes of training under ``/api/training``."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from mev.auth.audit import AuditCallback, no_audit
from mev.auth.dependencies import ModelsRead, ModelsTrain
from mev.core.body import Items
from mev.datasets.query import MAX_LABEL_SLOTS, Labels
from mev.jobs.model import Job
from mev.jobs.routes import JobOut, owner, shown
from mev.jobs.runner import Runner
from mev.training.service import Selection, Trainings
from mev.training.spec import TrainSpec

PATH = "/api/training"


class TrainIn(TrainSpec):
    """A training request: parameters, dataset and forms."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(
        max_length=64, description="Name of a dataset, which is exported first, or id of an export."
    )
    filter: Items[str] = Field(
        [],
        description="Conditions on the rows of the dataset, as for an export.",
    )
    labels: Labels | None = Field(
        None,
        description="Source of the labels, as for an export: `agent` or `market`.",
    )
    label_slots: int | None = Field(
        None,
        ge=0,
        le=MAX_LABEL_SLOTS,
        description="Slots in which bundles count, as for an export.",
    )
    compiled: bool = Field(False, description="Also build the compiled form.")

    def spec(self) -> TrainSpec:
        """Return the training parameters alone."""
        return TrainSpec.model_validate(
            self.model_dump(exclude={"dataset", "compiled", "filter", "labels", "label_slots"})
        )

    def selection(self) -> Selection:
        """Return the selection of rows to export."""
        return Selection(
            filter=tuple(self.filter), labels=self.labels, label_slots=self.label_slots
        )


class TrainingOut(BaseModel):
    """A training; model, result and pictures are set after success."""

    id: str
    job: JobOut
    model_id: str | None
    result: dict[str, Any] | None
    """Metrics, importance, rows on each side, validation by round, lineage."""
    pictures: list[str]
    notes: list[str]
    """Notes about the rows: whether simulated ones are left out, or all are simulated."""


def router(trainings: Trainings, runner: Runner, *, audit: AuditCallback = no_audit) -> APIRouter:
    """Return the routes of training."""
    routes = APIRouter(prefix=PATH, tags=["training"])

    @routes.post("/train", status_code=202, summary="Train a model")
    async def train(who: ModelsTrain, body: TrainIn) -> TrainingOut:
        """Start a training job; `GET /jobs/{id}` shows its progress.

        The job exports rows where needed, trains, compares the forms, signs and registers the
        model.
        """
        job = await trainings.submit(
            body.dataset,
            body.spec(),
            compiled=body.compiled,
            owner=owner(who),
            selection=body.selection(),
            audit=audit,
        )
        return await asyncio.to_thread(_training, job)

    @routes.get("/jobs/{job_id}", summary="Show a training")
    async def one(_: ModelsRead, job_id: str) -> TrainingOut:
        """State and progress of the job; after success, the model and its result."""
        return await asyncio.to_thread(_training, trainings.get(job_id))

    @routes.get(
        "/jobs/{job_id}/pictures/{name}",
        summary="Get a picture of a training",
        response_class=FileResponse,
    )
    async def picture(_: ModelsRead, job_id: str, name: str) -> FileResponse:
        """ROC, precision-recall, calibration, profit, importance or validation by round.

        Each is available as `.png` and `.svg`.
        """
        path = trainings.picture(job_id, name)
        return FileResponse(
            path, media_type="image/svg+xml" if path.suffix == ".svg" else "image/png"
        )

    def _training(job: Job) -> TrainingOut:
        result = trainings.result(job.id)
        folder = f"{PATH}/jobs/{job.id}/pictures"
        return TrainingOut(
            id=job.id,
            job=shown(runner, job),
            model_id=result[0] if result else None,
            result=dict(result[1]) if result else None,
            pictures=[f"{folder}/{name}" for name in trainings.pictures(job.id)],
            notes=trainings.notes(job.id),
        )

    return routes
