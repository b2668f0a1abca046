"""The files of jobs. What is written here is whole or not there, also after a crash."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from mev.core.files import sync_folder, write_atomically
from mev.jobs.context import PROGRESS
from mev.jobs.model import Job, Progress, Spec, State

LOG = logging.getLogger(__name__)
_LOG = "log"
_SPEC = "spec.json"
_STATE = "state.json"


class JobFolders:
    """The folder of all jobs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self.path / job_id

    def log(self, job_id: str) -> Path:
        """Return the log of a job."""
        return self.of(job_id) / _LOG

    def create(self, job: Job, spec: Spec) -> None:
        """Keep a new job; before its state is written there is none."""
        folder = self.of(job.id)
        folder.mkdir(parents=True, mode=0o700)
        (folder / _LOG).touch(mode=0o600)
        write_atomically(folder / _SPEC, orjson.dumps(spec))
        self.write(job)
        sync_folder(self.path)

    def write(self, job: Job) -> None:
        """Keep what became of a job."""
        write_atomically(self.of(job.id) / _STATE, orjson.dumps(asdict(job)))

    def spec(self, job_id: str) -> dict[str, Any]:
        """Return what a job was asked to do."""
        spec: dict[str, Any] = orjson.loads((self.of(job_id) / _SPEC).read_bytes())
        return spec

    def progress(self, job_id: str) -> Progress | None:
        """Return how far a job is, None when it has not said so."""
        try:
            return Progress(**orjson.loads((self.of(job_id) / PROGRESS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def read_all(self) -> Iterator[Job]:
        """Give every job, oldest first; what a crash left of one that was never accepted is removed."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in sorted(self.path.iterdir()):
            if not (folder / _STATE).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                content = orjson.loads((folder / _STATE).read_bytes())
                job = Job(**{**content, "state": State(content["state"])})
            except (OSError, ValueError, TypeError, KeyError) as error:  # one damaged job must not keep the system from starting
                LOG.error("%s cannot be read and is left alone: %s", folder / _STATE, error, extra={"action": "job_unreadable"})
            else:
                yield job

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        (self.of(job_id) / _STATE).unlink(missing_ok=True)  # first: half a folder is no job
        shutil.rmtree(self.of(job_id), ignore_errors=True)
