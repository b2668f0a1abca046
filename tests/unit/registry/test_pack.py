"""Packed models score as XGBoost does, to the last bit; what the form does not know is refused."""

from typing import Any

import numpy as np
import pytest
import xgboost as xgb

from mev.registry.errors import UnsupportedModelError
from mev.registry.pack import pack
from mev.scoring.native_engine import open_model
from mev.scoring.predictor import Rows


def data(rows: int = 4000, features: int = 6, seed: int = 1) -> tuple[Rows, Rows]:
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(rows, features)).astype(np.float32)
    target = table[:, 0] * table[:, 1] + 0.5 * table[:, 2] + draw.normal(size=rows) * 0.3
    table[draw.random(table.shape) < 0.1] = np.nan
    return table, target.astype(np.float32)


def train(table: Rows, target: Rows, rounds: int = 30, **params: Any) -> xgb.Booster:
    return xgb.train(
        {"max_depth": 5, "nthread": 2, **params}, xgb.QuantileDMatrix(table, target), rounds
    )


def reread(booster: xgb.Booster, form: str) -> xgb.Booster:
    return xgb.Booster(model_file=bytearray(booster.save_raw(form)))


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize(
    "params",
    [
        {"objective": "binary:logistic"},
        {"objective": "binary:logistic", "base_score": 0.3, "scale_pos_weight": 3.0},
        {
            "objective": "binary:logistic",
            "eta": 3.0,
            "lambda": 0.0,
        },  # margins where the logistic function saturates
        {"objective": "reg:squarederror"},
        {"objective": "reg:squarederror", "num_parallel_tree": 3, "subsample": 0.5},
    ],
)
def test_scores_are_equal_to_the_last_bit(params: dict[str, Any], form: str) -> None:
    table, target = data()
    booster = train(
        table,
        (target > 0.2).astype(np.float32) if "binary" in params["objective"] else target,
        **params,
    )
    engine = open_model(pack(reread(booster, form)))
    unseen, _ = data(20_000, seed=2)
    for margin in (True, False):
        expected = booster.inplace_predict(unseen, predict_type="margin" if margin else "value")
        np.testing.assert_array_equal(engine.predict(unseen, margin=margin), expected)


def test_a_model_cut_at_its_best_round_is_packed_as_cut() -> None:
    table, target = data()
    booster = train(table, target)[:7]
    assert open_model(pack(booster)).trees == 7


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"objective": "reg:absoluteerror"}, "objective 'reg:absoluteerror'"),
        ({"objective": "rank:pairwise"}, "objective 'rank:pairwise'"),
        ({"objective": "multi:softprob", "num_class": 3}, "objective 'multi:softprob'"),
        ({"objective": "reg:squarederror", "booster": "dart"}, "booster 'dart'"),
        (
            {"objective": "reg:squarederror", "booster": "gblinear", "max_depth": None},
            "booster 'gblinear'",
        ),
    ],
)
def test_other_models_are_refused_by_name(params: dict[str, Any], reason: str) -> None:
    table, target = data(300)
    given = {key: value for key, value in {"max_depth": 3, **params}.items() if value is not None}
    matrix = xgb.DMatrix(np.nan_to_num(table), np.clip(np.abs(target), 0, 2).astype(int))
    if "rank" in params["objective"]:
        matrix.set_group([len(table)])
    booster = xgb.train(given, matrix, 2)
    with pytest.raises(UnsupportedModelError, match=reason):
        pack(booster)


def test_splits_by_category_and_several_targets_are_refused() -> None:
    table, target = data(500)
    table[:, 0] = np.arange(500) % 4
    matrix = xgb.DMatrix(
        table,
        np.where(table[:, 0] == 2, 5, 0),
        feature_types=["c", *"qqqqq"],
        enable_categorical=True,
    )
    with pytest.raises(UnsupportedModelError, match="category"):
        pack(xgb.train({"max_depth": 3}, matrix, 2))
    several = xgb.train(
        {"max_depth": 3}, xgb.DMatrix(table, np.stack([target, -target], axis=1)), 2
    )
    with pytest.raises(UnsupportedModelError, match="several"):
        pack(several)
