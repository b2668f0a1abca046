"""A place for a model at work: it is exchanged under way, and says what the model in it has done since it came.

A batch is scored wholly by one model and says which. Any thread may exchange the model while others score; they never wait for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mev.predict.drift import Baseline, Drift
from mev.predict.errors import WrongSchemaError
from mev.predict.predictor import Latency, Predictor, Rows, Scores, Stopwatch, check_rows
from mev.wire.features import FeatureSchema

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a model has done since it came into its seat; `digest`, hex, is that of the file that scores."""

    model_id: str
    digest: str
    since_ns: int
    scored: int
    """Rows that got a score."""
    failed: int
    """Rows that got none."""
    latency: Latency
    mean_score: float
    """Of all rows that got a score; 0 before the first."""
    score_psi: float | None
    """See :mod:`mev.predict.drift`; None without a baseline, and while there are too few rows."""
    feature_psi: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a batch, NaN for rows that the model could not score, and the model that gave them."""

    model_id: str
    scores: Scores


class Seat:
    """Scores rows of `schema` with the model that is in it; `clock` gives the time in nanoseconds."""

    def __init__(self, schema: FeatureSchema, clock: Callable[[], int]) -> None:
        self._schema = schema
        self._width = len(schema.names)
        self._clock = clock
        self._sitter: _Sitter | None = None

    def put(self, model: Predictor | None, baseline: Baseline | None = None) -> None:
        """Let `model` score from the next batch on, nobody with None; counting begins again.

        :raises WrongSchemaError: when the model needs a feature that is not in the schema, or the baseline is of another model.
        """
        self._sitter = None if model is None else _Sitter(model, baseline, self._columns(model), self._clock())

    @property
    def model(self) -> Predictor | None:
        """The model that scores the next batch."""
        sitter = self._sitter
        return None if sitter is None else sitter.model

    def score(self, table: Rows) -> Scored | None:
        """Return the scores of `table`, float32, a column for each feature of the schema; None when there is no model.

        What the model raises is counted and logged, not raised.

        :raises WrongRowsError: when the table is of another width or type.
        """
        sitter = self._sitter  # taken once: whatever is put meanwhile, one model scores the batch
        return None if sitter is None else Scored(sitter.model.model_id, sitter.score(check_rows(table, self._width)))

    def use(self) -> Use | None:
        """Return what the model has done since it was put; None when there is none."""
        sitter = self._sitter
        return None if sitter is None else sitter.use()

    def _columns(self, model: Predictor) -> NDArray[np.intp] | None:
        """Return where the model's features stand in a row; None when they are the row."""
        if model.features == self._schema.names:
            return None
        if unknown := sorted(set(model.features) - set(self._schema.names)):
            raise WrongSchemaError(f"{self._schema.name} has no feature {', '.join(unknown)}")
        return np.array([self._schema.names.index(name) for name in model.features], np.intp)


class _Sitter:
    """A model, and what is counted of it."""

    def __init__(self, model: Predictor, baseline: Baseline | None, columns: NDArray[np.intp] | None, since_ns: int) -> None:
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
        total = float(np.nansum(scores, dtype=np.float64) if scored < len(scores) else np.add.reduce(scores, dtype=np.float64))
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
        except Exception:  # whatever the model does, the bot goes on without its score
            if not self._failed:  # the first time says it; a full log would not say more
                LOG.exception("model %s does not score", self.model.model_id)
            return np.full(len(rows), np.nan, np.float32)
