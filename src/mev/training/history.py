"""Lookup of the training job that made a model, while it is retained."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson

from mev.jobs.errors import UnknownJobError
from mev.jobs.model import Job, JobState
from mev.jobs.runner import Runner
from mev.registry.card import Training
from mev.training.job import KIND, REGISTERED

_RESULT = "result.json"


class TrainingHistory:
    """Retained training jobs of `runner`, by the models they made."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def of(self, model_id: str) -> Training | None:
        """Return the newest training that made a model, or None when it is not retained."""
        return await asyncio.to_thread(
            self._find, list(self._runner.jobs(kind=KIND, state=JobState.SUCCEEDED)), model_id
        )

    def _find(self, jobs: Sequence[Job], model_id: str) -> Training | None:
        for job in jobs:
            try:
                folder = self._runner.output(job.id)
                if orjson.loads((folder / REGISTERED).read_bytes())["model_id"] != model_id:
                    continue
                return Training(
                    job_id=job.id,
                    owner=job.owner_name,
                    ended_at=(
                        f"{datetime.fromtimestamp(job.ended_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
                    ),
                    result=orjson.loads((folder / _RESULT).read_bytes()),
                    pictures={
                        path.stem: _sharpest(path).read_bytes()
                        for path in sorted(folder.glob("*.png"))
                    },
                )
            except (
                OSError,
                ValueError,
                KeyError,
                UnknownJobError,
            ):
                # its files were removed meanwhile
                continue
        return None


def _sharpest(picture: Path) -> Path:
    return drawn if (drawn := picture.with_suffix(".svg")).exists() else picture
