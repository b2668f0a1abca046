"""Storage of jobs in files, written atomically."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from mev.core import plain
from mev.core.clock import now_ns
from mev.core.files import sync_folder, write_atomically
from mev.core.plain import UnsafeFileError
from mev.jobs.context import PROGRESS
from mev.jobs.model import Job, JobProgress, JobState, Spec

LOG = logging.getLogger(__name__)
WORK = "work"
"""The folder of a job that its child process may write; only the parent writes the others."""
_MAX_PROGRESS_BYTES = 1 << 16
_MAX_NOTE = 500
_LOG = "log"
_SPEC = "spec.json"
_STATE = "state.json"


class JobFolders:
    """Folder of all jobs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self.path / job_id

    def log(self, job_id: str) -> Path:
        """Return the log of a job."""
        return self.of(job_id) / _LOG

    def create(self, job: Job, spec: Spec, before: Callable[[], None] = lambda: None) -> None:
        """Store a new job; writing its state, after `before`, makes it exist."""
        folder = self.of(job.id)
        try:
            folder.mkdir(parents=True, mode=0o700)
            (folder / _LOG).touch(mode=0o600)
            write_atomically(folder / _SPEC, orjson.dumps(spec))
            before()
            self.write(job)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        sync_folder(self.path)

    def write(self, job: Job) -> None:
        """Store the state of a job."""
        write_atomically(self.of(job.id) / _STATE, orjson.dumps(asdict(job)))

    def spec(self, job_id: str) -> dict[str, Any]:
        """Return the spec of a job."""
        spec: dict[str, Any] = orjson.loads((self.of(job_id) / _SPEC).read_bytes())
        return spec

    def progress(self, job_id: str) -> JobProgress | None:
        """Return the progress of a job, or None before its first report."""
        said = [
            found
            for folder in (self.of(job_id), self.of(job_id) / WORK)
            if (found := _progress(folder)) is not None
        ]
        return max(said, key=lambda progress: progress.at_ns, default=None)

    def read_all(self) -> Iterator[Job]:
        """Yield all jobs, oldest first, and remove folders of jobs that were never accepted."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in sorted(self.path.iterdir()):
            if not (folder / _STATE).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                content = orjson.loads((folder / _STATE).read_bytes())
                job = Job(**{**content, "state": JobState(content["state"])})
            except (
                OSError,
                ValueError,
                TypeError,
                KeyError,
            ) as error:
                # one damaged job must not prevent the start
                LOG.error(
                    "%s cannot be read and is left alone: %s",
                    folder / _STATE,
                    error,
                    extra={"action": "job_unreadable"},
                )
            else:
                yield job

    def remove(self, job_id: str) -> None:
        """Delete a job."""
        (self.of(job_id) / _STATE).unlink(missing_ok=True)  # first: without a state there is no job
        shutil.rmtree(self.of(job_id), ignore_errors=True)


def _progress(folder: Path) -> JobProgress | None:
    """Return the progress in `folder`, or None if it is missing or malformed.

    An untrusted process wrote it.
    """
    try:
        said = orjson.loads(plain.read(folder, PROGRESS, _MAX_PROGRESS_BYTES))
        return JobProgress(
            done=float(said["done"]),
            total=float(said["total"]),
            note=str(said["note"])[:_MAX_NOTE],
            at_ns=min(int(said["at_ns"]), now_ns()),
            figures={
                str(name): value
                for name, value in said["figures"].items()
                if value is None or isinstance(value, int | float)
            },
        )
    except (OSError, UnsafeFileError, ValueError, TypeError, KeyError, AttributeError):
        return None
