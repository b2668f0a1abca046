"""Opportunities as rows of numbers, and what the model that decides says of them: all of a batch at once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mev.agent.seats import Place
from mev.predict.predictor import Rows, Scores
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.events_pb2 import Opportunity

LOG = logging.getLogger(__name__)
MOST_ROWS = 256
_WIDTH = len(OPPORTUNITY.names)


@dataclass(frozen=True, slots=True)
class Scored:
    """Opportunities and their scores, NaN where there is none; without a `model_id` no model was there."""

    opportunities: Sequence[Opportunity]
    scores: Scores
    model_id: str = ""

    def each(self) -> list[float | None]:
        """Return the scores as a strategy gets them."""
        return [None if score != score else score for score in self.scores.tolist()]  # noqa: PLR0124 - NaN differs from itself


def score(place: Place, opportunities: Sequence[Opportunity]) -> Scored:
    """Return what the model in `place` says of up to :data:`MOST_ROWS` opportunities."""
    scores = np.full(len(opportunities), np.nan, np.float32)
    if place.seat.model is None or not opportunities:
        return Scored(opportunities, scores)
    fit, rows = _rows(opportunities)
    place.unfit += len(opportunities) - len(rows)
    try:
        found = place.seat.score(rows) if len(rows) else None
        if found is None:
            return Scored(opportunities, scores)
        scores[fit] = found.scores
    except Exception:  # whatever a model of somebody's own does must not end the agent
        place.failed += len(rows)
        if not place.broken:  # the first time says it
            place.broken = True
            LOG.exception("a model does not score", extra={"action": "model_failed"})
        return Scored(opportunities, scores)
    return Scored(opportunities, scores, found.model_id)


def _rows(opportunities: Sequence[Opportunity]) -> tuple[NDArray[np.intp], Rows]:
    """Return which opportunities carry the features that models know, and these features."""
    fit = [index for index, one in enumerate(opportunities) if one.feature_schema == OPPORTUNITY.name and len(one.features) == _WIDTH]
    # As lists: numpy takes ten times as long to read the numbers of a message one by one.
    rows = np.array([opportunities[index].features[:] for index in fit], np.float32).reshape(-1, _WIDTH)
    return np.array(fit, np.intp), rows
