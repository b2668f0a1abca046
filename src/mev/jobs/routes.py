"""``/api/jobs``."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel

from mev.auth.audit import Audit, no_audit, note
from mev.auth.dependencies import DatasetsRead
from mev.auth.errors import ForbiddenError
from mev.auth.model import MASTER, Permission, Principal
from mev.auth.model import Kind as PrincipalKind
from mev.core.clock import now_ns
from mev.jobs.model import Job, Owner, Progress, State
from mev.jobs.runner import Runner

_NS = 1_000_000_000
Limit = Annotated[int, Query(ge=1, le=1000)]


class ProgressOut(BaseModel):
    """How far a job is, in its own units."""

    done: float
    total: float
    share: float
    remaining_s: float | None
    """What is left at the speed so far; None when it is not running or has not begun."""
    note: str
    at: datetime
    figures: dict[str, Any]


class JobOut(BaseModel):
    """A job."""

    id: str
    kind: str
    state: State
    owner: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    attempts: int
    progress: ProgressOut | None
    error: dict[str, Any] | None
    spec: dict[str, Any] | None = None
    """What was asked for; only where one job is shown."""


class JobsOut(BaseModel):
    """A page of jobs."""

    items: list[JobOut]
    next_cursor: str | None


def router(runner: Runner, *, audit: Audit = no_audit) -> APIRouter:
    """Return the routes of jobs. Everyone in the team sees them; who started one ends it, and so does an administrator."""
    routes = APIRouter(prefix="/api/jobs", tags=["jobs"])

    @routes.get("", summary="List jobs, newest first")
    async def jobs(
        _: DatasetsRead,
        kind: str | None = None,
        owner: str | None = None,
        state: State | None = None,
        limit: Limit = 100,
        cursor: str | None = None,
    ) -> JobsOut:
        """Exports, training and whatever else takes its time."""
        page, following = runner.page(kind=kind, owner=owner, state=state, limit=limit, cursor=cursor)
        items = await asyncio.to_thread(lambda: [shown(runner, job) for job in page])
        return JobsOut(items=items, next_cursor=following)

    @routes.get("/{job_id}", summary="Show a job")
    async def one(_: DatasetsRead, job_id: str) -> JobOut:
        """State, progress and, when it failed, why."""
        job = runner.get(job_id)
        return shown(runner, job, spec=runner.spec(job_id))

    @routes.get("/{job_id}/log", summary="Read a job's log", response_class=FileResponse)
    async def log(_: DatasetsRead, job_id: str) -> FileResponse:
        """Plain text so far; `Range: bytes=-2000` is its end."""
        return FileResponse(runner.log(job_id), media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})

    @routes.delete("/{job_id}", status_code=202, summary="Cancel a job")
    async def cancel(who: DatasetsRead, job_id: str) -> JobOut:
        """It ends soon after; what it made is removed."""
        job = runner.get(job_id)
        check_may_end(who, job)
        job = await runner.cancel(job_id)
        await note(audit, who.id, "jobs.cancel", job_id, kind=job.kind)
        return shown(runner, job)

    return routes


def owner(who: Principal) -> Owner:
    """Return whose a job is that `who` starts: a person is one, however many keys that person has."""
    return Owner(id=who.id, name=who.name, person=f"user:{who.user}" if who.user else MASTER.id)


def check_may_end(who: Principal, job: Job) -> None:
    """Let through who may cancel or remove a job.

    :raises ForbiddenError: for everybody but who started it, the person behind that (not by another key, which may be one that is only
        to read), and administrators.
    """
    is_person = who.kind is not PrincipalKind.KEY and owner(who).person == job.whose
    if who.id != job.owner and not is_person and not who.may(Permission.USERS_MANAGE):
        raise ForbiddenError("only who started a job, or an administrator, ends or removes it", permission=Permission.USERS_MANAGE.value)


def shown(runner: Runner, job: Job, *, spec: dict[str, Any] | None = None) -> JobOut:
    """Return a job as the API shows it. Reads a small file."""
    return JobOut(
        id=job.id,
        kind=job.kind,
        state=job.state,
        owner=job.owner_name,
        created_at=_utc(job.created_ns),
        started_at=_time(job.started_ns),
        ended_at=_time(job.ended_ns),
        expires_at=_time(job.expires_ns),
        attempts=job.attempts,
        progress=_progress(runner.progress(job.id), job),
        error=dict(job.error) if job.error else None,
        spec=spec,
    )


def _progress(progress: Progress | None, job: Job) -> ProgressOut | None:
    if progress is None:
        return None
    share = min(1.0, progress.done / progress.total) if progress.total else float(job.state is State.SUCCEEDED)
    remaining_s = None
    if job.state is State.RUNNING and 0 < share < 1:
        remaining_s = round((now_ns() - job.started_ns) / _NS * (1 - share) / share, 1)
    return ProgressOut(
        done=progress.done,
        total=progress.total,
        share=round(share, 4),
        remaining_s=remaining_s,
        note=progress.note,
        at=_utc(progress.at_ns),
        figures=dict(progress.figures),
    )


def _utc(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / _NS, UTC)


def _time(ns: int) -> datetime | None:
    return _utc(ns) if ns else None
