"""Evaluation of a trained model: validation scores, figures and plots."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from mev.scoring.predictor import Rows as Table
from mev.training import data, metrics, plots, ranking
from mev.training.columns import PROFIT, SLOT
from mev.training.intervals import find_intervals, find_warnings
from mev.training.rows import TrainingData
from mev.training.spec import Objective, TrainSpec

_FROZEN_ROWS = 4096
_EXPLAINED_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationScores:
    """Scores of the validation rows in order; `frozen` is a sample of complete rows."""

    target: metrics.Numbers
    scores: metrics.Numbers
    slots: ranking.Slots
    profit: metrics.Numbers | None
    frozen: Table


def score(training_data: TrainingData, booster: xgb.Booster) -> ValidationScores:
    """Return the scores of all validation rows."""
    export, cut = training_data.export, training_data.cut
    profit = [PROFIT] if PROFIT in export.columns else []
    names = list(dict.fromkeys([*training_data.features, training_data.target, SLOT, *profit]))
    # sampled over all rows, because the sample is the drift baseline
    step = max(1, math.ceil(int(cut.validation.sum()) / _FROZEN_ROWS))
    parts: list[tuple[Any, ...]] = []
    for table in data.batches(export, names, cut.validation):
        rows = data.numbers(table, training_data.features)
        scores = booster.inplace_predict(rows, missing=np.nan, validate_features=False)
        made = table.column(PROFIT).to_numpy().astype(np.float64) if profit else None
        parts.append(
            (
                data.numbers(table, [training_data.target])[:, 0],
                scores,
                data.whole_numbers(table, SLOT),
                made,
                rows[::step],
            )
        )
    target, scores, slots, profits, frozen = zip(*parts, strict=True)
    return ValidationScores(
        target=np.concatenate(target),
        scores=np.concatenate(scores),
        slots=np.concatenate(slots),
        profit=np.concatenate(profits) if profit else None,
        frozen=np.concatenate(frozen)[:_FROZEN_ROWS],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Validation result: figures, 95 % intervals of some of them, and warnings."""

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    warnings: list[str]


def evaluate(
    spec: TrainSpec, training_data: TrainingData, scored: ValidationScores, output: Path
) -> Evaluation:
    """Return the figures for the objective, and write its plots to `output`."""
    if spec.objective is Objective.BINARY:
        figures, curves = metrics.binary(scored.target, scored.scores, scored.profit)
        plots.binary(output, figures, curves)
    else:
        figures = _figures(spec.objective, training_data, scored, slice(None), scored.slots)
    return Evaluation(
        figures=figures,
        intervals=find_intervals(
            scored.slots,
            lambda places, slots: _figures(spec.objective, training_data, scored, places, slots),
            seed=spec.seed,
        ),
        warnings=find_warnings(
            scored.target, scored.slots, is_binary=spec.objective is Objective.BINARY
        ),
    )


def _figures(
    objective: Objective,
    training_data: TrainingData,
    scored: ValidationScores,
    places: NDArray[np.intp] | slice,
    slots: ranking.Slots,
) -> dict[str, float]:
    """Return the figures of the rows at `places`."""
    target, scores = scored.target[places], scored.scores[places]
    profit = None if scored.profit is None else scored.profit[places]
    if objective is Objective.BINARY:
        return metrics.binary(target, scores, profit)[0]
    if training_data.grading is not None:
        return ranking.figures(training_data.grading(target), scores, slots, profit)
    return metrics.regression(target, scores)


def importance(booster: xgb.Booster, features: tuple[str, ...], rows: Table) -> dict[str, float]:
    """Return the mean absolute SHAP contribution of each feature to the margin."""
    matrix = xgb.DMatrix(rows[:_EXPLAINED_ROWS], feature_names=list(features), missing=np.nan)
    shares = np.abs(booster.predict(matrix, pred_contribs=True)).mean(axis=0)[:-1]
    named = zip(features, (float(share) for share in shares), strict=True)
    return dict(sorted(named, key=lambda item: -item[1]))
