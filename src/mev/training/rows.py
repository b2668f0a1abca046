"""Rows of a training, checked, split, and iterated for XGBoost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xgboost as xgb
from numpy.typing import NDArray

from mev.training import data, ranking
from mev.training.check import RowCounts, check
from mev.training.columns import SLOT, choose_features
from mev.training.data import Export, Mask, Split
from mev.training.ranking import Grading
from mev.training.spec import Objective, TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Data of a training; with a `grading`, rows are grouped by slot."""

    export: Export
    features: tuple[str, ...]
    target: str
    cut: Split
    counts: RowCounts
    grading: Grading | None


class Rows(xgb.DataIter):
    """Iterator over rows of an export for XGBoost, which reads them several times."""

    def __init__(
        self,
        export: Export,
        features: Sequence[str],
        target: str,
        keep: Mask,
        grading: Grading | None = None,
    ) -> None:
        super().__init__()
        self._given = (export, [*features, target, *([SLOT] if grading else [])], keep)
        self._features, self._target, self._grading = list(features), target, grading
        self._tables: Iterator[pa.Table] | None = None
        self._groups = 0

    def next(self, input_data: Any) -> bool:
        """Pass a batch to XGBoost and return whether there was one."""
        if self._tables is None:
            tables = data.batches(*self._given)
            self._tables = ranking.whole_slots(tables) if self._grading else tables
        table = next(self._tables, None)
        if table is None:
            return False
        rows = table.select(self._features).cast(
            pa.schema([(name, pa.float32()) for name in self._features]), safe=False
        )
        label = data.numbers(table, [self._target])[:, 0]
        if self._grading is None:
            input_data(data=rows, label=label)
        else:
            input_data(data=rows, label=self._grading(label), qid=self._numbered(table))
        return True

    def reset(self) -> None:
        """Restart the iteration."""
        self._tables, self._groups = None, 0

    def _numbered(self, table: pa.Table) -> NDArray[np.uint32]:
        """Return slots renumbered from 0, since slot numbers may exceed XGBoost's group type."""
        slots, places = np.unique(data.whole_numbers(table, SLOT), return_inverse=True)
        first, self._groups = self._groups, self._groups + len(slots)
        return (places + first).astype(np.uint32)


def prepare(folder: Path, spec: TrainSpec) -> TrainingData:
    """Return the checked and split rows of the export in `folder`.

    :raises MevError: naming what is wrong with the rows or the request.
    """
    export = data.open_export(folder)
    features = choose_features(export.columns, spec)
    cut = data.split(
        export,
        validation_share=spec.validation_share,
        embargo_slots=spec.embargo_slots,
        include_simulated=spec.include_simulated,
    )
    counts = check(export, cut, features, spec.target, spec.objective)
    grading = (
        ranking.grade(export, cut, spec.target) if spec.objective is Objective.RANKING else None
    )
    return TrainingData(
        export=export,
        features=features,
        target=spec.target,
        cut=cut,
        counts=counts,
        grading=grading,
    )


def matrices(
    training_data: TrainingData, max_bin: int
) -> tuple[xgb.QuantileDMatrix, xgb.QuantileDMatrix]:
    """Return the training and the validation matrix."""

    def rows(keep: Mask) -> Rows:
        return Rows(
            training_data.export,
            training_data.features,
            training_data.target,
            keep,
            training_data.grading,
        )

    train = xgb.QuantileDMatrix(rows(training_data.cut.train), max_bin=max_bin)
    return train, xgb.QuantileDMatrix(
        rows(training_data.cut.validation), ref=train, max_bin=max_bin
    )
