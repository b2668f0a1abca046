"""Confidence intervals of validation figures by resampling, and warnings about few rows.

Whole slots are drawn with replacement: the rows of a slot are correlated, so drawing single rows
would give intervals that are too narrow.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mev.core.text import counted
from mev.training.ranking import Slots

Figures = Callable[[NDArray[np.intp], Slots], Mapping[str, float]]
"""Function from row indices and their resampled slots to figures."""
NAMES = frozenset(
    {
        *("auc", "pr_auc", "log_loss", "brier", "base_rate", "rmse", "mae", "r2"),
        *("ndcg_1", "ndcg_5", "best_first", "all_profit_lamports", "first_profit_lamports"),
    }
)
"""Figures with an interval. Figures that are a maximum over choices are biased by resampling."""
_CELLS = 10_000_000  # rows times resamples
_MOST_RESAMPLES, _LEAST_RESAMPLES = 400, 40
_BOUNDS = (2.5, 97.5)
_FEW_ROWS, _FEW_OF_A_CLASS, _FEW_SLOTS = 1_000, 50, 30


def find_intervals(slots: Slots, figures: Figures, *, seed: int) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each figure, deterministic for the same rows and `seed`."""
    order = np.argsort(slots, kind="stable")
    _, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    draw = np.random.default_rng(seed)
    resamples = max(_LEAST_RESAMPLES, min(_MOST_RESAMPLES, _CELLS // max(1, len(slots))))
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = draw.integers(len(starts), size=len(starts))
        sizes = counts[chosen]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(starts[chosen] - (ends - sizes), sizes)
        # A slot drawn twice counts as two slots.
        numbered = np.repeat(np.arange(1, len(chosen) + 1, dtype=slots.dtype), sizes)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # a resample may have a single class, or nothing to rank
            warnings.simplefilter("ignore")
            for name, value in figures(order[places], numbered).items():
                if name in NAMES and np.isfinite(value):
                    found.setdefault(name, []).append(value)
    return {
        name: (float(low), float(high))
        for name, values in found.items()
        if len(values) > resamples // 2
        for low, high in [np.percentile(values, _BOUNDS)]
    }


def find_warnings(target: NDArray[Any], slots: Slots, *, is_binary: bool) -> list[str]:
    """Return warnings about imprecise figures, one sentence each."""
    found = []
    rows, groups = len(target), len(np.unique(slots))
    if rows < _FEW_ROWS or groups < _FEW_SLOTS:
        found.append(
            f"the figures are rough: only {counted(rows, 'row')} of {counted(groups, 'slot')}"
            " validated; look at their intervals, and export more before you act on them"
        )
    if is_binary:
        found += _of_few(rows, int(target.sum()))
    return found


def _of_few(rows: int, positive: int) -> Iterable[str]:
    for count, what in ((positive, "1"), (rows - positive, "0")):
        if count < _FEW_OF_A_CLASS:
            yield (
                f"only {counted(count, 'row')} that validated had target {what}: AUC and PR-AUC are"
                " rough"
            )
