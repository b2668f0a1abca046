"""Description of the training environment: versions, processor, threads."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mev

_PACKAGES = (
    "numpy",
    "pyarrow",
    "xgboost-cpu",
    "xgboost",
    "treelite",
    "tl2cgen",
    "optuna",
    "dask",
    "distributed",
)


def threads() -> int:
    """Return the number of training threads: the processors available to this process."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, object]:
    """Return the properties that may differ between machines, as plain values."""
    return {
        "mev": mev.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": threads(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
