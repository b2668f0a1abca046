"""Supervised child processes, restarted when they exit or stop responding.

One thread per child: the kernel kills a child when the thread that started it ends
(:mod:`mev.core.parent_death`).
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prometheus_client import Counter

from mev.core import parent_death

LOG = logging.getLogger(__name__)
RESTARTS = Counter(
    "mev_child_restarts_total", "Times a child process was started again.", ["child"]
)
_FIRST_PAUSE_S = 0.1
_STEADY_S = 30.0
_STARTING_PROBE_S = 0.02
_LOG_BYTES = 1 << 20
_LAST_WORDS_BYTES = 2000
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_LIBRARY_PATH",
)


class ChildFailedError(Exception):
    """A child process did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child process: its command, folder, log file and health check.

    `is_well` is called in the supervisor's thread and must return within a bounded time. The
    child's output is written to `log`, to this process's standard error without one. Without
    `environment`, variables that could hold a secret are not passed to it; the file descriptors in
    `descriptors` are.
    """

    name: str
    command: Sequence[str]
    folder: Path
    log: Path | None
    is_well: Callable[[], bool]
    descriptors: tuple[int, ...] = ()
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Timeouts for starting, stopping and probing a child, and the longest restart delay."""

    start_s: float = 45.0
    stop_s: float = 10.0
    probe_s: float = 2.0
    hang_s: float = 10.0
    pause_max_s: float = 10.0


class Supervisor:
    """Keeps `child` running from :meth:`start` to :meth:`stop`.

    Thread-safe.
    """

    def __init__(self, child: Child, policy: RestartPolicy) -> None:
        self._child = child
        RESTARTS.labels(child.name)  # an alert needs the value before the first restart
        self._policy = policy
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._thread: threading.Thread | None = None
        self.restarts = 0
        self.problem: str | None = "not started"
        """Why the child is not healthy, None if it is."""

    @property
    def pid(self) -> int | None:
        """The child's process id, None while it is not running."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the child; block until it is healthy.

        :raises ChildFailedError: if it is not healthy in time; it is stopped then.
        """
        self._stopping.clear()
        self._started.clear()
        self.problem = "not started"
        thread = self._thread = threading.Thread(
            target=self._run, name=f"supervise-{self._child.name}", daemon=True
        )
        thread.start()
        deadline = time.monotonic() + self._policy.start_s
        while not self._started.wait(_STARTING_PROBE_S):
            if time.monotonic() > deadline or not thread.is_alive():
                said = self._last_words()
                self.stop()
                raise ChildFailedError(said)

    def stop(self) -> None:
        """Stop the child; block until it has exited."""
        self._stopping.set()
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
                process.send_signal(signal.SIGCONT)  # a stopped process handles no other signal
        if self._thread is not None:
            self._thread.join(self._policy.stop_s)
            if self._thread.is_alive() and (process := self._process) is not None:
                process.kill()
                self._thread.join(self._policy.stop_s)
        self.problem = "stopped"

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                reason = self._run_once()
            except OSError as error:
                reason = f"cannot be started: {error}"
            if self._stopping.is_set():
                return
            if not self._started.is_set():  # start() reports the first failure
                return
            if time.monotonic() - began > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            self.problem = f"{self._child.name} {reason}; it is started again"
            self.restarts += 1
            RESTARTS.labels(self._child.name).inc()
            LOG.error(
                "%s %s; it is started again in %.1f s",
                self._child.name,
                reason,
                pause_s,
                extra={"action": "child_restarted"},
            )
            self._stopping.wait(pause_s)
            pause_s = min(pause_s * 2, self._policy.pause_max_s)

    def _run_once(self) -> str:
        """Start the child and watch it; return why it ended."""
        process = self._process = self._spawn()
        try:
            return self._watch(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            self._process = None

    def _watch(self, process: "subprocess.Popen[bytes]") -> str:
        heard = time.monotonic()
        while True:
            is_starting = self.problem is not None
            if _ends_within(process, _STARTING_PROBE_S if is_starting else self._policy.probe_s):
                return f"ended with {_describe(process.wait())}: {self._last_words()}"
            if self._child.is_well():
                heard, self.problem = time.monotonic(), None
                if is_starting and self._started.is_set():
                    LOG.info(
                        "%s works, process %d",
                        self._child.name,
                        process.pid,
                        extra={"action": "child_works"},
                    )
                self._started.set()
            elif not self._stopping.is_set() and time.monotonic() - heard > (
                self._policy.start_s if is_starting else self._policy.hang_s
            ):
                return f"gave no answer for {time.monotonic() - heard:.1f} s"

    def _spawn(self) -> "subprocess.Popen[bytes]":
        child = self._child
        tied = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *child.command]
        environment = child.environment
        if environment is None:
            environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        with _open_log(child.log) as log:
            return subprocess.Popen(  # noqa: S603 - a command of this program
                tied,
                cwd=child.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=child.descriptors,
                start_new_session=True,  # we forward terminal interrupts, in order
            )

    def _last_words(self) -> str:
        if self._child.log is None:
            return "its last words are in the log"
        with contextlib.suppress(OSError, IndexError):
            return (
                self._child.log.read_bytes()[-_LAST_WORDS_BYTES:]
                .decode(errors="replace")
                .strip()
                .splitlines()[-1]
            )
        return "it said nothing"


def _open_log(path: Path | None) -> IO[bytes]:
    if path is None:
        return open(os.dup(sys.stderr.fileno()), "wb")  # noqa: PTH123 - a descriptor
    is_long = path.exists() and path.stat().st_size > _LOG_BYTES
    return path.open("wb" if is_long else "ab")


def _ends_within(process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
    """Return whether `process` ends in time; `Popen.wait` would poll 20 times a second."""
    descriptor = os.pidfd_open(process.pid)
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
