"""Runs jobs: as many of a kind at once as it declares, oldest first. Belongs to one event loop and one data folder.

Every change of state is on the disk before the next one. At a start, what ran before is taken up again when its kind can be, and fails
with a reason otherwise. What a job has made counts once it has succeeded; until then, and after any other end, there is no output.
"""

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mev.core.clock import now_ns
from mev.core.ids import new_id
from mev.jobs.announce import Announce, no_announcement
from mev.jobs.errors import (
    InvalidCursorError,
    JobBrokenError,
    JobEndedError,
    JobLostError,
    JobNotEndedError,
    UnknownJobError,
    UnknownKindError,
)
from mev.jobs.folder import JobFolders
from mev.jobs.model import Job, Kind, Owner, Progress, Spec, State
from mev.jobs.worker import ChildWorker, Outcome, Task, ThreadWorker, Worker

LOG = logging.getLogger(__name__)
MAX_ATTEMPTS = 3
_EXPIRY_PAUSE_S = 60.0
_ANNOUNCE_PAUSE_S = 1.0
_NS = 1_000_000_000
First = Callable[[str], Awaitable[object]]
"""Hears the id of a job before there is one; when it raises, there is none."""


class Runner:
    """The jobs of a data folder. `announce` hears of every change of a state, and of progress now and then."""

    def __init__(self, path: Path, kinds: Iterable[Kind], *, announce: Announce = no_announcement, stop_timeout_s: float = 10.0) -> None:
        self._announce = announce
        self._folders = JobFolders(path)
        self._kinds = {kind.name: kind for kind in kinds}
        self._stop_timeout_s = stop_timeout_s
        self._jobs: dict[str, Job] = {}
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._closing = False
        threads = sum(kind.concurrency for kind in self._kinds.values() if kind.in_thread)
        self._executor = ThreadPoolExecutor(max(1, threads), "job")

    async def start(self) -> None:
        """Take up what is there."""
        for job in await asyncio.to_thread(lambda: list(self._folders.read_all())):
            self._jobs[job.id] = job
            if self._is_over(job):
                await self._forget(job)
            if not job.state.ended:
                await self._settle(job)
        self._pump()

    async def close(self) -> None:
        """Stop the work; what can be resumed is, at the next start."""
        self._closing = True
        for worker in self._workers.values():
            worker.kill()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._stop_timeout_s)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def submit(self, kind: str, spec: Spec, *, owner: Owner | str, first: First | None = None) -> Job:
        """Accept a job: once this returns, it is done some day, whatever happens to this process.

        :raises UnknownKindError: when nobody does such work.
        """
        if kind not in self._kinds:
            raise UnknownKindError(f"no kind of job {kind!r}; there are {', '.join(self._kinds)}", known=list(self._kinds))
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
            state=State.QUEUED,
            created_ns=now_ns(),
        )
        await asyncio.to_thread(self._folders.create, job, spec)
        self._jobs[job.id] = job
        self._announce(job, None)
        self._pump()
        return self._jobs[job.id]

    def get(self, job_id: str) -> Job:
        """Return a job.

        :raises UnknownJobError: when there is none, or none any longer.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise UnknownJobError(f"no job {job_id}; jobs are removed some time after their end") from None

    def jobs(
        self, *, kind: str | None = None, owner: str | None = None, state: State | None = None, person: str | None = None
    ) -> list[Job]:
        """Return those jobs, newest first."""
        newest = sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)
        found = [job for job in newest if kind in {None, job.kind} and owner in {None, job.owner} and state in {None, job.state}]
        return [job for job in found if person in {None, job.whose}]

    def page(
        self, *, kind: str | None = None, owner: str | None = None, state: State | None = None, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Job], str | None]:
        """Return up to `limit` of those jobs after `cursor`, newest first, and where the next page starts."""
        if cursor is not None and len(cursor) != len(new_id()):
            raise InvalidCursorError("cursor: not one of this list; start again without it", parameter="cursor")
        found = [job for job in self.jobs(kind=kind, owner=owner, state=state) if cursor is None or job.id < cursor]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def spec(self, job_id: str) -> dict[str, Any]:
        """Return what a job was asked to do, as far as everybody may see it. Blocks a little."""
        kind, spec = self._kinds.get(self.get(job_id).kind), self._folders.spec(job_id)
        shown = kind.shows if kind else frozenset[str]()
        return {name: value for name, value in spec.items() if shown is None or name in shown}

    def progress(self, job_id: str) -> Progress | None:
        """Return how far a job is. Blocks a little."""
        return self._folders.progress(self.get(job_id).id)

    def log(self, job_id: str) -> Path:
        """Return the file of a job's log."""
        return self._folders.log(self.get(job_id).id)

    def output(self, job_id: str) -> Path:
        """Return where a job puts its files; they count once it has succeeded."""
        job = self.get(job_id)
        kind = self._kinds.get(job.kind)
        return kind.outputs / job.id if kind and kind.outputs else self._folders.of(job.id) / "output"

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to end.

        :raises JobEndedError: when it has.
        """
        job = self.get(job_id)
        if job.state.ended:
            raise JobEndedError(f"the job has ended already: {job.state}", state=job.state)
        if job.state is State.QUEUED:
            await self._end(job, Outcome(state=State.CANCELLED))
        elif job.state is State.RUNNING:
            await self._write(replace(job, state=State.CANCELLING))
            if worker := self._workers.get(job_id):
                worker.cancel()
        return self._jobs[job_id]

    async def remove(self, job_id: str) -> Job:
        """Remove a job that has ended, with all that it made, and return what it was.

        :raises JobNotEndedError: when it waits or runs; cancel it.
        :raises UnknownJobError: when there is none, or somebody else has removed it.
        """
        job = self.get(job_id)
        if not job.state.ended:
            raise JobNotEndedError(f"the job is {job.state}; cancel it first", state=job.state)
        if task := self._tasks.get(job_id):
            await asyncio.wait({task})
        async with self._writing:
            self.get(job_id)
            # From here on it is over: what a crash leaves of it goes at the next start.
            await asyncio.to_thread(self._folders.write, replace(job, expires_ns=1))
        await self._forget(job)
        return job

    async def wait(self, job_id: str) -> Job:
        """Return a job when it has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.get(job_id).state.ended)
        return self.get(job_id)

    async def expire(self) -> None:
        """Remove, now and then, what has been there long enough; for ever."""
        while True:
            for job in [job for job in self._jobs.values() if self._is_over(job)]:
                await self._forget(job)
            await asyncio.sleep(_EXPIRY_PAUSE_S)

    async def watch(self) -> None:
        """Announce the progress of what runs, once a second where there is any; for ever."""
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(_ANNOUNCE_PAUSE_S)
            running = [*self._workers]
            found = await asyncio.to_thread(lambda ids: {job_id: self._folders.progress(job_id) for job_id in ids}, running)
            for job_id, progress in found.items():
                job = self._jobs.get(job_id)
                if job is not None and not job.state.ended and progress is not None and told.get(job_id) != progress.at_ns:
                    self._announce(job, progress)
            told = {job_id: progress.at_ns for job_id, progress in found.items() if progress is not None}

    def _is_over(self, job: Job) -> bool:
        return job.state.ended and job.expires_ns < now_ns()

    async def _forget(self, job: Job) -> None:
        if job.id not in self._jobs:
            return
        output = self.output(job.id)
        del self._jobs[job.id]  # first: nobody is to see half of its files
        await asyncio.to_thread(shutil.rmtree, output, ignore_errors=True)
        async with self._writing:
            await asyncio.to_thread(self._folders.remove, job.id)

    def _discard(self, job: Job) -> None:
        shutil.rmtree(self.output(job.id), ignore_errors=True)

    async def _settle(self, job: Job) -> None:
        kind = self._kinds.get(job.kind)
        if job.state is State.CANCELLING:
            await self._end(job, Outcome(state=State.CANCELLED))
        elif kind is None:
            await self._end(job, _lost(f"nobody does jobs of kind {job.kind} any longer"))
        elif job.state is State.RUNNING and not kind.resumable:
            await self._end(job, _lost("the system stopped while the job ran; start the job again"))
        elif job.state is State.RUNNING:
            await self._again(job, _lost("the system stopped while the job ran"))

    async def _again(self, job: Job, outcome: Outcome) -> None:
        if job.attempts < MAX_ATTEMPTS:
            LOG.warning("job %s is taken up again: %s", job.id, outcome.error, extra={"action": "job_resumed"})
            await self._write(replace(job, state=State.QUEUED))
        else:
            await self._end(job, replace(outcome, error={**(outcome.error or {}), "attempts": job.attempts}))

    def _pump(self) -> None:
        """Start what may run now."""
        if self._closing:
            return
        busy = Counter(self._jobs[job_id].kind for job_id in self._tasks)
        for job in sorted((job for job in self._jobs.values() if job.state is State.QUEUED), key=lambda job: job.id):
            kind = self._kinds[job.kind]
            if job.id not in self._tasks and busy[kind.name] < kind.concurrency:
                busy[kind.name] += 1
                self._tasks[job.id] = asyncio.create_task(self._run(job, kind), name=f"job {job.id}")

    async def _run(self, job: Job, kind: Kind) -> None:
        try:
            await self._attempt(job, kind)
        except Exception as error:  # whatever it is, a full disk above all: who asked hears of it, and the next job has its turn
            LOG.exception("job %s", job.id, extra={"action": "job_failed"})
            why: dict[str, object] = {"code": JobBrokenError.code, "detail": f"{type(error).__name__}: {error}"}
            self._jobs[job.id] = self._ended(self._jobs[job.id], Outcome(state=State.FAILED, error=why))
            self._announce(self._jobs[job.id], None)
        finally:
            del self._tasks[job.id]
            self._workers.pop(job.id, None)
            async with self._changed:
                self._changed.notify_all()
            self._pump()

    async def _attempt(self, job: Job, kind: Kind) -> None:
        job = self._jobs[job.id]
        if job.state is not State.QUEUED:  # cancelled before it began
            return
        job = replace(job, state=State.RUNNING, started_ns=job.started_ns or now_ns(), attempts=job.attempts + 1)
        await self._write(job)
        worker = self._workers[job.id] = await self._worker(job, kind)
        if self._jobs[job.id].state is State.CANCELLING:
            worker.cancel()
        outcome = await worker.run()
        if self._closing and outcome.state is not State.SUCCEEDED:
            return  # as after a crash: the next start decides
        job = self._jobs[job.id]
        if job.state is State.CANCELLING and outcome.state is not State.SUCCEEDED:
            outcome = Outcome(state=State.CANCELLED)
        if outcome.lost and kind.resumable:
            await self._again(job, outcome)
        else:
            await self._end(job, outcome)

    async def _worker(self, job: Job, kind: Kind) -> Worker:
        output = self.output(job.id)
        spec = await asyncio.to_thread(self._folders.spec, job.id)
        await asyncio.to_thread(lambda: output.mkdir(parents=True, exist_ok=True, mode=0o700))
        task = Task(kind=kind, spec=spec, folder=self._folders.of(job.id), output=output, log=self._folders.log(job.id))
        return ThreadWorker(task, self._executor) if kind.in_thread else ChildWorker(task)

    async def _end(self, job: Job, outcome: Outcome) -> None:
        if outcome.state is not State.SUCCEEDED:
            await asyncio.to_thread(self._discard, job)
        await self._write(self._ended(job, outcome))
        LOG.info("job %s (%s) %s", job.id, job.kind, outcome.state, extra={"action": "job_ended"})

    def _ended(self, job: Job, outcome: Outcome) -> Job:
        now, kind = now_ns(), self._kinds.get(job.kind)
        expires_ns = now + int((kind.expires_s if kind else 0.0) * _NS)
        return replace(job, state=outcome.state, ended_ns=now, expires_ns=expires_ns, error=outcome.error)

    async def _write(self, job: Job) -> None:
        self._jobs[job.id] = job
        async with self._writing:
            if (newest := self._jobs.get(job.id)) is None:  # it has ended, and was removed meanwhile
                return
            await asyncio.to_thread(self._folders.write, newest)
            progress = await asyncio.to_thread(self._folders.progress, job.id)
            self._announce(newest, progress)
        async with self._changed:
            self._changed.notify_all()


def _lost(detail: str) -> Outcome:
    error = JobLostError(detail)
    return Outcome(state=State.FAILED, error={"code": error.code, "detail": error.detail}, lost=True)


@asynccontextmanager
async def running(path: Path, kinds: Iterable[Kind], *, announce: Announce = no_announcement) -> AsyncIterator[Runner]:
    """Give the runner of the jobs in `path`; stop it at the end."""
    runner = Runner(path, kinds, announce=announce)
    await runner.start()
    beside = [asyncio.create_task(runner.expire(), name="job expiry"), asyncio.create_task(runner.watch(), name="job progress")]
    try:
        yield runner
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await runner.close()
