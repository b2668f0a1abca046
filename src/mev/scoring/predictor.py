"""Common interface of loaded models, with latency statistics."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mev.scoring.errors import WrongRowsError

Rows: TypeAlias = NDArray[np.float32]
"""A row per item and a column per feature in the model's order; NaN is missing."""
Scores: TypeAlias = NDArray[np.float32]
"""A probability or value per row."""
_KEPT = 2048


class Scorer(Protocol):
    """A model in any form."""

    width: int

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        """Return a score for each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of the latest calls."""

    calls: int
    p50_us: float
    p99_us: float


class Stopwatch:
    """Recorder of the durations of the latest calls."""

    def __init__(self) -> None:
        self._calls = 0
        self._durations_ns: deque[int] = deque(maxlen=_KEPT)

    def add(self, duration_ns: int) -> None:
        """Record a call."""
        self._durations_ns.append(duration_ns)
        self._calls += 1

    @property
    def latency(self) -> Latency:
        """Return the number of calls and the latency of the latest ones."""
        kept = list(self._durations_ns)
        p50, p99 = (
            (float(value) / 1000 for value in np.percentile(kept, (50, 99))) if kept else (0.0, 0.0)
        )
        return Latency(calls=self._calls, p50_us=p50, p99_us=p99)


class Predictor:
    """A verified and loaded model with its features, file digest and latency."""

    def __init__(
        self, scorer: Scorer, *, model_id: str, digest: str, features: tuple[str, ...]
    ) -> None:
        self._score = scorer.predict
        self.model_id = model_id
        self.digest = digest
        self.features = features
        self._stopwatch = Stopwatch()

    def predict(self, rows: Rows) -> Scores:
        """Return the probability or value of each of `rows`.

        :raises WrongRowsError: when `rows` is not a float32 table of the model's width.
        """
        started = time.perf_counter_ns()
        scores = self._score(rows)
        self._stopwatch.add(time.perf_counter_ns() - started)
        return scores

    @property
    def latency(self) -> Latency:
        """Return the number of calls and the latency of the latest ones."""
        return self._stopwatch.latency


def check_rows(rows: Rows, width: int) -> Rows:
    """Return `rows` as a contiguous table.

    :raises WrongRowsError: when it is not a float32 table of `width` columns.
    """
    dtype = getattr(rows, "dtype", type(rows).__name__)
    if dtype != np.float32:
        raise WrongRowsError(f"rows of {dtype}; a numpy table of float32 is needed")
    if rows.ndim != 2 or rows.shape[1] != width:
        raise WrongRowsError(f"rows of shape {rows.shape}; the model has {width} features")
    return np.ascontiguousarray(rows)
