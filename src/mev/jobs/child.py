"""Child process of one job: ``python -m mev.jobs.child <job> <module:function> <runner's pid>``.

It works in its current folder and writes its results to ``output/``. The runner controls it through
standard input: the first line holds the spec and the confinement, ``cancel`` requests cancellation.
When standard input closes, the runner has ended, and this process kills its process group. On
Linux, the parent-death signal also kills a process that cannot read its input, such as a stopped
one. A lock on the folder prevents a second process from running the job at the same time.
"""

import contextlib
import fcntl
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from mev.core import confine, parent_death
from mev.core.errors import MevError
from mev.core.files import disk_full, write_atomically
from mev.jobs.context import Context
from mev.jobs.errors import CancelledJobError, JobBrokenError

LOG = logging.getLogger(__name__)
HEARTBEAT = "heartbeat"
ERROR = "error.json"
OUTPUT = "output"
FAILED = 1
CANCELLED = 3
DISK_FULL = 4
"""Exit code when the error cannot be written because the disk is full."""
_LOCK = "lock"
_LOCK_WAIT_S = 10.0
_BEAT_S = 1.0
_NICENESS = 10


def main() -> None:
    """Run the work; the exit code gives the outcome, ``error.json`` the reason."""
    folder, entry = Path(), sys.argv[2]
    given = orjson.loads(_first_line())
    confine.enter(given["confinement"])
    parent_death.end_with(int(sys.argv[3]))  # a change of the user undoes it
    os.nice(_NICENESS)  # the process that started it serves the kill switch
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(cancelled,), daemon=True).start()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    with _locked(folder):
        threading.Thread(target=_beat, args=(folder / HEARTBEAT,), daemon=True).start()
        try:
            (folder / OUTPUT).mkdir(exist_ok=True, mode=0o700)
            context = Context(
                given["spec"], folder, folder / OUTPUT, logging.getLogger("job"), cancelled.is_set
            )
            error = attempt(lambda: _find(entry)(context), folder.absolute(), LOG)
        except CancelledJobError:
            sys.exit(CANCELLED)
        sys.exit(_leave(folder, error) if error else 0)


def attempt(work: Callable[[], None], output: Path, log: logging.Logger) -> MevError | None:
    """Run `work`, which writes below `output`, and return its error, or None on success.

    :raises CancelledJobError: when it was cancelled.
    """
    try:
        work()
    except CancelledJobError:
        log.info("cancelled")
        raise
    except MevError as error:
        log.error("%s", error.detail)
        return error
    except Exception as error:
        if (full := disk_full(error, output)) is not None:
            log.error("%s", full.detail)
            return full
        log.exception("failed")
        return JobBrokenError(
            f"{type(error).__name__}: {str(error)[:500]}; the log of the job says where"
        )
    return None


def _leave(folder: Path, error: MevError) -> int:
    """Write the error to `folder` for the runner and return the exit code."""
    try:
        write_atomically(folder / ERROR, orjson.dumps({"code": error.code, "detail": error.detail}))
    except OSError as failure:
        LOG.error("the error cannot be written down: %s", failure)
        return DISK_FULL if disk_full(failure) else FAILED
    return FAILED


def _find(entry: str) -> Any:
    module, _, name = entry.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or sys.exit("the runner is gone")
    return line


def _listen(cancelled: threading.Event) -> None:
    while os.read(0, 64):
        cancelled.set()
    os.killpg(0, signal.SIGKILL)


def _beat(path: Path) -> None:
    while True:
        # on a full disk the work itself fails with the reason
        with contextlib.suppress(OSError):
            path.touch()
        time.sleep(_BEAT_S)


def _locked(folder: Path) -> Any:
    lock = (folder / _LOCK).open("a")
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                sys.exit("the process of an earlier attempt still runs")
            time.sleep(0.1)
        else:
            return lock


if __name__ == "__main__":
    main()
