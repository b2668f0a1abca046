"""Data-only model format ``.mevt``: tables of numbers, no code.

All integers and floats are little-endian and 4 bytes long. A header of 32 bytes (``MEVT``, version,
objective, features, trees, nodes, base score, 0), the first node of each tree, then the nodes, tree
by tree: value, child, feature. The two children of a node are adjacent. ``native/src/trees.rs`` and
``numpy_engine.py`` check and read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mev.scoring.errors import MalformedModelError

MAGIC, VERSION = b"MEVT", 1
MISSING_GOES_RIGHT = 1 << 31
HEADER = np.dtype([("magic", "S4"), ("numbers", "<u4", 5), ("base", "<f4"), ("zero", "<u4")])
NODE = np.dtype([("value", "<f4"), ("child", "<u4"), ("feature", "<u4")])
_REASONS = {
    1: "there is not memory enough for it",
    2: "it is shorter than a header",
    3: "it does not begin with MEVT",
    4: "it has a version that this engine does not read",
    5: "it has an objective that this engine does not know",
    6: "its header contradicts itself",
    7: "its length is not what its header says",
    8: "its base score is no finite number, or no probability",
    9: "a tree has no nodes, or lies outside the table",
    10: "a node has a child that is not behind it in its own tree",
    11: "a node asks for a feature that the model does not have",
    12: "a threshold or a leaf is no finite number",
}


def malformed(reason: int) -> MalformedModelError:
    """Return the error for a malformed file; `reason` is its number in the native module."""
    return MalformedModelError(f"the model cannot be read: {_REASONS[reason]}")


class TreeObjective(IntEnum):
    """Transformation of the sum of the leaves: logistic function or identity."""

    LOGISTIC = 1
    SQUARED_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTree:
    """One tree as arrays by node; `left` is negative in a leaf, whose weight is `value`."""

    value: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    feature: NDArray[np.int32]
    missing_left: NDArray[np.bool_]


def encode(
    objective: TreeObjective, features: int, base_score: np.float32, trees: Sequence[DecisionTree]
) -> bytes:
    """Return the file of a model with these trees.

    `base_score` is a probability with the logistic objective.
    """
    tables, roots, count = [], [], 0
    for tree in trees:
        table = _lay_out(tree, count)
        tables.append(table)
        roots.append(count)
        count += len(table)
    header = np.array(
        [(MAGIC, (VERSION, objective, features, len(trees), count), base_score, 0)], HEADER
    )
    return (
        header.tobytes()
        + np.array(roots, "<u4").tobytes()
        + b"".join(table.tobytes() for table in tables)
    )


def _lay_out(tree: DecisionTree, first: int) -> NDArray[np.void]:
    """Return the nodes in breadth-first order, children adjacent, numbered from `first`."""
    order = [0]
    child = np.zeros(len(tree.left), np.uint32)
    for node in order:  # grows during iteration
        if tree.left[node] >= 0:
            child[node] = first + len(order)
            order += (int(tree.left[node]), int(tree.right[node]))
    inner = tree.left[order] >= 0
    table = np.zeros(len(order), NODE)
    table["value"] = tree.value[order]
    table["child"] = child[order]
    direction = np.where(tree.missing_left[order], 0, MISSING_GOES_RIGHT).astype(np.uint32)
    table["feature"] = np.where(
        inner, tree.feature[order].astype(np.uint32) | direction, np.uint32(0)
    )
    return table
