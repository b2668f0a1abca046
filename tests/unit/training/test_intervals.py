"""Intervals and warnings of a validation."""

import numpy as np
import pytest

from mev.training import metrics, ranking
from mev.training.intervals import NAMES, find_intervals, find_warnings
from mev.training.metrics import Numbers
from mev.training.ranking import Slots


def rows(count: int, per_slot: int, seed: int = 1) -> tuple[Numbers, Numbers, Slots]:
    """Return targets, scores and slots; a score tells something of its target."""
    draw = np.random.default_rng(seed)
    slots = (np.arange(count) // per_slot + 1000).astype(np.int64)
    target = (draw.random(count) < 0.4).astype(np.float64)
    scores = np.clip(target * 0.3 + draw.random(count) * 0.7, 0, 1)
    return target, scores, slots


def binary(count: int, per_slot: int, seed: int = 1) -> dict[str, tuple[float, float]]:
    target, scores, slots = rows(count, per_slot, seed)
    return find_intervals(
        slots, lambda places, _: metrics.binary(target[places], scores[places], None)[0], seed=0
    )


def test_interval_holds_the_figure_and_narrows_with_the_rows() -> None:
    widths = []
    for count in (48, 500, 5000):
        target, scores, _ = rows(count, 1)
        low, high = binary(count, 1)["auc"]
        assert low < metrics.binary(target, scores, None)[0]["auc"] < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_rows_of_one_slot_count_together() -> None:
    draw = np.random.default_rng(3)
    slots = np.repeat(np.arange(1, 41, dtype=np.int64), 25)
    target = np.repeat(
        (draw.random(40) < 0.5).astype(np.float64), 25
    )  # a slot lands whole, or not at all
    found = find_intervals(
        slots, lambda places, _: {"base_rate": float(target[places].mean())}, seed=0
    )
    low, high = found["base_rate"]
    assert high - low > 0.2  # of 1,000 rows that were drawn one by one it would be 0.06


def test_same_rows_and_seed_give_the_same_intervals() -> None:
    assert binary(300, 3) == binary(300, 3)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.02])
def test_figures_that_a_resample_cannot_have_are_left_out(share: float) -> None:
    target, scores, slots = rows(40, 1)
    target = (np.arange(40) < share * 40).astype(np.float64)
    found = find_intervals(
        slots, lambda places, _: metrics.binary(target[places], scores[places], None)[0], seed=0
    )
    assert set(found) <= NAMES
    assert all(np.isfinite(bound) for bounds in found.values() for bound in bounds)
    assert ("auc" in found) is (0 < share < 1)


def test_ranking_has_intervals_where_a_slot_is_drawn_twice() -> None:
    target, scores, slots = rows(400, 4)
    found = find_intervals(
        slots,
        lambda places, numbered: ranking.figures(target[places], scores[places], numbered, None),
        seed=0,
    )
    exact = ranking.figures(target, scores, slots, None)
    for name in ("ndcg_1", "ndcg_5", "best_first"):
        low, high = found[name]
        assert low < exact[name] < high


def test_warnings_name_few_rows_slots_and_classes() -> None:
    target, _, slots = rows(48, 2)
    target[:] = 0
    target[:5] = 1
    few, positive, negative = find_warnings(target, slots, is_binary=True)
    assert "only 48 rows of 24 slots validated" in few
    assert "only 5 rows that validated had target 1" in positive
    assert "only 43 rows that validated had target 0" in negative
    assert len(find_warnings(target, slots, is_binary=False)) == 1
    target, _, slots = rows(5000, 2)
    assert find_warnings(target, slots, is_binary=True) == []
