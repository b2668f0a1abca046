"""One attempt at a job: in a process of its own, or in a thread of this one."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from mev.core.errors import MevError
from mev.jobs import child
from mev.jobs.context import Context
from mev.jobs.errors import JobBrokenError, JobLostError, JobStuckError
from mev.jobs.model import Kind, Spec, State

_WATCH_S = 0.5
# Threads of OpenMP that wait for one another sleep: where other processes want the processors too, spinning slows a training many times.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. One that was `lost` may be worth another."""

    state: State
    error: dict[str, object] | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an attempt is at."""

    kind: Kind
    spec: Spec
    folder: Path
    output: Path
    log: Path


class Worker(Protocol):
    """Does one task, once."""

    async def run(self) -> Outcome:
        """Do it."""

    def cancel(self) -> None:
        """Ask for an end."""

    def kill(self) -> None:
        """End it now, where that can be done."""


class ChildWorker:
    """A process of its own, in a group of its own, that ends when this one does."""

    def __init__(self, task: Task, *, grace_s: float = GRACE_S) -> None:
        self._task = task
        self._grace_s = grace_s
        self._process: asyncio.subprocess.Process | None = None
        self._kill_at_s: float | None = None

    async def run(self) -> Outcome:
        """Do it, and clear up after it when it is killed."""
        task = self._task
        (task.folder / child.ERROR).unlink(missing_ok=True)
        arguments = ("-m", "mev.jobs.child", str(task.folder), str(task.output), task.kind.entry, str(os.getpid()))
        with task.log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=task.folder,
                env=_ENVIRONMENT | os.environ,
                start_new_session=True,
            )
        if self._kill_at_s is not None:
            self.cancel()
        stuck = await self._watch(process)
        self.kill()  # what it started and left behind
        return stuck or self._outcome(await process.wait())

    def cancel(self) -> None:
        """Ask for an end; it is killed when it takes too long."""
        self._kill_at_s = time.monotonic() + self._grace_s
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"cancel\n")

    def kill(self) -> None:
        """End it and what it started."""
        self._kill_at_s = 0.0
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _watch(self, process: asyncio.subprocess.Process) -> Outcome | None:
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
                error = JobStuckError(f"no sign of life for {silent_s:.0f} s; the process was ended")
                return Outcome(state=State.FAILED, error=_brief(error), lost=True)
            if self._kill_at_s is not None and time.monotonic() > self._kill_at_s:
                self.kill()

    def _last_sign_s(self, started_s: float) -> float:
        try:
            return max(started_s, (self._task.folder / child.HEARTBEAT).stat().st_mtime)
        except OSError:
            return started_s

    def _outcome(self, code: int) -> Outcome:
        if code == 0:
            return Outcome(state=State.SUCCEEDED)
        if code == child.CANCELLED:
            return Outcome(state=State.CANCELLED)
        if (error := _error_in(self._task.folder)) is not None:
            return Outcome(state=State.FAILED, error=error)
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; SIGKILL is what a machine out of memory sends" if -code == signal.SIGKILL else ""
            said = f"the process was ended by {name}{hint}"
        else:
            said = f"the process ended with {code}; its log may say why"
        return Outcome(state=State.FAILED, error=_brief(JobLostError(said)), lost=True)


class ThreadWorker:
    """A thread of this process; it ends when the work looks whether it is still wanted."""

    def __init__(self, task: Task, executor: Executor) -> None:
        self._task = task
        self._executor = executor
        self._cancelled = threading.Event()

    async def run(self) -> Outcome:
        """Do it."""
        task = self._task
        (task.folder / child.ERROR).unlink(missing_ok=True)
        code = await asyncio.get_running_loop().run_in_executor(self._executor, self._work)
        if code == 0:
            return Outcome(state=State.SUCCEEDED)
        if code == child.CANCELLED:
            return Outcome(state=State.CANCELLED)
        error = _error_in(task.folder) or _brief(JobBrokenError("the log of the job says why"))
        return Outcome(state=State.FAILED, error=error)

    def cancel(self) -> None:
        """Ask for an end."""
        self._cancelled.set()

    kill = cancel

    def _work(self) -> int:
        task, log = self._task, logging.Logger("job", logging.INFO)  # noqa: LOG001 - one of its own, that ends with the work
        handler = logging.FileHandler(task.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        context = Context(task.spec, task.folder, task.output, log, self._cancelled.is_set)
        try:
            return child.attempt(lambda: task.kind.run(context), task.folder, log)
        finally:
            handler.close()


def _brief(error: MevError) -> dict[str, object]:
    return {"code": error.code, "detail": error.detail}


def _error_in(folder: Path) -> dict[str, Any] | None:
    try:
        error: dict[str, Any] = orjson.loads((folder / child.ERROR).read_bytes())
    except (OSError, ValueError):
        return None
    return error
