"""What is learned, what XGBoost is told to minimise or maximise for it, and what a validation may be judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Objective(StrEnum):
    """What is learned: how likely something is, how much of something there will be, or which opportunity of a slot is best."""

    BINARY = "binary"
    REGRESSION = "regression"
    RANKING = "ranking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """An objective in XGBoost's names; `metrics` says of each whether more of it is better, `metric` is the one that stops a training."""

    objective: str
    metric: str
    metrics: Mapping[str, bool]
    params: Mapping[str, object] = field(default_factory=dict)

    def best_round(self, history: Sequence[float]) -> int:
        """Return the round, from 1, after which the validation by `metric` was best; the earlier of two equal ones."""
        return best_round(history, more_is_better=self.metrics[self.metric])


def best_round(history: Sequence[float], *, more_is_better: bool) -> int:
    """Return the round, from 1, of the best figure in `history`; the earlier of two equal ones."""
    return (max if more_is_better else min)(range(len(history)), key=history.__getitem__) + 1


GOALS = {
    Objective.BINARY: Goal(
        objective="binary:logistic", metric="logloss", metrics={"logloss": False, "error": False, "auc": True, "aucpr": True}
    ),
    Objective.REGRESSION: Goal(objective="reg:squarederror", metric="rmse", metrics={"rmse": False, "mae": False}),
    Objective.RANKING: Goal(
        objective="rank:ndcg",
        metric="ndcg@5",
        metrics={"ndcg@5": True, "ndcg@1": True, "ndcg": True},
        params={"lambdarank_pair_method": "topk", "lambdarank_num_pair_per_sample": 8},
    ),
}
