"""Job runner: starts jobs oldest first, within the limit of each kind.

Confined to one event loop and one data folder. Every state change is on disk before the next one.
At start, jobs that were running are resumed where their kind allows it, and failed otherwise. The
output of a job is valid only after success; after any other end it is removed.
"""

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mev.core.clock import now_ns
from mev.core.confine import NOT_CONFINED, Confinement
from mev.core.files import disk_full
from mev.core.ids import new_id
from mev.core.paging import InvalidCursorError, page_of
from mev.jobs.announce import Announce, no_announcement
from mev.jobs.errors import (
    JobBrokenError,
    JobEndedError,
    JobLostError,
    JobNotEndedError,
    JobPinnedError,
    UnknownJobError,
    UnknownKindError,
)
from mev.jobs.folder import WORK, JobFolders
from mev.jobs.model import Job, JobKind, JobProgress, JobState, Owner, Spec
from mev.jobs.worker import AttemptOutcome, ChildWorker, Task, ThreadWorker, Worker

LOG = logging.getLogger(__name__)
MAX_ATTEMPTS = 3
_EXPIRY_PAUSE_S = 60.0
_ANNOUNCE_PAUSE_S = 1.0
_NS = 1_000_000_000
First = Callable[[str], Awaitable[object]]
"""Called with the job's id before the job exists; an exception prevents it."""


Pinned = Callable[[], Mapping[str, str]]
"""Returns the ids of retained jobs with the reason. Blocks briefly."""


def nothing_pinned() -> Mapping[str, str]:
    """Return no jobs."""
    return {}


