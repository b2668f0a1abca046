"""A folder in the place of `/` for checks."""

from collections.abc import Mapping
from pathlib import Path

CPU = "sys/devices/system/cpu"
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max processes             {processes:<20} {processes:<20} processes
Max open files            {soft:<20} {hard:<20} files
"""


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below `root`, and return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def limits(*, soft: object = 65_536, hard: object = 65_536, processes: object = 9_999) -> str:
    """Return the text of `/proc/PID/limits`."""
    return LIMITS.format(soft=soft, hard=hard, processes=processes)
