"""Active model: hot-swappable, with usage statistics since the swap.

A batch is scored by one model, named in the result. Any thread may swap the model while others
score; they never wait for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mev.scoring.drift import Baseline, Drift
from mev.scoring.errors import WrongSchemaError
from mev.scoring.predictor import Latency, Predictor, Rows, Scores, Stopwatch, check_rows
from mev.wire.features import FeatureSchema

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Usage of a model since it became active; `digest` is the SHA-256 of its file in hex."""

    model_id: str
    digest: str
    since_ns: int
    scored: int
    """Rows that got a score."""
    failed: int
    """Rows that could not be scored."""
    latency: Latency
    mean_score: float
    """Mean of all scores; 0 before the first."""
    score_psi: float | None
    """PSI of the scores; None without a baseline or with too few rows."""
    feature_psi: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Scores of a batch, NaN where scoring failed, with the model that gave them."""

    model_id: str
    scores: Scores


class ActiveModel:
    """Scorer of rows of `schema` with an exchangeable model; `clock` returns nanoseconds."""

    def __init__(self, schema: FeatureSchema, clock: Callable[[], int]) -> None:
        self._schema = schema
        self._width = len(schema.names)
        self._clock = clock
        self._loaded: _LoadedModel | None = None

    def put(self, model: Predictor | None, baseline: Baseline | None = None) -> None:
        """Activate `model` from the next batch on, or none with None; reset the statistics.

        :raises WrongSchemaError: when the schema lacks a feature of the model, or the baseline is
            of another model.
        """
        self._loaded = (
            None
            if model is None
            else _LoadedModel(model, baseline, self._columns(model), self._clock())
        )

    @property
    def model(self) -> Predictor | None:
        """Return the model that scores the next batch."""
        loaded = self._loaded
        return None if loaded is None else loaded.model

    def score(self, table: Rows) -> ScoredBatch | None:
        """Return float32 scores of `table`, or None when there is no model.

        `table` has a column for each feature of the schema. Exceptions of the model are counted and
        logged, not raised.

        :raises WrongRowsError: when the table has another width or type.
        """
        loaded = self._loaded  # read once: one model scores the batch
        return (
            None
            if loaded is None
            else ScoredBatch(loaded.model.model_id, loaded.score(check_rows(table, self._width)))
        )

    def use(self) -> Use | None:
        """Return the usage of the active model, or None without a model."""
        loaded = self._loaded
        return None if loaded is None else loaded.use()

    def _columns(self, model: Predictor) -> NDArray[np.intp] | None:
        """Return the columns of the model's features, or None when they equal the schema."""
        if model.features == self._schema.names:
            return None
        if unknown := sorted(set(model.features) - set(self._schema.names)):
            raise WrongSchemaError(f"{self._schema.name} has no feature {', '.join(unknown)}")
        return np.array([self._schema.names.index(name) for name in model.features], np.intp)


class _LoadedModel:
    """A model with its counters."""

    def __init__(
        self,
        model: Predictor,
        baseline: Baseline | None,
        columns: NDArray[np.intp] | None,
        since_ns: int,
    ) -> None:
        if baseline is not None and tuple(baseline.features) != model.features:
            raise WrongSchemaError("the baseline is of other features than the model")
        self.model = model
        self._columns = columns
        self._since_ns = since_ns
        self._drift = None if baseline is None else Drift(baseline)
        self._stopwatch = Stopwatch()
        self._lock = threading.Lock()
        self._scored = self._failed = 0
        self._total = 0.0

    def score(self, table: Rows) -> Scores:
        rows = table if self._columns is None else np.take(table, self._columns, axis=1)
        started = time.perf_counter_ns()
        scores = self._predict(rows)
        self._stopwatch.add(time.perf_counter_ns() - started)
        finite = np.isfinite(scores)
        scored = int(np.count_nonzero(finite))
        if scored < len(scores):
            scores = np.where(finite, scores, np.float32(np.nan))
        total = float(
            np.nansum(scores, dtype=np.float64)
            if scored < len(scores)
            else np.add.reduce(scores, dtype=np.float64)
        )
        with self._lock:
            self._scored += scored
            self._failed += len(scores) - scored
            self._total += total
        if self._drift is not None:
            self._drift.add(rows, scores)
        return scores

    def use(self) -> Use:
        with self._lock:
            scored, failed, total = self._scored, self._failed, self._total
        return Use(
            model_id=self.model.model_id,
            digest=self.model.digest,
            since_ns=self._since_ns,
            scored=scored,
            failed=failed,
            latency=self._stopwatch.latency,
            mean_score=total / scored if scored else 0.0,
            score_psi=self._drift.scores() if self._drift else None,
            feature_psi=self._drift.features() if self._drift else {},
        )

    def _predict(self, rows: Rows) -> Scores:
        try:
            return self.model.predict(rows)
        except Exception:  # a failing model must not stop the agent
            if not self._failed:  # log only the first failure
                LOG.exception("model %s does not score", self.model.model_id)
            return np.full(len(rows), np.nan, np.float32)