class Runner:
    """Runner of the jobs in a data folder.

    `announce` is called with every state change and periodic progress. Jobs that are `pinned`
    neither expire nor can be removed. Child processes are isolated by `confinement`.
    """

    def __init__(
        self,
        path: Path,
        kinds: Iterable[JobKind],
        *,
        announce: Announce = no_announcement,
        pinned: Pinned = nothing_pinned,
        confinement: Confinement = NOT_CONFINED,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._announce = announce
        self._pinned = pinned
        self._confinement = confinement
        self._folders = JobFolders(path)
        self._kinds = {kind.name: kind for kind in kinds}
        self._stop_timeout_s = stop_timeout_s
        self._jobs: dict[str, Job] = {}
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._closing = False
        threads = sum(kind.concurrency for kind in self._kinds.values())
        self._executor = ThreadPoolExecutor(max(1, threads), "job")

    async def start(self) -> None:
        """Load the stored jobs and resume unfinished ones."""
        kept = await asyncio.to_thread(self._pinned)
        for job in await asyncio.to_thread(lambda: list(self._folders.read_all())):
            self._jobs[job.id] = job
            if self._is_over(job) and job.id not in kept:
                await self._forget(job)
            if not job.state.ended:
                await self._settle(job)
        self._pump()

    async def close(self) -> None:
        """Stop the work; resumable jobs continue at the next start."""
        self._closing = True
        for worker in self._workers.values():
            worker.kill()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._stop_timeout_s)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def submit(
        self, kind: str, spec: Spec, *, owner: Owner | str, first: First | None = None
    ) -> Job:
        """Accept a job; once this returns, it survives a crash of this process.

        :raises UnknownKindError: when the kind is not declared.
        """
        if kind not in self._kinds:
            raise UnknownKindError(
                f"no kind of job {kind!r}; there are {', '.join(self._kinds)}",
                known=list(self._kinds),
            )
        whose = owner if isinstance(owner, Owner) else Owner(id=owner, name=owner, person=owner)
        job_id = new_id()
        if first is not None:
            await first(job_id)
        job = Job(
            id=job_id,
            kind=kind,
            owner=whose.id,
            owner_name=whose.name,
            person=whose.person,
            state=JobState.QUEUED,
            created_ns=now_ns(),
        )
        await asyncio.to_thread(self._folders.create, job, spec)
        self._jobs[job.id] = job
        self._announce(job, None)
        self._pump()
        return self._jobs[job.id]

    def has(self, job_id: str) -> bool:
        """Return whether a job exists."""
        return job_id in self._jobs

    async def adopt(self, job: Job, spec: Spec, fill: Callable[[Path], None]) -> None:
        """Add a job that another system has finished; `fill` writes its output to a folder."""
        output = self._output(job)

        def write() -> None:
            output.mkdir(parents=True, exist_ok=True, mode=0o700)
            fill(output)

        await asyncio.to_thread(self._folders.create, job, spec, write)
        self._jobs[job.id] = job

    def get(self, job_id: str) -> Job:
        """Return a job.

        :raises UnknownJobError: when it does not exist or was removed.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise UnknownJobError(
                f"no job {job_id}; jobs are removed some time after their end"
            ) from None

    def jobs(
        self,
        *,
        kind: str | None = None,
        owner: str | None = None,
        state: JobState | None = None,
        person: str | None = None,
    ) -> list[Job]:
        """Return the matching jobs, newest first."""
        newest = sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)
        found = [
            job
            for job in newest
            if kind in {None, job.kind}
            and owner in {None, job.owner}
            and state in {None, job.state}
        ]
        return [job for job in found if person in {None, job.whose}]

    def page(
        self,
        *,
        kind: str | None = None,
        owner: str | None = None,
        state: JobState | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Return a page of matching jobs, newest first, and the next cursor."""
        if cursor is not None and len(cursor) != len(new_id()):
            raise InvalidCursorError
        found = [
            job
            for job in self.jobs(kind=kind, owner=owner, state=state)
            if cursor is None or job.id < cursor
        ]
        return page_of(found, limit, lambda job: job.id)

    def spec(self, job_id: str) -> dict[str, Any]:
        """Return the public part of a job's spec. Blocks briefly."""
        kind, spec = self._kinds.get(self.get(job_id).kind), self._folders.spec(job_id)
        shown = kind.shows if kind else frozenset[str]()
        return {name: value for name, value in spec.items() if shown is None or name in shown}

    def progress(self, job_id: str) -> JobProgress | None:
        """Return the progress of a job. Blocks briefly."""
        return self._folders.progress(self.get(job_id).id)

    def log(self, job_id: str) -> Path:
        """Return the path of a job's log."""
        return self._folders.log(self.get(job_id).id)

    def output(self, job_id: str) -> Path:
        """Return the output folder of a job; it is valid after success."""
        return self._output(self.get(job_id))

    def outputs(self, kind: str) -> Path:
        """Return the folder of the outputs of a kind; it may not exist yet."""
        return self._kinds[kind].outputs or self._folders.path

    async def cancel(self, job_id: str) -> Job:
        """Request the cancellation of a job.

        :raises JobEndedError: when it has ended.
        """
        job = self.get(job_id)
        if job.state.ended:
            raise JobEndedError(f"the job has ended already: {job.state}", state=job.state)
        if job.state is JobState.QUEUED:
            await self._end(job, AttemptOutcome(state=JobState.CANCELLED))
        elif job.state is JobState.RUNNING:
            await self._write(replace(job, state=JobState.CANCELLING))
            if worker := self._workers.get(job_id):
                worker.cancel()
        return self._jobs[job_id]

    async def remove(self, job_id: str) -> Job:
        """Remove an ended job with its output, and return it.

        :raises JobNotEndedError: when it is queued or running; cancel it first.
        :raises JobPinnedError: when its output is in use.
        :raises UnknownJobError: when it does not exist or was removed meanwhile.
        """
        job = self.get(job_id)
        if not job.state.ended:
            raise JobNotEndedError(f"the job is {job.state}; cancel it first", state=job.state)
        if reason := (await asyncio.to_thread(self._pinned)).get(job_id):
            raise JobPinnedError(f"the job is kept: {reason}", reason=reason)
        if task := self._tasks.get(job_id):
            await asyncio.wait({task})
        async with self._writing:
            self.get(job_id)
            # From here on it is expired: after a crash, the next start removes the rest.
            await asyncio.to_thread(self._folders.write, replace(job, expires_ns=1))
        await self._forget(job)
        return job

    async def wait(self, job_id: str) -> Job:
        """Return a job once it has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.get(job_id).state.ended)
        return self.get(job_id)

    async def expire(self) -> None:
        """Remove expired jobs periodically, until cancelled."""
        while True:
            over = [job for job in self._jobs.values() if self._is_over(job)]
            kept = await asyncio.to_thread(self._pinned) if over else {}
            for job in over:
                if job.id not in kept:
                    await self._forget(job)
            await asyncio.sleep(_EXPIRY_PAUSE_S)

    async def watch(self) -> None:
        """Announce the progress of running jobs once a second, until cancelled."""
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(_ANNOUNCE_PAUSE_S)
            running = [*self._workers]
            found = await asyncio.to_thread(
                lambda ids: {job_id: self._folders.progress(job_id) for job_id in ids}, running
            )
            for job_id, progress in found.items():
                job = self._jobs.get(job_id)
                if (
                    job is not None
                    and not job.state.ended
                    and progress is not None
                    and told.get(job_id) != progress.at_ns
                ):
                    self._announce(job, progress)
            told = {
                job_id: progress.at_ns for job_id, progress in found.items() if progress is not None
            }

    def _output(self, job: Job) -> Path:
        kind = self._kinds.get(job.kind)
        return (
            kind.outputs / job.id if kind and kind.outputs else self._folders.of(job.id) / "output"
        )

    def _is_over(self, job: Job) -> bool:
        return job.state.ended and job.expires_ns < now_ns()

    async def _forget(self, job: Job) -> None:
        if job.id not in self._jobs:
            return
        output = self.output(job.id)
        del self._jobs[job.id]  # first, so that no reader finds half of its files
        await asyncio.to_thread(shutil.rmtree, output, ignore_errors=True)
        async with self._writing:
            await asyncio.to_thread(self._folders.remove, job.id)

    def _discard(self, job: Job) -> None:
        shutil.rmtree(self.output(job.id), ignore_errors=True)
        shutil.rmtree(self._folders.of(job.id) / WORK, ignore_errors=True)

    async def _settle(self, job: Job) -> None:
        kind = self._kinds.get(job.kind)
        if job.state is JobState.CANCELLING:
            await self._end(job, AttemptOutcome(state=JobState.CANCELLED))
        elif kind is None:
            await self._end(job, _lost(f"the kind {job.kind} is not declared in this version"))
        elif job.state is JobState.RUNNING and not kind.resumable:
            await self._end(job, _lost("the system stopped while the job ran; start the job again"))
        elif job.state is JobState.RUNNING:
            await self._again(job, _lost("the system stopped while the job ran"))

    async def _again(self, job: Job, outcome: AttemptOutcome) -> None:
        if job.attempts < MAX_ATTEMPTS:
            LOG.warning(
                "job %s is taken up again: %s",
                job.id,
                outcome.error,
                extra={"action": "job_resumed"},
            )
            await self._write(replace(job, state=JobState.QUEUED))
        else:
            await self._end(
                job, replace(outcome, error={**(outcome.error or {}), "attempts": job.attempts})
            )

    def _pump(self) -> None:
        """Start the queued jobs that may run now."""
        if self._closing:
            return
        busy = Counter(self._jobs[job_id].kind for job_id in self._tasks)
        for job in sorted(
            (job for job in self._jobs.values() if job.state is JobState.QUEUED),
            key=lambda job: job.id,
        ):
            kind = self._kinds[job.kind]
            if job.id not in self._tasks and busy[kind.name] < kind.concurrency:
                busy[kind.name] += 1
                self._tasks[job.id] = asyncio.create_task(
                    self._run(job, kind), name=f"job {job.id}"
                )

    async def _run(self, job: Job, kind: JobKind) -> None:
        try:
            await self._attempt(job, kind)
        except Exception as error:  # fail this job, run the next
            LOG.exception("job %s", job.id, extra={"action": "job_failed"})
            await self._fail(job.id, error)
        finally:
            del self._tasks[job.id]
            self._workers.pop(job.id, None)
            async with self._changed:
                self._changed.notify_all()
            self._pump()

    async def _fail(self, job_id: str, error: Exception) -> None:
        """Fail a job after an error of the runner; on a full disk, remove its output first."""
        why = disk_full(error) or JobBrokenError(f"{type(error).__name__}: {error}")
        ended = self._ended(
            self._jobs[job_id],
            AttemptOutcome(state=JobState.FAILED, error={"code": why.code, "detail": why.detail}),
        )
        self._jobs[job_id] = ended
        await asyncio.to_thread(self._discard, ended)
        try:
            await self._write(ended)
        except OSError as failure:
            LOG.error(
                "job %s: its end cannot be written down: %s",
                job_id,
                failure,
                extra={"action": "job_failed"},
            )
            self._announce(ended, None)

    async def _attempt(self, job: Job, kind: JobKind) -> None:
        job = self._jobs[job.id]
        if job.state is not JobState.QUEUED:  # cancelled while queued
            return
        job = replace(
            job,
            state=JobState.RUNNING,
            started_ns=job.started_ns or now_ns(),
            attempts=job.attempts + 1,
        )
        await self._write(job)
        worker = self._workers[job.id] = await self._worker(job, kind)
        if self._closing:  # started while the others were stopped
            worker.kill()
        elif self._jobs[job.id].state is JobState.CANCELLING:
            worker.cancel()
        outcome = await worker.run()
        if self._closing and outcome.state is not JobState.SUCCEEDED:
            return  # as after a crash: the next start decides
        job = self._jobs[job.id]
        if job.state is JobState.CANCELLING and outcome.state is not JobState.SUCCEEDED:
            outcome = AttemptOutcome(state=JobState.CANCELLED)
        if outcome.lost and kind.resumable:
            await self._again(job, outcome)
        else:
            await self._end(job, outcome)

    async def _worker(self, job: Job, kind: JobKind) -> Worker:
        output = self.output(job.id)
        spec = await asyncio.to_thread(self._folders.spec, job.id)
        await asyncio.to_thread(lambda: output.mkdir(parents=True, exist_ok=True, mode=0o700))
        task = Task(
            kind=kind,
            spec=spec,
            folder=self._folders.of(job.id),
            output=output,
            log=self._folders.log(job.id),
        )
        return (
            ThreadWorker(task, self._executor)
            if kind.in_thread
            else ChildWorker(task, self._executor, self._confinement)
        )

    async def _end(self, job: Job, outcome: AttemptOutcome) -> None:
        if outcome.state is not JobState.SUCCEEDED:
            await asyncio.to_thread(self._discard, job)
        await self._write(self._ended(job, outcome))
        LOG.info("job %s (%s) %s", job.id, job.kind, outcome.state, extra={"action": "job_ended"})

    def _ended(self, job: Job, outcome: AttemptOutcome) -> Job:
        now, kind = now_ns(), self._kinds.get(job.kind)
        expires_ns = now + int((kind.expires_s if kind else 0.0) * _NS)
        return replace(
            job, state=outcome.state, ended_ns=now, expires_ns=expires_ns, error=outcome.error
        )

    async def _write(self, job: Job) -> None:
        self._jobs[job.id] = job
        async with self._writing:
            if (newest := self._jobs.get(job.id)) is None:
                # it has ended and was removed meanwhile
                return
            await asyncio.to_thread(self._folders.write, newest)
            progress = await asyncio.to_thread(self._folders.progress, job.id)
            self._announce(newest, progress)
        async with self._changed:
            self._changed.notify_all()


def _lost(detail: str) -> AttemptOutcome:
    error = JobLostError(detail)
    return AttemptOutcome(
        state=JobState.FAILED, error={"code": error.code, "detail": error.detail}, lost=True
    )
