"""Data model of jobs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mev.jobs.context import Context

Spec = Mapping[str, Any]
"""Request of a job, as JSON."""


class JobState(StrEnum):
    """State of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Return whether the state is final."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Input of a child process.

    It may read `folders`, whose paths are added to its spec, and use TCP if `network` is true.
    """

    spec: Spec
    folders: Mapping[str, Path] = field(default_factory=dict)
    network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKind:
    """Declaration of a kind of job.

    `run` is a function that an untrusted child process imports and calls. With `in_thread` it runs
    in a thread of this process, for work that needs an object of this process.

    `prepare` and `finish` run in this process: `prepare` returns the input of the child (default:
    the whole spec), and `finish` checks the files of the child, after they were copied to the
    output. A `resumable` job continues from the files in its folder after a crash of the child or
    of this process. A child without a heartbeat for `silent_s` is killed. The output is written to
    `outputs` (default: ``output/`` in the job's folder) and removed `expires_s` after the job's
    end. `shows` names the parts of the spec that the API returns (default: all); leave out paths
    on this machine.
    """

    name: str
    run: Callable[[Context], None]
    prepare: Callable[[Context], Given] | None = None
    finish: Callable[[Context], None] | None = None
    concurrency: int = 1
    resumable: bool = False
    expires_s: float = 7 * 86_400.0
    in_thread: bool = False
    silent_s: float = 120.0
    outputs: Path | None = None
    shows: frozenset[str] | None = None

    @property
    def entry(self) -> str:
        """Return the import path of `run` for another process."""
        return f"{self.run.__module__}:{getattr(self.run, '__qualname__', '')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Owner of a job: the principal, its display name, and the person behind it.

    A person owns the jobs started with any of that person's keys.
    """

    id: str
    name: str
    person: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """State of a job.

    `owner` is the principal's id and never changes; times are nanoseconds since the epoch, 0 if
    unset. `person` is empty in jobs of older versions: use :attr:`whose`.
    """

    id: str
    kind: str
    owner: str
    owner_name: str
    state: JobState
    created_ns: int
    started_ns: int = 0
    ended_ns: int = 0
    expires_ns: int = 0
    attempts: int = 0
    error: Mapping[str, object] | None = None
    """Problem it failed with: ``code`` and ``detail``."""
    person: str = ""

    @property
    def whose(self) -> str:
        """Return the person behind the owner, or the owner where that is unknown."""
        return self.person or self.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Progress of a job, in its own units."""

    done: float
    total: float
    note: str = ""
    at_ns: int = 0
    figures: Mapping[str, object] = field(default_factory=dict)
