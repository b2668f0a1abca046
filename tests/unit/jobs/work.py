"""Work of the test jobs: each ends when a file appears, so that a test decides when."""

import os
import signal
import subprocess
import time
from pathlib import Path

from mev.core.errors import InvalidInputError
from mev.jobs.context import Context


class NoSheepError(InvalidInputError):
    """There are no sheep."""

    code = "no_sheep"


def count(context: Context) -> None:
    """Count to `to`, resuming from an earlier attempt; at `wait_at`, wait for the file `gate`."""
    first = len(list(context.output.glob("sheep-*")))
    context.log.info("counting from %d", first)
    for number in range(first, context.spec["to"]):
        if number == context.spec.get("wait_at"):
            (context.folder / "waiting").write_text(str(os.getpid()))
            wait(context)
        (context.output / f"sheep-{number}").touch()
        context.progress(number + 1, context.spec["to"], "counting", per_s=1.5)


def show_priority(context: Context) -> None:
    own, child = os.nice(0), subprocess.run(["nice"], capture_output=True, check=True).stdout
    (context.output / "niceness").write_text(f"{own} {int(child)}")


def wait(context: Context) -> None:
    while not Path(context.spec["gate"]).exists():
        context.check()
        time.sleep(0.01)


def deaf(context: Context) -> None:
    """Hear nothing, with a child that hears nothing."""
    helper = subprocess.Popen(["sleep", "600"])
    (context.folder / "waiting").write_text(f"{os.getpid()} {helper.pid}")
    time.sleep(600)


def refuse(context: Context) -> None:
    (context.output / "half").touch()
    raise NoSheepError("no sheep in the meadow; bring some")


def stumble(context: Context) -> None:
    raise ZeroDivisionError("a stone")


def die(context: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(context: Context) -> None:
    """Write until the disk is full."""
    with (context.output / "sheep").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
