"""Drift of live features and scores against the held-out rows of the training.

Measured as population stability index (PSI) over shared buckets. Below 0.1 the distributions agree,
above 0.25 they do not. Missing values have their own bucket, so a feature that is suddenly absent
is detected too.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mev.core.errors import InvalidInputError
from mev.scoring.errors import BadManifestError
from mev.scoring.predictor import Rows, Scores

BUCKETS: Final = 10
WINDOW_ROWS: Final = 5_000
LEAST_ROWS: Final = 500
_MOST_EDGES = 32
_CHUNK = 256
_FLOOR = 1e-4
_LARGEST = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Distribution of one column: `shares` below, between and above the `edges`.

    A value at an edge counts above it. The shares and `missing`, the share of NaN, are of all rows
    and sum to 1.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    missing: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Distribution of each feature, in order, and of the scores over the held-out rows."""

    features: Mapping[str, Spread]
    scores: Spread

    @classmethod
    def of(cls, rows: Rows, scores: Scores, features: tuple[str, ...]) -> "Baseline":
        """Return the baseline of `rows`, with a column per feature, and of their `scores`."""
        if not len(rows) or rows.shape[1] != len(features) or len(scores) != len(rows):
            raise InvalidInputError(
                f"a baseline of rows {rows.shape} and {len(scores)} scores for {len(features)}"
                " features"
            )
        spreads = (_spread(column) for column in rows.T)
        return cls(features=dict(zip(features, spreads, strict=True)), scores=_spread(scores))

    @classmethod
    def from_json(cls, content: Any, features: tuple[str, ...]) -> "Baseline":
        """Return the baseline serialised by :meth:`to_json`, for a model with `features`.

        :raises BadManifestError: when it has other features or is malformed.
        """
        try:
            named = {one["name"]: _read(one) for one in content["features"]}
            scores = _read(content["scores"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadManifestError(f"the baseline is in no form that is read: {error}") from None
        if tuple(named) != features or len(content["features"]) != len(features):
            raise BadManifestError("the baseline is of other features than the model")
        return cls(features=named, scores=scores)

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as plain lists and numbers."""
        return {
            "features": [
                {"name": name, **_written(spread)} for name, spread in self.features.items()
            ],
            "scores": _written(self.scores),
        }


class Drift:
    """Drift of the latest 5,000 to 10,000 rows against a baseline; thread-safe.

    Rows are buffered and counted 256 at a time, in two successive windows; when the newer is full,
    the older is dropped.
    """

    def __init__(self, baseline: Baseline) -> None:
        spreads = (*baseline.features.values(), baseline.scores)
        self._names = tuple(baseline.features)
        self._expected = tuple(np.array((*spread.shares, spread.missing)) for spread in spreads)
        self._edges = np.full(
            (len(spreads), max(len(spread.edges) for spread in spreads), 1), np.nan, np.float32
        )
        for edges, spread in zip(self._edges, spreads, strict=True):
            edges[: len(spread.edges), 0] = spread.edges
        self._aside = np.empty((len(spreads), _CHUNK), np.float32)
        self._filled = 0
        self._rows = [0, 0]
        self._counts = [self._none(), self._none()]
        self._lock = threading.Lock()

    def add(self, rows: Rows, scores: Scores) -> None:
        """Add `rows`, with a column per feature of the baseline, and their `scores`.

        Rows are dropped while another thread holds the lock: scoring never waits for statistics.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            start = 0
            while start < len(rows):
                filled, taken = self._filled, min(len(rows) - start, _CHUNK - self._filled)
                self._aside[:-1, filled : filled + taken] = rows[start : start + taken].T
                self._aside[-1, filled : filled + taken] = scores[start : start + taken]
                self._filled, start = filled + taken, start + taken
                if self._filled == _CHUNK:
                    self._count()
        finally:
            self._lock.release()

    def features(self) -> dict[str, float]:
        """Return the PSI of each feature; empty before 500 rows."""
        return dict(zip(self._names, self._psi(), strict=False))

    def scores(self) -> float | None:
        """Return the PSI of the scores; None before 500 rows."""
        found = self._psi()
        return found[-1] if found else None

    def _none(self) -> NDArray[np.int64]:
        """Return zero counts: per column the number of values, and those at or above each edge."""
        return np.zeros((self._edges.shape[0], 1 + self._edges.shape[1]), np.int64)

    def _count(self) -> None:
        self._counts[1] += _cumulated(self._edges, self._aside[:, : self._filled])
        self._rows[1] += self._filled
        self._filled = 0
        if self._rows[1] >= WINDOW_ROWS:
            self._counts, self._rows = [self._counts[1], self._none()], [self._rows[1], 0]

    def _psi(self) -> list[float]:
        with self._lock:
            self._count()
            rows, counts = sum(self._rows), self._counts[0] + self._counts[1]
        if rows < LEAST_ROWS:
            return []
        expected = self._expected
        return [
            _distance(one, _shares(found, len(one) - 1, rows))
            for one, found in zip(expected, counts, strict=True)
        ]


def _spread(column: NDArray[np.float32]) -> Spread:
    edges = np.array(_edges(column[np.isfinite(column)]), np.float32)
    counts = _cumulated(edges[None, :, None], np.ascontiguousarray(column)[None])
    *shares, missing = _shares(counts[0], len(edges) + 1, len(column)).tolist()
    return Spread(edges=tuple(edges.tolist()), shares=tuple(shares), missing=missing)


def _edges(numbers: NDArray[np.float32]) -> list[float]:
    if not len(numbers):
        return []
    cuts = np.arange(1, BUCKETS) / BUCKETS
    edges: list[float] = np.unique(np.quantile(numbers, cuts, method="lower")).tolist()
    # An edge just above the maximum detects a constant feature that changes.
    above = edges[-1] + max(abs(edges[-1]) * 1e-6, _TINY)
    return [*edges, above] if edges[-1] == numbers.max() and above <= _LARGEST else edges


def _cumulated(edges: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return for each column the number of values, and those at or above each edge.

    No value reaches an edge of NaN.
    """
    present = np.sum(~np.isnan(columns), axis=1, keepdims=True, dtype=np.uint32)
    reached = np.sum((columns[:, None, :] >= edges).view(np.uint8), axis=2, dtype=np.uint32)
    return np.hstack([present, reached])


def _shares(cumulated: NDArray[Any], buckets: int, rows: int) -> NDArray[np.float64]:
    """Return the shares of the `buckets` and of missing values."""
    counts = cumulated[:buckets].astype(np.int64)
    return np.array([*(counts - np.append(counts[1:], 0)), rows - counts[0]]) / rows


def _distance(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return the PSI; a floor under empty buckets keeps it finite."""
    expected, found = (
        (shares + _FLOOR) / (1 + _FLOOR * len(shares)) for shares in (expected, found)
    )
    return float(np.sum((found - expected) * np.log(found / expected)))


def _written(spread: Spread) -> dict[str, Any]:
    return {"edges": list(spread.edges), "shares": list(spread.shares), "missing": spread.missing}


def _read(content: Mapping[str, Any]) -> Spread:
    edges, shares = (
        tuple(float(number) for number in content[name]) for name in ("edges", "shares")
    )
    missing = float(content["missing"])
    if len(edges) > _MOST_EDGES or len(shares) != len(edges) + 1:
        raise ValueError(f"{len(edges)} edges and {len(shares)} shares")
    if not all(abs(edge) <= _LARGEST for edge in edges) or any(
        low >= high for low, high in pairwise(edges)
    ):
        raise ValueError("edges that are not finite and rising")
    if not all(0 <= share <= 1 for share in (*shares, missing)) or not math.isclose(
        sum(shares) + missing, 1, abs_tol=1e-6
    ):
        raise ValueError("shares that are not together 1")
    return Spread(edges=edges, shares=shares, missing=missing)
