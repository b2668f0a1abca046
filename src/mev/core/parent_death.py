"""Child processes that the kernel kills when their parent ends, however it ends.

Run as a script (``python -I -S parent_death.py PARENT_PID COMMAND...``), it sets the parent-death
signal and then executes the command, for programs without support for it. It runs after exec
because no Python code may run between fork and exec in a process with threads.

The signal follows the *thread* that started the child: the child is killed when that thread ends.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Exit if `parent` has ended; on Linux, have the kernel kill this process when it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent has ended already
        os._exit(1)


def main() -> None:
    """Set the parent-death signal and execute the command."""
    parent, *command = sys.argv[1:]
    end_with(int(parent))
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
