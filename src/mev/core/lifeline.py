"""Children that the kernel ends with the process that started them, however that one ends.

As a script, ``python -I -S lifeline.py PARENT_PID COMMAND...``, it ties itself and becomes the command, for programs that know nothing of
this. Between fork and exec no Python may run in a process with threads, so it is done behind the exec.

The kernel looks at the *thread* that started the child: one that ends sooner takes the child with it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """End this process at once when the one that started it, `parent`, is gone; where the kernel cannot, do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def main() -> None:
    """Become the command, tied."""
    parent, *command = sys.argv[1:]
    end_with(int(parent))
    os.execv(command[0], command)  # noqa: S606 - there is no shell that could misread it


if __name__ == "__main__":
    main()
