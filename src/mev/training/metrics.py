"""Metrics of scores on rows that were not trained on.

Targets are 0 and 1, or values; scores are the model's output.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]
_TINY = 1e-7
_BINS = 10
_POINTS = 200
_MOST_DIGITS = 10
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Curves to plot, as pairs of x and y."""

    roc: tuple[Numbers, Numbers]
    precision_recall: tuple[Numbers, Numbers]
    calibration: tuple[Numbers, Numbers]
    profit: tuple[Numbers, Numbers] | None
    """Threshold, and the total lamports of all rows at or above it."""


def binary(
    target: Numbers, scores: Numbers, profit: Numbers | None
) -> tuple[dict[str, float], Curves]:
    """Return figures and curves of probabilities; `profit` is in lamports per row."""
    target, scores = target.astype(np.float64), scores.astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    # Rows with equal scores form one step, because no threshold separates them.
    ends = np.append(np.nonzero(np.diff(scores[order]))[0], len(scores) - 1)
    hits = np.cumsum(target[order])[ends]
    misses = ends + 1 - hits
    recall, fallout, precision = hits / hits[-1], misses / misses[-1], hits / (ends + 1)
    predicted, observed, share = _calibration(target, scores)
    curve = None if profit is None else (scores[order][ends], np.cumsum(profit[order])[ends])
    figures = {
        "auc": float(np.trapezoid(np.append(0, recall), np.append(0, fallout))),
        "pr_auc": float(np.sum(np.diff(recall, prepend=0) * precision)),
        "log_loss": _log_loss(target, scores),
        "brier": float(np.mean((scores - target) ** 2)),
        "calibration_error": float(np.sum(share * np.abs(predicted - observed))),
        "base_rate": float(target.mean()),
    }
    if curve is not None and profit is not None:
        best = int(np.argmax(curve[1]))
        figures |= {
            "best_threshold": float(curve[0][best]),
            "best_profit_lamports": float(curve[1][best]),
            "all_profit_lamports": float(curve[1][-1]),
        }
        if (recommended := _recommended(*curve, profit[order][ends[best] + 1 :])) is not None:
            figures["recommended_min_score"] = recommended
    curves = Curves(
        roc=_thin(np.append(0, fallout), np.append(0, recall)),
        precision_recall=_thin(recall, precision),
        calibration=(predicted, observed),
        profit=None if curve is None else _thin(*curve),
    )
    return figures, curves


def _recommended(thresholds: Numbers, lamports: Numbers, below: Numbers) -> float | None:
    """Return the recommended minimum score: 0 to take all, None where nothing is profitable.

    It has as few digits as select the same rows. `below` is the profit of each row under the best
    threshold. All are taken unless they lost more than chance explains: the best threshold is
    chosen on the same rows, and without a loss below it, it only makes agents depend on the model.
    """
    best = int(np.argmax(lamports))
    if lamports[best] <= 0:
        return None
    if -below.sum() <= _STANDARD_ERRORS * float(np.sqrt(np.sum(below**2))):
        return 0.0
    at, under = float(thresholds[best]), float(thresholds[best + 1])
    for digits in range(2, _MOST_DIGITS):
        rounded = math.floor(at * 10**digits) / 10**digits
        if under < rounded <= at:
            return float(rounded)
    return at


def regression(target: Numbers, scores: Numbers) -> dict[str, float]:
    """Return the figures of predicted values."""
    off = scores.astype(np.float64) - target
    spread = float(np.mean((target - target.mean(dtype=np.float64)) ** 2))
    squared = float(np.mean(off**2))
    return {"rmse": squared**0.5, "mae": float(np.mean(np.abs(off))), "r2": 1 - squared / spread}


def _log_loss(target: Numbers, scores: Numbers) -> float:
    safe = np.clip(scores, _TINY, 1 - _TINY)
    return float(-np.mean(target * np.log(safe) + (1 - target) * np.log1p(-safe)))


def _calibration(target: Numbers, scores: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return mean score, mean target and row share of each non-empty tenth of the scale."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    full = count > 0
    predicted, observed = (
        np.bincount(bins, weights=values, minlength=_BINS)[full] / count[full]
        for values in (scores, target)
    )
    return predicted, observed, count[full] / len(scores)


def _thin(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(_POINTS, len(x))).astype(int))
    return x[chosen], y[chosen]
