"""Opportunities as feature rows, and their scores by the production model, in batches."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mev.agent.active_models import ModelInRole
from mev.scoring.predictor import Rows, Scores
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.events_pb2 import Opportunity

LOG = logging.getLogger(__name__)
MOST_ROWS = 256
_WIDTH = len(OPPORTUNITY.names)


@dataclass(frozen=True, slots=True)
class ScoredOpportunities:
    """Opportunities and their scores, NaN if missing; `model_id` is empty without a model."""

    opportunities: Sequence[Opportunity]
    scores: Scores
    model_id: str = ""

    def each(self) -> list[float | None]:
        """Return the scores for the strategy, with None for NaN."""
        return [None if math.isnan(score) else score for score in self.scores.tolist()]


def score(place: ModelInRole, opportunities: Sequence[Opportunity]) -> ScoredOpportunities:
    """Return the scores of up to :data:`MOST_ROWS` opportunities by the model in `place`."""
    scores = np.full(len(opportunities), np.nan, np.float32)
    if place.active_model.model is None or not opportunities:
        return ScoredOpportunities(opportunities, scores)
    fit, rows = _rows(opportunities)
    place.unfit += len(opportunities) - len(rows)
    try:
        found = place.active_model.score(rows) if len(rows) else None
        if found is None:
            return ScoredOpportunities(opportunities, scores)
        scores[fit] = found.scores
    except Exception:  # exceptions of a model must not end the agent
        place.failed += len(rows)
        if not place.broken:  # log only the first error
            place.broken = True
            LOG.exception("a model does not score", extra={"action": "model_failed"})
        return ScoredOpportunities(opportunities, scores)
    return ScoredOpportunities(opportunities, scores, found.model_id)


def _rows(opportunities: Sequence[Opportunity]) -> tuple[NDArray[np.intp], Rows]:
    """Return the indexes of opportunities with the model's features, and these features."""
    fit = [
        index
        for index, one in enumerate(opportunities)
        if one.feature_schema == OPPORTUNITY.name and len(one.features) == _WIDTH
    ]
    # As lists: numpy reads a repeated field element by element ten times as slowly.
    rows = np.array([opportunities[index].features[:] for index in fit], np.float32).reshape(
        -1, _WIDTH
    )
    return np.array(fit, np.intp), rows
