"""Small disks for tests of what happens when one is full."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from tests.services import require


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an empty disk of `size_bytes` at `path`; the test needs root."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        require("only root mounts a small disk")
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        require(f"no small disk can be mounted: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """Write a file that leaves `leave_bytes` free, and return it."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as ballast:
        while (left := shutil.disk_usage(disk).free - leave_bytes) > 0 and _write(ballast, left):
            """What others freed or took in the meantime counts too."""
    return path


def _write(file: FileIO, count: int) -> bool:
    """Write `count` zeros, or as many as the disk takes; False when it takes none."""
    try:
        return bool(file.write(bytes(count)))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
