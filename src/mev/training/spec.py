"""What a training is asked to do, with the range of everything."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mev.training.errors import InvalidTrainingError

Share = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=0, le=1e6)]
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Objective(StrEnum):
    """What is learned: how likely something is, or how much of something there will be."""

    BINARY = "binary"
    REGRESSION = "regression"


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


def parse(content: Mapping[str, Any]) -> TrainSpec:
    """Return the training in `content`, plain JSON.

    :raises InvalidTrainingError: naming the field and what it may be.
    """
    try:
        return TrainSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidTrainingError(f"{place}: {first['msg']}", field=place) from None
