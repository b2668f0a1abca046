"""Replace this process by a server that the kernel kills with the thread that started it.

A script, not a `preexec_fn`: running Python between fork and exec is unsafe, and a warning, once a
client library has started threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run `launch.py PARENT_PID COMMAND...`."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the parent ended before its server started")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
