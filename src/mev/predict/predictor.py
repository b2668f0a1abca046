"""What every loaded model offers, whatever its form, and how long its answers took."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mev.predict.errors import WrongRowsError

Rows: TypeAlias = NDArray[np.float32]
"""A row for each thing to score, a column for each feature in the order of the model; NaN is a missing one."""
Scores: TypeAlias = NDArray[np.float32]
"""A probability, or a value, for each row."""
_KEPT = 2048


class Scorer(Protocol):
    """A model in some form."""

    width: int

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        """Return a score for each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the last calls took."""

    calls: int
    p50_us: float
    p99_us: float


class Stopwatch:
    """Keeps how long the latest calls took."""

    def __init__(self) -> None:
        self._calls = 0
        self._durations_ns: deque[int] = deque(maxlen=_KEPT)

    def add(self, duration_ns: int) -> None:
        """Keep a call."""
        self._durations_ns.append(duration_ns)
        self._calls += 1

    @property
    def latency(self) -> Latency:
        """The calls so far, and how long the latest of them took."""
        kept = list(self._durations_ns)
        p50, p99 = (float(value) / 1000 for value in np.percentile(kept, (50, 99))) if kept else (0.0, 0.0)
        return Latency(calls=self._calls, p50_us=p50, p99_us=p99)


class Predictor:
    """A model that was checked and loaded: its features in order, the digest of the file that scores, and the clock of its calls."""

    def __init__(self, scorer: Scorer, *, model_id: str, digest: str, features: tuple[str, ...]) -> None:
        self._score = scorer.predict
        self.model_id = model_id
        self.digest = digest
        self.features = features
        self._stopwatch = Stopwatch()

    def predict(self, rows: Rows) -> Scores:
        """Return the probability or the value of each of `rows`.

        :raises WrongRowsError: when the rows are no float32 table as wide as the model has features.
        """
        started = time.perf_counter_ns()
        scores = self._score(rows)
        self._stopwatch.add(time.perf_counter_ns() - started)
        return scores

    @property
    def latency(self) -> Latency:
        """The calls so far, and how long the latest of them took."""
        return self._stopwatch.latency


def check_rows(rows: Rows, width: int) -> Rows:
    """Return `rows` as a table whose numbers lie side by side.

    :raises WrongRowsError: when they are no float32 table of `width` columns.
    """
    dtype = getattr(rows, "dtype", type(rows).__name__)
    if dtype != np.float32:
        raise WrongRowsError(f"rows of {dtype}; a numpy table of float32 is needed")
    if rows.ndim != 2 or rows.shape[1] != width:
        raise WrongRowsError(f"rows of shape {rows.shape}; the model has {width} features")
    return np.ascontiguousarray(rows)
