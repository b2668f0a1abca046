"""Engine for data-only models, in the native module.

Without it, :mod:`mev.scoring.numpy_engine` gives the same scores, slower.
"""

import functools
import logging

import numpy as np

from mev.core import native
from mev.scoring.mevt import TreeObjective, malformed
from mev.scoring.numpy_engine import NumpyEngine
from mev.scoring.predictor import Rows, Scores, check_rows

LOG = logging.getLogger(__name__)


def open_model(data: bytes) -> "NativeEngine | NumpyEngine":
    """Return a data-only model in the fastest engine available.

    :raises MalformedModelError: when `data` is not such a model; any bytes are safe to pass.
    """
    if native.is_used():
        return NativeEngine(data)
    _warn()
    return NumpyEngine(data)


@functools.cache
def _warn() -> None:
    LOG.warning(
        "scoring with NumPy, 3 to 8 times slower; native module: %s",
        native.describe(),
        extra={"action": "engine_missing"},
    )


class NativeEngine:
    """A data-only model in the native module; thread-safe.

    :raises MalformedModelError: when `data` is not such a model; any bytes are safe to pass.
    """

    def __init__(self, data: bytes) -> None:
        from mev._native import TreeModel  # noqa: PLC0415 - may be missing

        try:
            model = TreeModel(data)
        except ValueError as error:
            raise malformed(int(error.args[0])) from None
        objective, self.width, self.trees, self.nodes = model.shape
        self.objective = TreeObjective(objective)
        self._predict = model.predict

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        """Return a score for each of `rows`, a float32 table; NaN is a missing feature.

        `margin` leaves out the logistic function.

        :raises WrongRowsError: when the rows have another width or type.
        """
        rows = check_rows(rows, self.width)
        scores = np.empty(len(rows), np.float32)
        self._predict(rows, scores, margin)
        return scores
