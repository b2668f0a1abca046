"""The rows of a training, checked and divided, and how XGBoost reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xgboost as xgb
from numpy.typing import NDArray

from mev.training import data, ranking
from mev.training.check import Counts, check
from mev.training.data import SLOT, Export, Mask, Split
from mev.training.goals import Objective
from mev.training.ranking import Grading
from mev.training.spec import TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is learned from; with a `grading` in groups, which are the slots."""

    export: Export
    features: tuple[str, ...]
    target: str
    cut: Split
    counts: Counts
    grading: Grading | None


class Rows(xgb.DataIter):
    """Some rows of an export as XGBoost reads them, several times over."""

    def __init__(self, export: Export, features: Sequence[str], target: str, keep: Mask, grading: Grading | None = None) -> None:
        super().__init__()
        self._given = (export, [*features, target, *([SLOT] if grading else [])], keep)
        self._features, self._target, self._grading = list(features), target, grading
        self._tables: Iterator[pa.Table] | None = None
        self._groups = 0

    def next(self, input_data: Any) -> bool:
        """Hand over a batch, and say whether there was one."""
        if self._tables is None:
            tables = data.batches(*self._given)
            self._tables = ranking.whole_slots(tables) if self._grading else tables
        table = next(self._tables, None)
        if table is None:
            return False
        rows = table.select(self._features).cast(pa.schema([(name, pa.float32()) for name in self._features]), safe=False)
        label = data.numbers(table, [self._target])[:, 0]
        if self._grading is None:
            input_data(data=rows, label=label)
        else:
            input_data(data=rows, label=self._grading(label), qid=self._numbered(table))
        return True

    def reset(self) -> None:
        """Begin again."""
        self._tables, self._groups = None, 0

    def _numbered(self, table: pa.Table) -> NDArray[np.uint32]:
        """Return the number of each row's slot, counted from the first: the slot itself may need more bits than XGBoost takes."""
        slots, places = np.unique(data.whole_numbers(table, SLOT), return_inverse=True)
        first, self._groups = self._groups, self._groups + len(slots)
        return (places + first).astype(np.uint32)


def prepare(folder: Path, spec: TrainSpec) -> Material:
    """Return the rows of the export in `folder`, all of which were read once.

    :raises MevError: naming what is wrong with them, or with what is asked of them.
    """
    export = data.open_export(folder)
    features = data.choose_features(export, spec)
    cut = data.split(export, validation_share=spec.validation_share, embargo_slots=spec.embargo_slots)
    counts = check(export, cut, features, spec.target, spec.objective)
    grading = ranking.grade(export, cut, spec.target) if spec.objective is Objective.RANKING else None
    return Material(export=export, features=features, target=spec.target, cut=cut, counts=counts, grading=grading)


def matrices(material: Material, max_bin: int) -> tuple[xgb.QuantileDMatrix, xgb.QuantileDMatrix]:
    """Return what is learned from and what validates."""

    def rows(keep: Mask) -> Rows:
        return Rows(material.export, material.features, material.target, keep, material.grading)

    train = xgb.QuantileDMatrix(rows(material.cut.train), max_bin=max_bin)
    return train, xgb.QuantileDMatrix(rows(material.cut.validation), ref=train, max_bin=max_bin)
