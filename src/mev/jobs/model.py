"""Jobs as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mev.jobs.context import Context

Spec = Mapping[str, Any]
"""What a job was asked to do, as JSON."""


class State(StrEnum):
    """Where a job is; the last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more becomes of it."""
        return self in {State.SUCCEEDED, State.FAILED, State.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of work, declared once.

    `run` is a function that a process of its own can import, unless `in_thread`, which is for work that needs an object of this
    process. A `resumable` one goes on from what it has left in its folder, after a crash of its own or of everything. It is given up
    when it gives no sign of life for `silent_s`; what it made is removed `expires_s` after its end. `outputs` is where its files go,
    ``output/`` in the job's folder when None. `shows` are the names in a spec that everybody may see, None for all: places on this
    machine are not for everybody.
    """

    name: str
    run: Callable[[Context], None]
    concurrency: int = 1
    resumable: bool = False
    expires_s: float = 7 * 86_400.0
    in_thread: bool = False
    silent_s: float = 120.0
    outputs: Path | None = None
    shows: frozenset[str] | None = None

    @property
    def entry(self) -> str:
        """Where another process finds `run`."""
        return f"{self.run.__module__}:{getattr(self.run, '__qualname__', '')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who starts a job: the principal, its name, and the person behind it, who has what all of that person's keys started."""

    id: str
    name: str
    person: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known of a job. `owner` is the principal's id, and never changes; times are nanoseconds since the epoch, 0 before.

    `person` is empty in jobs of before it was kept: ask :attr:`whose`.
    """

    id: str
    kind: str
    owner: str
    owner_name: str
    state: State
    created_ns: int
    started_ns: int = 0
    ended_ns: int = 0
    expires_ns: int = 0
    attempts: int = 0
    error: Mapping[str, object] | None = None
    """The problem it failed with: ``code`` and ``detail``."""
    person: str = ""

    @property
    def whose(self) -> str:
        """The person behind the owner; the owner, where that is not known."""
        return self.person or self.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is, in its own units."""

    done: float
    total: float
    note: str = ""
    at_ns: int = 0
    figures: Mapping[str, object] = field(default_factory=dict)
