"""What a training is asked to do, with the range of everything."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mev.training.errors import InvalidTrainingError
from mev.training.goals import GOALS, Objective

Share = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=0, le=1e6)]
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Device(StrEnum):
    """Where it is computed; `auto` takes a GPU where there is one."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


class Params(BaseModel):
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


SPACE: Mapping[str, tuple[float, float]] = {
    "eta": (0.03, 0.3),
    "max_depth": (3, 9),
    "min_child_weight": (1, 20),
    "reg_lambda": (0.1, 10),
    "subsample": (0.6, 1),
    "colsample_bytree": (0.6, 1),
}
"""What is searched when nothing else is said."""


class Search(BaseModel):
    """A search for good parameters, before the training itself."""

    model_config = _STRICT

    trials: Annotated[int, Field(ge=1, le=1000)] = 20
    timeout_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = Field(600.0, description="After it no further trial begins.")
    metric: str | None = Field(None, max_length=16, description="What trials are judged by; what stops the training, without it.")
    space: dict[str, tuple[float, float]] = Field(
        dict(SPACE), max_length=8, description="Lowest and highest value of each parameter that is searched."
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
                raise ValueError(f"{name}: the lowest value, {low:g}, must be below the highest, {high:g}")
            for bound in (low, high):
                try:
                    Params.model_validate({name: bound})
                except ValidationError as error:
                    raise ValueError(f"{name}: {bound:g}: {error.errors()[0]['msg']}") from None
        return self


class Distributed(BaseModel):
    """Workers of a Dask cluster that train together."""

    model_config = _STRICT

    scheduler: str = Field(pattern=r"^(tcp|tls)://[A-Za-z0-9._\-\[\]:]{1,255}:\d{1,5}$", description="Address of the scheduler.")
    workers_min: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="With fewer it does not go on.")
    wait_s: Annotated[float, Field(gt=0, le=3600)] = Field(30.0, description="How long that many workers are waited for.")
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        600.0, description="How long the rounds between two checkpoints may take before they are tried again."
    )
    losses_max: Annotated[int, Field(ge=0, le=100)] = Field(3, description="How often that may happen.")


class TrainSpec(BaseModel):
    """One training."""

    model_config = _STRICT

    features: Annotated[tuple[str, ...] | None, Field(max_length=4096)] = Field(
        None, description="Columns to learn from; the export's features."
    )
    target: str = Field("landed", description="Column to learn.")
    objective: Objective = Objective.BINARY
    params: Params = Params()
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 300
    early_stopping_rounds: Annotated[int, Field(ge=0, le=1000)] = Field(
        30, description="Rounds without a better validation; 0: never stop."
    )
    validation_share: Annotated[float, Field(gt=0, le=0.9)] = Field(0.2, description="The newest share of rows; it is not learned from.")
    embargo_slots: Annotated[int, Field(ge=0, le=10_000_000)] = Field(32, description="Slots left out between learning and validation.")
    class_weight: Literal["balanced"] | Annotated[float, Field(gt=0, le=1e6)] | None = Field(None, description="Weight of the rare class.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Device = Device.AUTO
    checkpoint_every: Annotated[int, Field(ge=0, le=10_000)] = Field(25, description="Rounds between checkpoints; 0: none.")
    search: Search | None = Field(None, description="Look for good parameters first; those in `params` are kept where it does not look.")
    distributed: Distributed | None = Field(None, description="Train on several machines.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.class_weight is not None and self.objective is not Objective.BINARY:
            raise ValueError(f"class_weight is for objective binary, not {self.objective}")
        metrics = GOALS[self.objective].metrics
        if self.search and self.search.metric is not None and self.search.metric not in metrics:
            raise ValueError(f"search.metric: objective {self.objective} is judged by {', '.join(metrics)}")
        if self.distributed:
            if self.search:
                raise ValueError("search and distributed exclude each other: search on one machine, then train with what it found")
            if self.objective is Objective.RANKING:
                raise ValueError("ranking is trained on one machine: leave distributed out")
            if self.device is Device.CUDA:
                raise ValueError("distributed trains on the processors of the workers: take device cpu, or auto")
        return self


def parse(content: Mapping[str, Any]) -> TrainSpec:
    """Return the training in `content`, plain JSON.

    :raises InvalidTrainingError: naming the field and what it may be.
    """
    try:
        return TrainSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidTrainingError(f"{place}: {first['msg']}" if place else first["msg"], field=place) from None
