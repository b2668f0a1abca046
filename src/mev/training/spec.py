"""Training request with the valid range of every field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from mev.core.body import Body
from mev.training.errors import InvalidTrainingError

Share = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=0, le=1e6)]
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
SPACE: Mapping[str, tuple[float, float]] = {
    "eta": (0.03, 0.3),
    "max_depth": (3, 9),
    "min_child_weight": (1, 20),
    "reg_lambda": (0.1, 10),
    "subsample": (0.6, 1),
    "colsample_bytree": (0.6, 1),
}
"""Default search space."""


class Objective(StrEnum):
    """Objective: a probability, a value, or the ranking of opportunities in a slot."""

    BINARY = "binary"
    REGRESSION = "regression"
    RANKING = "ranking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """An objective in XGBoost's terms.

    `metrics` tells for each metric whether more is better; `metric` is the one for early stopping.
    """

    objective: str
    metric: str
    metrics: Mapping[str, bool]
    params: Mapping[str, object] = field(default_factory=dict)

    def best_round(self, history: Sequence[float]) -> int:
        """Return the best round by `metric`, from 1; the earlier of two equal ones."""
        return best_round(history, more_is_better=self.metrics[self.metric])


def best_round(history: Sequence[float], *, more_is_better: bool) -> int:
    """Return the round of the best figure in `history`, from 1; the earlier of two equal ones."""
    return (max if more_is_better else min)(range(len(history)), key=history.__getitem__) + 1


GOALS = {
    Objective.BINARY: Goal(
        objective="binary:logistic",
        metric="logloss",
        metrics={"logloss": False, "error": False, "auc": True, "aucpr": True},
    ),
    Objective.REGRESSION: Goal(
        objective="reg:squarederror", metric="rmse", metrics={"rmse": False, "mae": False}
    ),
    Objective.RANKING: Goal(
        objective="rank:ndcg",
        metric="ndcg@5",
        metrics={"ndcg@5": True, "ndcg@1": True, "ndcg": True},
        params={"lambdarank_pair_method": "topk", "lambdarank_num_pair_per_sample": 8},
    ),
}


class Device(StrEnum):
    """Training device; `auto` uses a GPU where there is one."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


class Params(Body):
    """How trees are grown; the names are XGBoost's."""

    model_config = _STRICT

    eta: Annotated[float, Field(gt=0, le=1)] = 0.1
    max_depth: Annotated[int, Field(ge=1, le=12)] = 6
    min_child_weight: Penalty = 1.0
    gamma: Penalty = 0.0
    reg_lambda: Penalty = 1.0
    reg_alpha: Penalty = 0.0
    subsample: Share = 1.0
    colsample_bytree: Share = 1.0
    max_bin: Annotated[int, Field(ge=8, le=1024)] = 256


class Search(Body):
    """A search for good parameters, before the training itself."""

    model_config = _STRICT

    trials: Annotated[int, Field(ge=1, le=1000)] = 20
    timeout_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = Field(
        600.0, description="Time after which no further trial starts."
    )
    metric: str | None = Field(
        None,
        max_length=16,
        description="Metric of the trials; by default that of early stopping.",
    )
    space: dict[str, tuple[float, float]] = Field(
        dict(SPACE),
        max_length=8,
        description="Lowest and highest value of each parameter to search.",
    )

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if not self.space:
            raise ValueError("the space has no parameter")
        for name, (low, high) in self.space.items():
            if name not in Params.model_fields or name == "max_bin":
                known = ", ".join(field for field in Params.model_fields if field != "max_bin")
                raise ValueError(f"{name[:50]!r} cannot be searched; {known} can")
            if not low < high:
                raise ValueError(
                    f"{name}: the lowest value, {low:g}, must be below the highest, {high:g}"
                )
            for bound in (low, high):
                try:
                    Params.model_validate({name: bound})
                except ValidationError as error:
                    raise ValueError(f"{name}: {bound:g}: {error.errors()[0]['msg']}") from None
        return self


class Distributed(Body):
    """Workers of a Dask cluster that train together."""

    model_config = _STRICT

    scheduler: str = Field(
        pattern=r"^(tcp|tls)://[A-Za-z0-9._\-\[\]:]{1,255}:\d{1,5}$",
        description="Address of the scheduler.",
    )
    workers_min: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Minimum number of workers."
    )
    wait_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        30.0, description="Time to wait for the minimum number of workers."
    )
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        600.0,
        description=(
            "Timeout of the rounds between two checkpoints, after which they are repeated."
        ),
    )
    losses_max: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="Largest number of repetitions."
    )


class TrainSpec(Body):
    """One training."""

    model_config = _STRICT

    features: Annotated[tuple[str, ...] | None, Field(max_length=4096, fail_fast=True)] = Field(
        None, description="Columns to learn from; the export's features."
    )
    target: str = Field("landed", description="Target column.")
    objective: Objective = Objective.BINARY
    params: Params = Params()
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 300
    early_stopping_rounds: Annotated[int, Field(ge=0, le=1000)] = Field(
        30, description="Rounds without a better validation before the training stops; 0: never."
    )
    validation_share: Annotated[float, Field(gt=0, le=0.9)] = Field(
        0.2, description="Share of the newest rows, used for validation only."
    )
    embargo_slots: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        32, description="Slots left out between training and validation."
    )
    include_simulated: bool = Field(
        False,
        description=(
            "Use simulated rows too; by default they are left out where there are real ones."
        ),
    )
    class_weight: Literal["balanced"] | Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="Weight of the rare class."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Device = Device.AUTO
    checkpoint_every: Annotated[int, Field(ge=0, le=10_000)] = Field(
        25, description="Rounds between checkpoints; 0: none."
    )
    search: Search | None = Field(
        None,
        description=("Search for parameters first; `params` sets those not searched."),
    )
    distributed: Distributed | None = Field(None, description="Train on several machines.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.class_weight is not None and self.objective is not Objective.BINARY:
            raise ValueError(f"class_weight is for objective binary, not {self.objective}")
        metrics = GOALS[self.objective].metrics
        if self.search and self.search.metric is not None and self.search.metric not in metrics:
            raise ValueError(
                f"search.metric: objective {self.objective} is judged by {', '.join(metrics)}"
            )
        if self.distributed:
            if self.search:
                raise ValueError(
                    "search and distributed exclude each other: search on one machine, then train"
                    " with what it found"
                )
            if self.objective is Objective.RANKING:
                raise ValueError("ranking is trained on one machine: leave distributed out")
            if self.device is Device.CUDA:
                raise ValueError(
                    "distributed trains on the processors of the workers: take device cpu, or auto"
                )
        return self


def parse(content: Mapping[str, Any]) -> TrainSpec:
    """Return the training request in `content`, plain JSON.

    :raises InvalidTrainingError: naming the field and its valid range.
    """
    try:
        return TrainSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidTrainingError(
            f"{place}: {first['msg']}" if place else first["msg"], field=place
        ) from None
