"""What a trained model is worth: its scores of the validation rows, figures and pictures of them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb

from mev.predict.predictor import Rows as Table
from mev.training import data, metrics, plots, ranking
from mev.training.goals import Objective
from mev.training.rows import Material

_FROZEN_ROWS = 4096
_EXPLAINED_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The validation rows in their order; `frozen` is some of them, whole."""

    target: metrics.Numbers
    scores: metrics.Numbers
    slots: ranking.Slots
    profit: metrics.Numbers | None
    frozen: Table


def score(material: Material, booster: xgb.Booster) -> Scored:
    """Score every row that validates."""
    export, cut = material.export, material.cut
    profit = [data.PROFIT] if data.PROFIT in export.columns else []
    names = list(dict.fromkeys([*material.features, material.target, data.SLOT, *profit]))
    step = max(1, math.ceil(int(cut.validation.sum()) / _FROZEN_ROWS))  # from all of them: what is frozen is the baseline of drift
    parts: list[tuple[Any, ...]] = []
    for table in data.batches(export, names, cut.validation):
        rows = data.numbers(table, material.features)
        scores = booster.inplace_predict(rows, missing=np.nan, validate_features=False)
        made = table.column(data.PROFIT).to_numpy().astype(np.float64) if profit else None
        parts.append((data.numbers(table, [material.target])[:, 0], scores, data.whole_numbers(table, data.SLOT), made, rows[::step]))
    target, scores, slots, profits, frozen = zip(*parts, strict=True)
    return Scored(
        target=np.concatenate(target),
        scores=np.concatenate(scores),
        slots=np.concatenate(slots),
        profit=np.concatenate(profits) if profit else None,
        frozen=np.concatenate(frozen)[:_FROZEN_ROWS],
    )


def judge(objective: Objective, material: Material, scored: Scored, output: Path) -> dict[str, float]:
    """Return the figures that an objective is judged by; draw what there is to draw into `output`."""
    if objective is Objective.BINARY:
        figures, curves = metrics.binary(scored.target, scored.scores, scored.profit)
        plots.binary(output, figures, curves)
        return figures
    if material.grading is not None:
        return ranking.figures(material.grading(scored.target), scored.scores, scored.slots, scored.profit)
    return metrics.regression(scored.target, scored.scores)


def importance(booster: xgb.Booster, features: tuple[str, ...], rows: Table) -> dict[str, float]:
    """Return the mean of what each feature adds to or takes from the margin of a row (SHAP)."""
    matrix = xgb.DMatrix(rows[:_EXPLAINED_ROWS], feature_names=list(features), missing=np.nan)
    shares = np.abs(booster.predict(matrix, pred_contribs=True)).mean(axis=0)[:-1]
    named = zip(features, (float(share) for share in shares), strict=True)
    return dict(sorted(named, key=lambda item: -item[1]))
