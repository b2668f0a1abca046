"""Evaluation of data-only models (``.mevt``) with NumPy, where the native module is not used.

The checks, the order of additions and the logistic function are those of ``native/src/trees.rs``,
so that both engines accept the same files and give the same scores.
"""

import ctypes
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mev.scoring.mevt import (
    HEADER,
    MAGIC,
    MISSING_GOES_RIGHT,
    NODE,
    VERSION,
    TreeObjective,
    malformed,
)
from mev.scoring.predictor import Rows, Scores, check_rows

_FEATURE = MISSING_GOES_RIGHT - 1
_CELLS = 1 << 16  # rows times trees evaluated at once
_EXP_LIMIT = np.float32(88.7)  # beyond it a float32 exponential overflows


class NumpyEngine:
    """A data-only model evaluated with NumPy; thread-safe.

    :raises MalformedModelError: when `data` is not such a model.
    """

    def __init__(self, data: bytes) -> None:
        self.objective, self.width, self.trees, self.nodes, self._base = _read_header(data)
        self._roots = np.frombuffer(data, "<u4", self.trees, HEADER.itemsize).astype(np.int64)
        table = np.frombuffer(data, NODE, self.nodes, HEADER.itemsize + 4 * self.trees)
        self._value = table["value"].astype(np.float32)
        self._child = table["child"].astype(np.int64)
        self._feature = (table["feature"] & _FEATURE).astype(np.int64)
        self._missing_right = (table["feature"] & MISSING_GOES_RIGHT) != 0
        self._check_trees(table["feature"])

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        """Return a score for each of `rows`, a float32 table; NaN is a missing feature.

        `margin` leaves out the logistic function.

        :raises WrongRowsError: when the rows have another width or type.
        """
        rows = check_rows(rows, self.width)
        sums = np.empty(len(rows), np.float32)
        step = max(1, _CELLS // self.trees)
        for start in range(0, len(rows), step):
            sums[start : start + step] = self._sum(rows[start : start + step])
        if margin or self.objective is not TreeObjective.LOGISTIC:
            return sums
        return _logistic(sums)

    def _sum(self, rows: Rows) -> Scores:
        at = np.tile(self._roots, (len(rows), 1))
        lines = np.arange(len(rows))[:, None]
        while (child := self._child[at]).any():
            x = rows[lines, self._feature[at]]
            right = (x >= self._value[at]) | (np.isnan(x) & self._missing_right[at])
            at = np.where(child == 0, at, child + right)
        terms = np.empty((len(rows), self.trees + 1), np.float32)
        terms[:, 0] = self._base
        terms[:, 1:] = self._value[at]
        with np.errstate(over="ignore", invalid="ignore"):
            # Accumulate adds from left to right, as the native engine does; sum() adds pairwise.
            sums: Scores = np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1]
        return sums

    def _check_trees(self, feature: NDArray[np.uint32]) -> None:
        """Check for each tree its position, the order of its nodes and its values."""
        bounds = [*self._roots.tolist(), self.nodes]
        if bounds[0] != 0:
            raise malformed(9)
        for start, end in pairwise(bounds):
            if start >= end or end > self.nodes:
                raise malformed(9)
            self._check_tree(start, end, feature[start:end])

    def _check_tree(self, start: int, end: int, feature: NDArray[np.uint32]) -> None:
        child, value = self._child[start:end], self._value[start:end]
        inner = child != 0
        places = np.arange(start, end)
        reasons = np.select(
            [
                ~np.isfinite(value),
                ~inner & (feature != 0),
                inner & ((child <= places) | (child >= end - 1)),
                inner & (self._feature[start:end] >= self.width),
            ],
            [12, 11, 10, 11],
        )
        if reasons.any():
            raise malformed(int(reasons[reasons != 0][0]))


def _read_header(data: bytes) -> tuple[TreeObjective, int, int, int, np.float32]:
    if len(data) < HEADER.itemsize:
        raise malformed(2)
    head = np.frombuffer(data, HEADER, 1)[0]
    version, objective, features, trees, nodes = map(int, head["numbers"])
    if head["magic"] != MAGIC:
        raise malformed(3)
    if version != VERSION:
        raise malformed(4)
    if objective not in set(TreeObjective):
        raise malformed(5)
    is_shape = 0 < features <= _FEATURE and trees > 0 and nodes >= trees
    if not is_shape or head["zero"] != 0:
        raise malformed(6)
    if len(data) != HEADER.itemsize + 4 * trees + NODE.itemsize * nodes:
        raise malformed(7)
    return (
        TreeObjective(objective),
        features,
        trees,
        nodes,
        _base(TreeObjective(objective), head["base"]),
    )


def _base(objective: TreeObjective, base: np.float32) -> np.float32:
    if objective is TreeObjective.LOGISTIC:
        if not 0 < base < 1:
            raise malformed(8)
        one = np.float32(1)
        base = np.float32(-_LOG(float(one / base - one)))
    if not np.isfinite(base):
        raise malformed(8)
    return base


def _logistic(margins: Scores) -> Scores:
    limited = np.where(-margins < _EXP_LIMIT, -margins, _EXP_LIMIT)
    powers = np.fromiter(map(_EXP, limited.tolist()), np.float32, len(limited))
    one = np.float32(1)
    scores: Scores = one / (powers + one + np.float32(1e-16))
    return scores


def _libm(name: str) -> Callable[[float], float]:
    """Return a float32 function of the C library: NumPy's own differ from it in the last bit."""
    function = getattr(ctypes.CDLL(None), name)
    function.argtypes, function.restype = (ctypes.c_float,), ctypes.c_float
    found: Callable[[float], float] = function
    return found


_EXP, _LOG = _libm("expf"), _libm("logf")
