"""The data-only form of a model, ``.mevt``: tables of numbers, nothing that runs.

All integers and floats are little-endian and 4 bytes long. A header of 32 bytes (``MEVT``, version, objective, features, trees, nodes,
base score, 0), the first node of each tree, then the nodes, tree by tree: value, child, feature. The two children of a node are
neighbours; what each number means, and what is checked, stands in ``engine.c``, which is the one reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MAGIC, VERSION = b"MEVT", 1
MISSING_GOES_RIGHT = 1 << 31
_HEADER = np.dtype([("magic", "S4"), ("numbers", "<u4", 5), ("base", "<f4"), ("zero", "<u4")])
NODE = np.dtype([("value", "<f4"), ("child", "<u4"), ("feature", "<u4")])


class Objective(IntEnum):
    """What the sum of the leaves becomes: a probability through the logistic function, or the value itself."""

    LOGISTIC = 1
    SQUARED_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One tree, a number for each of its nodes; `left` is negative in a leaf, whose weight is its `value`."""

    value: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    feature: NDArray[np.int32]
    missing_left: NDArray[np.bool_]


def encode(objective: Objective, features: int, base_score: np.float32, trees: Sequence[Tree]) -> bytes:
    """Return the file of a model whose trees are `trees`; `base_score` is a probability with the logistic objective."""
    tables, roots, count = [], [], 0
    for tree in trees:
        table = _lay_out(tree, count)
        tables.append(table)
        roots.append(count)
        count += len(table)
    header = np.array([(MAGIC, (VERSION, objective, features, len(trees), count), base_score, 0)], _HEADER)
    return header.tobytes() + np.array(roots, "<u4").tobytes() + b"".join(table.tobytes() for table in tables)


def _lay_out(tree: Tree, first: int) -> NDArray[np.void]:
    """Return the nodes in the order of their depth, the children of each side by side; `first` is the number of the root."""
    order = [0]
    child = np.zeros(len(tree.left), np.uint32)
    for node in order:  # grows while it is walked
        if tree.left[node] >= 0:
            child[node] = first + len(order)
            order += (int(tree.left[node]), int(tree.right[node]))
    inner = tree.left[order] >= 0
    table = np.zeros(len(order), NODE)
    table["value"] = tree.value[order]
    table["child"] = child[order]
    direction = np.where(tree.missing_left[order], 0, MISSING_GOES_RIGHT).astype(np.uint32)
    table["feature"] = np.where(inner, tree.feature[order].astype(np.uint32) | direction, np.uint32(0))
    return table
