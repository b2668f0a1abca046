"""Figures against their definitions, on rows with equal scores too."""

import numpy as np
import pytest

from mev.training import metrics


def rows(seed: int, levels: int) -> tuple[metrics.Numbers, metrics.Numbers]:
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, levels, 300) / levels
    return (draw.random(300) < scores * 0.8 + 0.1).astype(float), scores


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_is_the_chance_that_a_hit_scores_above_a_miss(levels: int) -> None:
    target, scores = rows(1, levels)
    hits, misses = scores[target == 1][:, None], scores[target == 0][None]
    expected = float((hits > misses).mean() + 0.5 * (hits == misses).mean())
    assert metrics.binary(target, scores, None)[0]["auc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [3, 1000])
def test_pr_auc_is_the_mean_precision_of_every_gain_in_recall(levels: int) -> None:
    target, scores = rows(2, levels)
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        sent = scores >= threshold
        recall = target[sent].sum() / target.sum()
        total += (recall - before) * target[sent].mean()
        before = recall
    assert metrics.binary(target, scores, None)[0]["pr_auc"] == pytest.approx(total, abs=1e-12)


def test_loss_brier_and_calibration() -> None:
    target, scores = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.1, 0.9, 0.9])
    figures, curves = metrics.binary(target, scores, None)
    assert figures["log_loss"] == pytest.approx(-(np.log(0.9) * 3 + np.log(0.1)) / 4)
    assert figures["brier"] == pytest.approx((0.01 * 3 + 0.81) / 4)
    assert figures["calibration_error"] == pytest.approx(0.25 * 0.1 + 0.75 * (0.9 - 2 / 3))
    assert curves.calibration[1].tolist() == pytest.approx([0, 2 / 3])
    assert metrics.binary(target, np.array([1.0, 0, 1, 1]), None)[0]["log_loss"] < 20


def test_profit_is_that_of_all_rows_at_or_above_the_threshold() -> None:
    target, scores = np.array([1.0, 1, 0, 1, 0]), np.array([0.9, 0.8, 0.8, 0.4, 0.1])
    figures, _ = metrics.binary(target, scores, np.array([5.0, 4, -3, -2, -9]))
    assert (
        figures["best_threshold"],
        figures["best_profit_lamports"],
        figures["all_profit_lamports"],
    ) == (0.8, 6, -5)


def test_regression() -> None:
    figures = metrics.regression(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 6]))
    assert figures == {"rmse": 1.0, "mae": 0.5, "r2": pytest.approx(1 - 4 / 5)}


def recommended(scores: list[float], profit: list[float]) -> float | None:
    target = np.arange(len(scores)) % 2
    return metrics.binary(target.astype(float), np.array(scores), np.array(profit))[0].get(
        "recommended_min_score"
    )


def test_recommended_min_score_keeps_the_rows_of_the_best_threshold_in_few_digits() -> None:
    scores = [0.93712, 0.93712, 0.93649, 0.4, 0.3, 0.2, 0.1]
    assert recommended(scores, [5, 5, -4, -4, -4, -4, -4]) == 0.937
    assert recommended([0.5, *[0.25] * 5], [5, *[-4] * 5]) == 0.5
    assert recommended([1e-5, *[1e-6] * 5], [5, *[-4] * 5]) == 1e-5


def test_all_are_taken_when_the_rows_below_the_best_threshold_lost_no_more_than_by_chance() -> None:
    draw = np.random.default_rng(3)
    scores, profit = (
        draw.random(1000),
        draw.normal(1.0, 10.0, 1000),
    )  # the score says nothing of the profit
    assert recommended(list(scores), list(profit)) == 0
    assert recommended([0.9, 0.8, 0.2, 0.1], [1, 2, 3, 4]) == 0


def test_nothing_is_recommended_where_no_threshold_earns_anything() -> None:
    assert recommended([0.9, 0.8, 0.2, 0.1], [-1, -2, -3, -4]) is None


def test_a_threshold_is_recommended_where_low_scores_lose_money() -> None:
    draw = np.random.default_rng(4)
    scores = draw.random(2000)
    profit = np.where(draw.random(2000) < scores, 3.0, -2.0)
    found = recommended(list(scores), list(profit))
    assert found is not None
    assert 0.3 < found < 0.5
    assert profit[scores >= found].sum() > profit.sum()
