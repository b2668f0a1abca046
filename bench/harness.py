"""Rows and their measurement: alternating rounds, medians, and the spread of the ratio.

The load of a machine changes from second to second, so two figures are comparable only when
measured next to each other. Each round measures both sides, the next one in the opposite order, and
its ratio counts as one sample.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

Side = Callable[[], float]
"""Do one round's work and return how much of it was done in a second."""


class SkippedError(Exception):
    """A row cannot run here; the message says what is missing."""


class Clock(StrEnum):
    """Clock of a row: wall time, or CPU time of the measured process."""

    WALL = "wall"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a row, ready to run; `notes` returns further lines for the report."""

    baseline: Side
    ours: Side
    notes: Callable[["RowFigures"], Sequence[str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowInput:
    """Input of a row: a temporary folder and the options of the command line."""

    scratch: Path
    block: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison; `open` makes its two sides, or raises :class:`SkippedError`.

    `expected_cost_us` is the expected extra time per unit of work against the baseline,
    `expected_ms` the expected total time.
    """

    name: str
    unit: str
    ours: str
    baseline: str
    clock: Clock
    open: Callable[[RowInput], AbstractContextManager[Sides]]
    expected_ratio: float | None = None
    expected_rate: float | None = None
    expected_cost_us: float | None = None
    expected_ms: float | None = None


@dataclass(frozen=True, slots=True)
class RowFigures:
    """One row's figures of each round, in work per second, and its notes."""

    baseline: tuple[float, ...]
    ours: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def ratios(self) -> list[float]:
        """Our side as a share of the baseline, round by round."""
        return [ours / baseline for baseline, ours in zip(self.baseline, self.ours, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The range that holds the middle half of the ratios."""
        return middle_half(self.ratios)

    @property
    def costs_us(self) -> list[float]:
        """Return the extra microseconds per unit of work against the baseline, by round."""
        return [
            1e6 / ours - 1e6 / baseline
            for baseline, ours in zip(self.baseline, self.ours, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class RowResult:
    """Result of a row: its figures, or the reason why there are none."""

    row: Row
    figures: RowFigures | None = None
    reason: str = ""

    @property
    def as_expected(self) -> bool | None:
        """Return whether the figures meet the expectation, where there is one."""
        row, figures = self.row, self.figures
        if figures is None:
            return None
        rate = statistics.median(figures.ours)
        least = ((figures.ratio, row.expected_ratio), (rate, row.expected_rate))
        most = (
            (statistics.median(figures.costs_us), row.expected_cost_us),
            (1000 / rate, row.expected_ms),
        )
        kept = [found >= bound for found, bound in least if bound is not None] + [
            found <= bound for found, bound in most if bound is not None
        ]
        return all(kept) if kept else None


def measure(sides: Sides, rounds: int) -> RowFigures:
    """Run both sides `rounds` times, after one round that is not counted."""
    sides.baseline()
    sides.ours()
    baseline, ours = [], []
    for number in range(rounds):
        if number % 2:
            ours.append(sides.ours())
            baseline.append(sides.baseline())
        else:
            baseline.append(sides.baseline())
            ours.append(sides.ours())
    figures = RowFigures(tuple(baseline), tuple(ours))
    return replace(figures, notes=tuple(sides.notes(figures))) if sides.notes else figures


def rate(
    work: Callable[[], object], amount: int, *, clock: Clock, at_least_s: float = 0.4
) -> float:
    """Repeat `work`, which does `amount` per call, for `at_least_s`; return the rate per second."""
    now = time.perf_counter if clock is Clock.WALL else time.process_time
    started, done = now(), 0
    while (elapsed := now() - started) < at_least_s:
        work()
        done += amount
    return done / elapsed


def middle_half(samples: Sequence[float]) -> tuple[float, float]:
    """Return the range of the quartiles."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high
