"""``/api/training``."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from mev.auth.audit import Audit, no_audit
from mev.auth.dependencies import ModelsRead, ModelsTrain
from mev.jobs.model import Job
from mev.jobs.routes import JobOut, owner, shown
from mev.jobs.runner import Runner
from mev.training.service import Trainings
from mev.training.spec import TrainSpec

PATH = "/api/training"


class TrainIn(TrainSpec):
    """A training, what it learns from, and which forms of the model are made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field("training_examples", max_length=64, description="A dataset, which is exported first, or the id of an export.")
    compiled: bool = Field(False, description="Make native code beside the data-only form.")

    def spec(self) -> TrainSpec:
        """Return the training alone."""
        return TrainSpec.model_validate(self.model_dump(exclude={"dataset", "compiled"}))


class TrainingOut(BaseModel):
    """A training; the last three once it has succeeded."""

    id: str
    job: JobOut
    model_id: str | None
    result: dict[str, Any] | None
    """Metrics, importance, rows on each side, validation by round, lineage."""
    pictures: list[str]


def router(trainings: Trainings, runner: Runner, *, audit: Audit = no_audit) -> APIRouter:
    """Return the routes of training."""
    routes = APIRouter(prefix=PATH, tags=["training"])

    @routes.post("/train", status_code=202, summary="Train a model")
    async def train(who: ModelsTrain, body: TrainIn) -> TrainingOut:
        """A job: ask `GET /jobs/{id}` how far it is. It exports where it must, trains, compares, signs and registers."""
        return _training(await trainings.submit(body.dataset, body.spec(), compiled=body.compiled, owner=owner(who), audit=audit))

    @routes.get("/jobs/{job_id}", summary="Show a training")
    async def one(_: ModelsRead, job_id: str) -> TrainingOut:
        """The job's state and progress; with its success, the model and what is known of it."""
        return await asyncio.to_thread(_training, trainings.get(job_id))

    @routes.get("/jobs/{job_id}/pictures/{name}", summary="Get a picture of a training", response_class=FileResponse)
    async def picture(_: ModelsRead, job_id: str, name: str) -> FileResponse:
        """ROC, precision by recall, calibration, profit, importance, validation by round; `.png`, or `.svg` in its place."""
        path = trainings.picture(job_id, name)
        return FileResponse(path, media_type="image/svg+xml" if path.suffix == ".svg" else "image/png")

    def _training(job: Job) -> TrainingOut:
        result = trainings.result(job.id)
        folder = f"{PATH}/jobs/{job.id}/pictures"
        return TrainingOut(
            id=job.id,
            job=shown(runner, job),
            model_id=result[0] if result else None,
            result=dict(result[1]) if result else None,
            pictures=[f"{folder}/{name}" for name in trainings.pictures(job.id)],
        )

    return routes
