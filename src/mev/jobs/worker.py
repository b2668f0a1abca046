"""Execution of one attempt at a job, in a child process or in a thread."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import orjson

from mev.core import confine, plain
from mev.core.confine import Confinement
from mev.core.errors import MevError
from mev.core.files import DiskFullError
from mev.core.plain import UnsafeFileError
from mev.jobs import child
from mev.jobs.context import Context
from mev.jobs.errors import CancelledJobError, JobLostError, JobStuckError
from mev.jobs.folder import WORK
from mev.jobs.model import Given, JobKind, JobState, Spec

_WATCH_S = 0.5
_MAX_FILES = 1000
_MAX_BYTES = 2 << 30
_MAX_ERROR_BYTES = 1 << 16
_MAX_DETAIL = 2000
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NO_SPACE = "no space left on device; free space on that disk, then start the job again"
GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOutcome:
    """Outcome of an attempt; a `lost` one may be retried."""

    state: JobState
    error: dict[str, object] | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Input of an attempt."""

    kind: JobKind
    spec: Spec
    folder: Path
    output: Path
    log: Path


class Worker(Protocol):
    """Runner of a single task."""

    async def run(self) -> AttemptOutcome:
        """Run the task."""

    def cancel(self) -> None:
        """Request cancellation."""

    def kill(self) -> None:
        """Stop the task at once, where possible."""


class ChildWorker:
    """Child process in its own process group that ends with this process.

    The child is untrusted: it writes to its own folder, and this process copies the files from
    there.
    """

    def __init__(
        self, task: Task, executor: Executor, confinement: Confinement, *, grace_s: float = GRACE_S
    ) -> None:
        self._task = task
        self._parent = _ParentWork(task, executor)
        self._confinement = confinement
        self._work = task.folder / WORK
        self._grace_s = grace_s
        self._process: asyncio.subprocess.Process | None = None
        self._kill_at_s: float | None = None

    async def run(self) -> AttemptOutcome:
        """Run the task, and clean up when it is killed."""
        given: list[Given] = []
        outcome = await self._parent.do(lambda context: given.append(self._prepare(context)))
        if outcome.state is JobState.SUCCEEDED:
            outcome = await self._child(*given)
        if outcome.state is JobState.SUCCEEDED:
            outcome = await self._parent.do(self._finish)
        return outcome

    def _prepare(self, context: Context) -> Given:
        self._confinement.check()
        self._confinement.make_folder(self._work)
        (self._work / child.ERROR).unlink(missing_ok=True)
        prepare = self._task.kind.prepare
        given = prepare(context) if prepare else Given(spec=context.spec)
        for folder in given.folders.values():
            self._confinement.allow_reading(folder)
        return given

    def _finish(self, context: Context) -> None:
        plain.copy_all(
            self._work / child.OUTPUT, context.output, max_files=_MAX_FILES, max_bytes=_MAX_BYTES
        )
        shutil.rmtree(self._work / child.OUTPUT, ignore_errors=True)
        if finish := self._task.kind.finish:
            finish(context)

    async def _child(self, given: Given) -> AttemptOutcome:
        with self._confinement.temporary_folder("mev-job-", self._work) as temporary:
            return await self._process_of(given, temporary)

    async def _process_of(self, given: Given, temporary: Path) -> AttemptOutcome:
        task = self._task
        with ExitStack() as stack:
            log = stack.enter_context(task.log.open("ab"))
            folders = {
                name: stack.enter_context(_opened(path)) for name, path in given.folders.items()
            }
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(
                    "-P",
                    "-s",
                    "-m",
                    "mev.jobs.child",
                    task.folder.name,
                    task.kind.entry,
                    str(os.getpid()),
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._work,
                env=confine.environment(str(temporary)),
                pass_fds=tuple(folders.values()),
                start_new_session=True,
            )
        seen = {name: f"/proc/self/fd/{descriptor}" for name, descriptor in folders.items()}
        parameters = self._confinement.parameters(
            own=[temporary], read=tuple(seen.values()), tcp=given.network
        )
        self._say(orjson.dumps({"spec": {**given.spec, **seen}, "confinement": parameters}))
        if self._kill_at_s is not None:
            self.cancel()
        stuck = await self._watch(process)
        self._end()  # end processes that it left behind
        outcome = stuck or self._outcome(await process.wait())
        names = {seen[name]: str(path) for name, path in given.folders.items()}
        return replace(outcome, error=outcome.error and _renamed(outcome.error, names))

    def _say(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line + b"\n")

    def cancel(self) -> None:
        """Request cancellation; the process is killed after the grace period."""
        self._kill_at_s = time.monotonic() + self._grace_s
        self._parent.cancel()
        self._say(b"cancel")

    def kill(self) -> None:
        """Kill the process group."""
        self._kill_at_s = 0.0
        self._parent.cancel()
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _watch(self, process: asyncio.subprocess.Process) -> AttemptOutcome | None:
        ended = asyncio.create_task(process.wait())
        started_s = time.time()
        while True:
            done, _ = await asyncio.wait({ended}, timeout=_WATCH_S)
            if done:
                return None
            silent_s = time.time() - self._last_sign_s(started_s)
            if silent_s > self._task.kind.silent_s:
                self.kill()
                await ended
                error = JobStuckError(
                    f"no sign of life for {silent_s:.0f} s; the process was ended"
                )
                return AttemptOutcome(state=JobState.FAILED, error=_brief(error), lost=True)
            if self._kill_at_s is not None and time.monotonic() > self._kill_at_s:
                self.kill()

    def _last_sign_s(self, started_s: float) -> float:
        try:
            return max(started_s, (self._work / child.HEARTBEAT).lstat().st_mtime)
        except OSError:
            return started_s

    def _outcome(self, code: int) -> AttemptOutcome:
        if code == 0:
            return AttemptOutcome(state=JobState.SUCCEEDED)
        if code == child.CANCELLED:
            return AttemptOutcome(state=JobState.CANCELLED)
        if (error := _error_in(self._work)) is not None:
            return AttemptOutcome(state=JobState.FAILED, error=error)
        if code == child.DISK_FULL:
            return AttemptOutcome(
                state=JobState.FAILED,
                error=_brief(DiskFullError(f"{self._task.folder} cannot be written: {_NO_SPACE}")),
            )
        if code < 0:
            name = signal.Signals(-code).name
            hint = (
                "; SIGKILL is what a machine out of memory sends" if -code == signal.SIGKILL else ""
            )
            said = f"the process was ended by {name}{hint}"
        else:
            said = f"the process ended with {code}; its log may say why"
        return AttemptOutcome(state=JobState.FAILED, error=_brief(JobLostError(said)), lost=True)


