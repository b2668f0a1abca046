"""Validation of all rows before training; unusable data is refused with the column's name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mev.training.columns import SIMULATED
from mev.training.data import Export, Split, batches, numbers
from mev.training.errors import (
    EmptyFeatureError,
    InfiniteFeatureError,
    MissingTargetError,
    OneClassError,
)
from mev.training.spec import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Row counts of both sides, of positives with a binary objective, and of simulated rows."""

    train: int
    validation: int
    train_positive: int
    validation_positive: int
    simulated: int


def check(
    export: Export, cut: Split, features: Sequence[str], target: str, objective: Objective
) -> RowCounts:
    """Read every row once and return the counts.

    :raises MissingTargetError, OneClassError, EmptyFeatureError, InfiniteFeatureError: naming the
        column.
    """
    present = np.zeros(len(features), np.int64)
    positives, lows, highs, simulated = [0, 0], [np.inf, np.inf], [-np.inf, -np.inf], 0
    origin = [SIMULATED] if SIMULATED in export.columns else []
    for side, keep in enumerate((cut.train, cut.validation)):
        for table in batches(export, [*features, target, *origin], keep):
            rows, wanted = numbers(table, features), numbers(table, [target])[:, 0]
            _check_target(wanted, target, objective)
            if np.isinf(rows).any():
                name = features[int(np.isinf(rows).any(axis=0).argmax())]
                raise InfiniteFeatureError(
                    f"feature {name} is infinite in some rows; leave them out, or make it missing",
                    column=name,
                )
            if side == 0:
                present += (~np.isnan(rows)).sum(axis=0)
            simulated += int(numbers(table, origin).sum())
            positives[side] += int((wanted == 1).sum())
            lows[side], highs[side] = (
                min(lows[side], float(wanted.min())),
                max(highs[side], float(wanted.max())),
            )
    if (present == 0).any():
        name = features[int((present == 0).argmax())]
        raise EmptyFeatureError(
            f"feature {name} is missing in every row that is learned from; leave it out",
            column=name,
        )
    for which, low, high in zip(("learned from", "validated with"), lows, highs, strict=True):
        if low == high:
            raise OneClassError(
                f"{target} is {low:g} in every row that is {which}; export a longer range",
                column=target,
            )
    train, validation = int(cut.train.sum()), int(cut.validation.sum())
    return RowCounts(
        train=train,
        validation=validation,
        train_positive=positives[0],
        validation_positive=positives[1],
        simulated=simulated,
    )


def _check_target(
    wanted: np.ndarray[tuple[int], np.dtype[np.float32]], target: str, objective: Objective
) -> None:
    if bad := int((~np.isfinite(wanted)).sum()):
        raise MissingTargetError(
            f"{target} is missing or infinite in {bad} rows of a batch; leave such rows out of the"
            " export",
            column=target,
        )
    if objective is Objective.BINARY and not np.isin(wanted, (0, 1)).all():
        raise MissingTargetError(
            f"{target} has other values than 0 and 1; take objective regression", column=target
        )
