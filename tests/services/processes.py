"""Child processes of this process, read from /proc; empty on other systems."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
# The interpreter keeps these for as long as it runs itself.
INTERPRETER_OWN = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


def children() -> set[int]:
    """Tell the process ids of this process's living children."""
    me = os.getpid()
    return {pid for pid, parent in _parents() if parent == me and not _is_interpreter_own(pid)}


def command_line(pid: int) -> str:
    """Give a process's command line, empty once it has ended."""
    return _command_line(pid).replace(b"\0", b" ").decode(errors="replace").strip()


def processes_with(word: str) -> list[int]:
    """Return the processes whose last argument is `word`."""
    return [
        int(entry.name)
        for entry in PROC.glob("[0-9]*")
        if _command_line(int(entry.name)).rstrip(b"\0").split(b"\0")[-1] == word.encode()
    ]


def left_over(known: set[int], patience_s: float = 20.0) -> set[int]:
    """Tell which children beyond `known` remain after they had `patience_s` to end."""
    deadline = time.monotonic() + patience_s
    while (found := children() - known) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def kill(pids: set[int]) -> None:
    """Kill processes, of which some may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _parents() -> Iterator[tuple[int, int]]:
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended since the listing
            # The name in parentheses may itself hold spaces and parentheses.
            state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state not in b"ZX":
                yield int(entry.name), int(parent)


def _is_interpreter_own(pid: int) -> bool:
    command = _command_line(pid)
    return any(name in command for name in INTERPRETER_OWN)


def _command_line(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
