"""Child processes that end with the one that started them, whatever becomes of it."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec

_P = ParamSpec("_P")
_PR_SET_PDEATHSIG = 1
_END_S = 20.0

Pipe = Connection
"""One end of the pipe: Python objects, and `EOFError` when the other end is closed."""


@contextmanager
def child(
    target: Callable[Concatenate[Pipe, _P], None], *args: _P.args, **kwargs: _P.kwargs
) -> Iterator[Pipe]:
    """Run `target` in a new process with the other end of the pipe; it should end with the pipe."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_begin, args=(os.getpid(), far, target, args, kwargs))
    process.start()
    far.close()
    try:
        yield near
    finally:
        near.close()
        process.join(_END_S)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def wait_for_end(pipe: Pipe) -> None:
    """Return when the parent has closed its end."""
    with suppress(EOFError, OSError):
        pipe.recv()


def _begin(
    parent: int,
    pipe: Pipe,
    target: Callable[..., None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    # An interrupt goes to the whole group; the parent ends its children in their own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    target(pipe, *args, **kwargs)