class _JobLog(logging.FileHandler):
    """Log of a job; drops lines on a full disk, which the job's error reports."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _ParentWork:
    """Work in threads of this process; it ends when it checks for cancellation."""

    def __init__(self, task: Task, executor: Executor) -> None:
        self._task = task
        self._executor = executor
        self._cancelled = threading.Event()

    async def do(self, work: Callable[[Context], None]) -> AttemptOutcome:
        """Run `work`."""
        try:
            error = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._attempt, work
            )
        except CancelledJobError:
            return AttemptOutcome(state=JobState.CANCELLED)
        return (
            AttemptOutcome(state=JobState.FAILED, error=_brief(error))
            if error
            else AttemptOutcome(state=JobState.SUCCEEDED)
        )

    def cancel(self) -> None:
        """Request cancellation."""
        self._cancelled.set()

    def _attempt(self, work: Callable[[Context], None]) -> MevError | None:
        task, log = self._task, logging.Logger("job", logging.INFO)  # noqa: LOG001 - job-scoped
        handler = _JobLog(task.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        context = Context(task.spec, task.folder, task.output, log, self._cancelled.is_set)
        try:
            return child.attempt(lambda: work(context), task.output, log)
        finally:
            # the disk is full; the job's error reports it
            with contextlib.suppress(OSError):
                handler.close()


class ThreadWorker:
    """Thread of this process; it ends when the work checks for cancellation."""

    def __init__(self, task: Task, executor: Executor) -> None:
        self._task = task
        self._parent = _ParentWork(task, executor)

    async def run(self) -> AttemptOutcome:
        """Do it."""
        return await self._parent.do(self._task.kind.run)

    def cancel(self) -> None:
        """Ask for an end."""
        self._parent.cancel()

    kill = cancel


def _brief(error: MevError) -> dict[str, object]:
    return {"code": error.code, "detail": error.detail}


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _renamed(error: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """Return `error` with the child's descriptor paths replaced by the real paths of folders."""
    detail = str(error["detail"])
    for used, known in names.items():
        detail = detail.replace(used, known)
    return {**error, "detail": detail}


def _error_in(folder: Path) -> dict[str, object] | None:
    try:
        error = orjson.loads(plain.read(folder, child.ERROR, _MAX_ERROR_BYTES))
        code, detail = error["code"], error["detail"]
    except (OSError, UnsafeFileError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return None
    if code == DiskFullError.code:
        return _brief(DiskFullError(f"{folder} cannot be written: {_NO_SPACE}"))
    return {"code": code, "detail": str(detail)[:_MAX_DETAIL]}
