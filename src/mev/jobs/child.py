"""``python -m mev.jobs.child <folder> <output> <module:function> <runner's pid>``: the work of one job in a process of its own.

Standard input is the tie to the runner: ``cancel`` asks for an end, and when it closes, the runner is gone and this process and what
it started end at once. The kernel ends a process that cannot listen, being stopped or held up. A lock on the folder keeps a second
one out until then.
"""

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

from mev.core import lifeline
from mev.core.errors import MevError
from mev.core.files import write_atomically
from mev.jobs.context import Context
from mev.jobs.errors import CancelledJobError, JobBrokenError

LOG = logging.getLogger(__name__)
HEARTBEAT = "heartbeat"
ERROR = "error.json"
CANCELLED = 3
FAILED = 1
_LOCK = "lock"
_LOCK_WAIT_S = 10.0
_BEAT_S = 1.0
_NICENESS = 10


def main() -> None:
    """Do the work; the exit code says how it ended, ``error.json`` why."""
    folder, output, entry = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    lifeline.end_with(int(sys.argv[4]))
    os.nice(_NICENESS)  # the process that started it serves the kill switch
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(cancelled,), daemon=True).start()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _locked(folder):
        threading.Thread(target=_beat, args=(folder / HEARTBEAT,), daemon=True).start()
        code = attempt(lambda: _work(folder, output, entry, cancelled.is_set), folder, LOG)
    sys.exit(code)


def attempt(work: Callable[[], None], folder: Path, log: logging.Logger) -> int:
    """Do `work` and return how it ended: 0, :data:`CANCELLED` or :data:`FAILED`, which leaves the problem in `folder`."""
    try:
        work()
    except CancelledJobError:
        log.info("cancelled")
        return CANCELLED
    except MevError as error:
        log.error("%s", error.detail)
        problem = error.problem()
    except Exception as error:
        log.exception("failed")
        problem = JobBrokenError(f"{type(error).__name__}: {str(error)[:500]}; the log of the job says where").problem()
    else:
        return 0
    write_atomically(folder / ERROR, orjson.dumps({name: problem[name] for name in ("code", "detail")}))
    return FAILED


def _work(folder: Path, output: Path, entry: str, is_cancelled: Callable[[], bool]) -> None:
    spec = orjson.loads((folder / "spec.json").read_bytes())
    _find(entry)(Context(spec, folder, output, logging.getLogger("job"), is_cancelled))


def _find(entry: str) -> Any:
    module, _, name = entry.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _listen(cancelled: threading.Event) -> None:
    while os.read(0, 64):
        cancelled.set()
    os.killpg(0, signal.SIGKILL)


def _beat(path: Path) -> None:
    while True:
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
