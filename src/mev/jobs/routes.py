"""Routes under ``/api/jobs``."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel

from mev.auth.audit import AuditCallback, no_audit, note
from mev.auth.dependencies import DatasetsRead
from mev.auth.errors import ForbiddenError
from mev.auth.model import MASTER, Permission, Principal
from mev.auth.model import CredentialKind as PrincipalKind
from mev.core.clock import now_ns
from mev.core.query import QueryInt
from mev.jobs.model import Job, JobProgress, JobState, Owner
from mev.jobs.runner import Runner

_NS = 1_000_000_000
Limit = Annotated[QueryInt, Query(ge=1, le=1000)]


class ProgressOut(BaseModel):
    """Progress of a job, in its own units."""

    done: float
    total: float
    share: float
    remaining_s: float | None
    """Estimated remaining time; None when it is not running or has made no progress."""
    note: str
    at: datetime
    figures: dict[str, Any]


class JobOut(BaseModel):
    """A job."""

    id: str
    kind: str
    state: JobState
    owner: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    attempts: int
    progress: ProgressOut | None
    error: dict[str, Any] | None
    spec: dict[str, Any] | None = None
    """Spec of the job; only where one job is shown."""


class JobsOut(BaseModel):
    """A page of jobs."""

    items: list[JobOut]
    next_cursor: str | None


def router(runner: Runner, *, audit: AuditCallback = no_audit) -> APIRouter:
    """Return the routes of jobs.

    Every reader may list jobs; only the owner or an administrator may cancel one.
    """
    routes = APIRouter(prefix="/api/jobs", tags=["jobs"])

    @routes.get("", summary="List jobs, newest first")
    async def jobs(
        _: DatasetsRead,
        kind: str | None = None,
        owner: str | None = None,
        state: JobState | None = None,
        limit: Limit = 100,
        cursor: str | None = None,
    ) -> JobsOut:
        """Exports, training and other background work."""
        page, following = runner.page(
            kind=kind, owner=owner, state=state, limit=limit, cursor=cursor
        )
        items = await asyncio.to_thread(lambda: [shown(runner, job) for job in page])
        return JobsOut(items=items, next_cursor=following)

    @routes.get("/{job_id}", summary="Show a job")
    async def one(_: DatasetsRead, job_id: str) -> JobOut:
        """State, progress and, when it failed, the reason."""
        job = runner.get(job_id)
        return shown(runner, job, spec=runner.spec(job_id))

    @routes.get("/{job_id}/log", summary="Read a job's log", response_class=FileResponse)
    async def log(_: DatasetsRead, job_id: str) -> FileResponse:
        """The log so far as plain text; `Range: bytes=-2000` returns its end."""
        return FileResponse(
            runner.log(job_id),
            media_type="text/plain; charset=utf-8",
            headers={"Cache-Control": "no-store"},
        )

    @routes.delete("/{job_id}", status_code=202, summary="Cancel a job")
    async def cancel(who: DatasetsRead, job_id: str) -> JobOut:
        """The job ends soon after; its partial results are removed."""
        job = runner.get(job_id)
        check_may_end(who, job)
        job = await runner.cancel(job_id)
        await note(audit, who.id, "jobs.cancel", job_id, kind=job.kind)
        return shown(runner, job)

    return routes


def owner(who: Principal) -> Owner:
    """Return the owner for jobs that `who` starts; all keys of a person have one owner."""
    return Owner(id=who.id, name=who.name, person=f"user:{who.user}" if who.user else MASTER.id)


def check_may_end(who: Principal, job: Job) -> None:
    """Check that `who` may cancel or remove a job.

    :raises ForbiddenError: unless `who` started it, is logged in as the person behind it, or is an
        administrator. Another key of that person is not enough, since it may be read-only.
    """
    is_person = who.kind is not PrincipalKind.KEY and owner(who).person == job.whose
    if who.id != job.owner and not is_person and not who.may(Permission.USERS_MANAGE):
        raise ForbiddenError(
            "only who started a job, or an administrator, ends or removes it",
            permission=Permission.USERS_MANAGE.value,
        )


def shown(runner: Runner, job: Job, *, spec: dict[str, Any] | None = None) -> JobOut:
    """Return a job in the schema of the API. Reads a small file."""
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


def _progress(progress: JobProgress | None, job: Job) -> ProgressOut | None:
    if progress is None:
        return None
    share = (
        min(1.0, progress.done / progress.total)
        if progress.total
        else float(job.state is JobState.SUCCEEDED)
    )
    remaining_s = None
    if job.state is JobState.RUNNING and 0 < share < 1:
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
