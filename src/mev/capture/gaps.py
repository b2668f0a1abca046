"""Slots that the follower could not read, stored until they are read.

The list is a file in the data folder, replaced atomically before the position advances: after a
crash, either the position is before the slot, or the slot is in the list.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mev.capture.model import BadInputError
from mev.core.errors import UnavailableError
from mev.core.files import disk_full, write_atomically


class CaptureFileError(UnavailableError):
    """A capture file cannot be written."""

    code = "capture_file"


@dataclass(frozen=True, slots=True)
class SlotGap:
    """Missing slots from ``first`` to ``last`` (inclusive), with the reason."""

    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        slots = (
            f"slot {self.first} is"
            if self.first == self.last
            else f"slots {self.first} to {self.last} are"
        )
        return f"{slots} missing: {self.reason}"

    @property
    def slots(self) -> int:
        """Number of missing slots."""
        return self.last - self.first + 1


class Gaps:
    """Missing slots of one node in order; without a path, in memory only.

    Adjacent slots with the same reason are one gap.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._gaps: list[SlotGap] = _read(path) if path is not None else []

    def __iter__(self) -> Iterator[SlotGap]:
        return iter(tuple(self._gaps))

    @property
    def slots(self) -> int:
        """Number of missing slots."""
        return sum(gap.slots for gap in self._gaps)

    def add(self, gap: SlotGap) -> bool:
        """Add a gap; return False if it extends one with the same reason."""
        with self._changing():
            rest = [piece for each in self._gaps for piece in _without(each, gap.first, gap.last)]
            before = next(
                (each for each in rest if each.last == gap.first - 1 and each.reason == gap.reason),
                None,
            )
            if before is not None:
                rest.remove(before)
                gap = SlotGap(before.first, gap.last, gap.reason)
            self._gaps = sorted([*rest, gap], key=lambda each: each.first)
        return before is None

    def remove(self, first: int, last: int) -> None:
        """Remove slots that were read or have no block."""
        if any(gap.first <= last and first <= gap.last for gap in self._gaps):
            with self._changing():
                self._gaps = [piece for each in self._gaps for piece in _without(each, first, last)]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Lock, read and write the list: another process may follow or fill at the same time."""
        if self._path is None:
            yield
            return
        with _locked(self._path.parent):
            self._gaps = _read(self._path)
            yield
            rows = [
                {"first": gap.first, "last": gap.last, "reason": gap.reason} for gap in self._gaps
            ]
            replace_file(self._path, {"gaps": rows})


def replace_file(path: Path, value: dict[str, Any]) -> None:
    """Write a small JSON file atomically."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, orjson.dumps(value))
    except OSError as error:
        raise disk_full(error, path) or _refused(path, error) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> CaptureFileError:
    return CaptureFileError(
        f"{path}: {error.strerror or error}; give this user access to it, then run again",
        path=str(path),
    )


def _read(path: Path) -> list[SlotGap]:
    try:
        return [
            _gap(row["first"], row["last"], row["reason"])
            for row in orjson.loads(path.read_bytes())["gaps"]
        ]
    except FileNotFoundError:
        return []
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(
            f"not a list of gaps: {error}; move it away to go on without it", place=str(path)
        ) from None


def _gap(first: Any, last: Any, reason: Any) -> SlotGap:
    if not (
        isinstance(first, int)
        and isinstance(last, int)
        and isinstance(reason, str)
        and 0 <= first <= last
    ):
        raise ValueError(f"slots {first!r} to {last!r}")
    return SlotGap(first, last, reason)


def _without(gap: SlotGap, first: int, last: int) -> Iterator[SlotGap]:
    """Yield the parts of a gap outside the given slots."""
    if gap.first < first:
        yield SlotGap(gap.first, min(gap.last, first - 1), gap.reason)
    if gap.last > last:
        yield SlotGap(max(gap.first, last + 1), gap.last, gap.reason)
