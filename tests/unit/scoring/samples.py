"""Models with random trees, and rows for them."""

import numpy as np

from mev.scoring.mevt import DecisionTree, TreeObjective, encode
from mev.scoring.predictor import Rows


def tree(draw: np.random.Generator, depth: int, features: int) -> DecisionTree:
    """Return a random tree, its nodes in the order in which a recursion meets them."""
    value: list[float] = []
    left: list[int] = []
    right: list[int] = []
    feature: list[int] = []
    missing: list[bool] = []

    def grow(depth: int) -> int:
        node = len(value)
        value.append(draw.normal())
        left.append(-1)
        right.append(-1)
        feature.append(int(draw.integers(features)))
        missing.append(bool(draw.integers(2)))
        if depth and draw.random() < 0.9:
            left[node], right[node] = grow(depth - 1), grow(depth - 1)
        return node

    grow(depth)
    return DecisionTree(
        value=np.array(value, np.float32),
        left=np.array(left, np.int32),
        right=np.array(right, np.int32),
        feature=np.array(feature, np.int32),
        missing_left=np.array(missing),
    )


def rows(draw: np.random.Generator, count: int, features: int) -> Rows:
    table = draw.normal(size=(count, features)).astype(np.float32)
    table[draw.random(table.shape) < 0.2] = np.nan
    table[draw.random(table.shape) < 0.02] = np.inf
    return table


def model(
    trees: int = 3,
    features: int = 4,
    objective: TreeObjective = TreeObjective.LOGISTIC,
    seed: int = 1,
) -> bytes:
    draw = np.random.default_rng(seed)
    return encode(
        objective, features, np.float32(0.25), [tree(draw, 4, features) for _ in range(trees)]
    )
