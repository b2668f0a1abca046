"""Checks of the disk of the data folder: free space and latency of fsync."""

import math
import os
import shutil
import tempfile
import time
from pathlib import Path

from mev.doctor.finding import Finding, State, judged, not_applicable

_WRITES, _BLOCK = 30, b"\0" * 4096
_LONGEST_S = 1.0
_SLOW_S, _TOO_SLOW_S = 0.010, 0.100
_LEAST_FREE_BYTES = 1 << 30
_LEAST_FREE_SHARE = 0.10


def existing(folder: Path) -> Path:
    """Return `folder`, or its nearest parent that exists."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


def measure_fsync(folder: Path) -> list[float]:
    """Return the seconds of writes of 4 KiB, each followed by fsync, in a file without a name.

    Stops after a second. Raises OSError if the folder cannot be written.
    """
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        ends = time.monotonic() + _LONGEST_S
        while len(taken) < _WRITES and time.monotonic() < ends:
            began = time.perf_counter()
            os.write(file.fileno(), _BLOCK)
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return taken


def quantile(values: list[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def check_fsync(folder: Path) -> Finding:
    """Measure fsync on the disk of the data folder."""
    place = existing(folder)
    try:
        taken = measure_fsync(place)
    except OSError as error:
        return Finding(
            name="Disk latency",
            state=State.PROBLEM,
            wanted=f"{place} can be written",
            found=f"{place} cannot be written: {error.strerror}",
            cost="`mev up` does not start",
            remedy="change its owner, or choose another folder with MEV_DATA_DIR",
        )
    return judge_fsync(taken, place)


def judge_fsync(taken: list[float], place: Path) -> Finding:
    """Return the finding of these latencies of fsync, in seconds."""
    median, high = quantile(taken, 0.5), quantile(taken, 0.9)
    return judged(
        "Disk latency",
        good=high <= _SLOW_S,
        wanted=f"fsync within {_SLOW_S * 1e3:.0f} ms (p90)",
        found=f"fsync p50 {median * 1e3:.2f} ms, p90 {high * 1e3:.2f} ms,"
        f" {len(taken)} writes in {place}",
        cost="each signed command and audit record waits for the disk",
        remedy="put MEV_DATA_DIR on a local SSD, apart from other writers",
        otherwise=State.PROBLEM if median > _TOO_SLOW_S else State.WARNING,
    )


def check_space(folder: Path) -> Finding:
    """Check the free space on the disk of the data folder."""
    try:
        usage = shutil.disk_usage(existing(folder))
    except OSError as error:
        return not_applicable("Disk space", f"it cannot be read: {error.strerror}")
    share = usage.free / usage.total if usage.total else 0.0
    return judged(
        "Disk space",
        good=usage.free >= _LEAST_FREE_BYTES and share >= _LEAST_FREE_SHARE,
        wanted=f"1 GiB and {_LEAST_FREE_SHARE:.0%} free or more",
        found=f"{usage.free / (1 << 30):.1f} GiB free, {share:.0%}",
        cost="on a full disk nothing is stored, and no change of configuration is recorded",
        remedy="free space, or choose another folder with MEV_DATA_DIR",
        otherwise=State.PROBLEM if usage.free < _LEAST_FREE_BYTES else State.WARNING,
    )
