"""Learning to rank the opportunities of a slot: grades, whole slots, and ranking metrics.

A grade rates taking an opportunity, from 0 (bad) upwards; each grade counts about twice the one
before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mev.training.columns import SLOT
from mev.training.data import Export, Mask, Split, batches, numbers, whole_numbers
from mev.training.errors import NoGroupsError, UnsortedExportError
from mev.training.metrics import Numbers

MAX_GRADE = 31
"""Largest grade; XGBoost's gains overflow above it."""
_QUARTERS = (0.25, 0.5, 0.75)
Slots = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grading:
    """Mapping of targets to grades: identity without `edges`, else the number of edges below."""

    edges: tuple[float, ...]

    def __call__(self, values: Numbers) -> Numbers:
        """Return the grades of `values`."""
        if not self.edges:
            return values
        return np.searchsorted(np.array(self.edges), values, side="left").astype(np.float32)


def grade(export: Export, cut: Split, target: str) -> Grading:
    """Read every slot once and return the grading of its rows.

    Whole numbers up to 31, as of ``landed``, are used as grades. Otherwise, targets up to 0 have
    grade 0, and the quartiles of the positive training targets have grades 1 to 4.

    :raises UnsortedExportError: when the rows of a slot are not adjacent.
    :raises NoGroupsError: when no slot on a side has rows of different grades.
    """
    learned, slots = _sides(export, cut.train, target)
    held, held_slots = _sides(export, cut.validation, target)
    are_grades = all(np.isin(values, np.arange(MAX_GRADE + 1)).all() for values in (learned, held))
    grading = Grading(edges=() if are_grades else _edges(learned))
    for which, values, places in (
        ("learned from", learned, slots),
        ("validated with", held, held_slots),
    ):
        starts = _starts(places)
        if not _differing(grading(values), starts).any():
            pairs = int((np.diff(np.append(starts, len(places))) > 1).sum())
            raise NoGroupsError(
                f"of {len(starts)} slots that are {which} {pairs} have two rows or more, and none"
                f" has rows of different {target}: there is nothing to rank; export a longer range,"
                " or take objective binary",
                column=target,
            )
    return grading


def whole_slots(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of `tables` regrouped so that no slot is split."""
    rest: pa.Table | None = None
    for table in tables:
        joined = table if rest is None else pa.concat_tables([rest, table])
        slots = whole_numbers(joined, SLOT)
        first = int(np.searchsorted(slots, slots[-1]))
        if first:
            yield joined.slice(0, first)
        rest = joined.slice(first)
    if rest is not None:
        yield rest


def figures(
    grades: Numbers, scores: Numbers, slots: Slots, profit: Numbers | None
) -> dict[str, float]:
    """Return ranking metrics over the slots with rows of different grades.

    Of rows with equal scores, the earlier ranks first. ``profit`` is of all slots with two or more
    rows.
    """
    starts = _starts(slots)
    sizes = np.diff(np.append(starts, len(slots)))
    chosen = _differing(grades, starts)
    order = np.lexsort((np.arange(len(slots)), -scores, np.repeat(np.arange(len(starts)), sizes)))
    best = np.maximum.reduceat(grades, starts)
    first = order[starts]
    among = np.add.reduceat((grades == np.repeat(best, sizes)).astype(np.float64), starts) / sizes
    found = {
        "ndcg_1": _ndcg(grades, order, starts, sizes, 1)[chosen].mean(),
        "ndcg_5": _ndcg(grades, order, starts, sizes, 5)[chosen].mean(),
        "best_first": (grades[first] == best)[chosen].mean(),
        "best_first_by_chance": among[chosen].mean(),
        "ranked_slots": chosen.sum(),
    }
    if profit is not None:
        several = sizes > 1
        found |= {
            "first_profit_lamports": profit[first][several].sum(),
            "chance_profit_lamports": (np.add.reduceat(profit, starts) / sizes)[several].sum(),
            "ideal_profit_lamports": np.maximum.reduceat(profit, starts)[several].sum(),
        }
    return {name: float(value) for name, value in found.items()}


def _sides(export: Export, keep: Mask, target: str) -> tuple[Numbers, Slots]:
    tables = list(batches(export, [SLOT, target], keep))
    slots = np.concatenate([whole_numbers(table, SLOT) for table in tables])
    if (np.diff(slots) < 0).any():
        raise UnsortedExportError(
            "the rows are not in the order of their slots; export them again, from this version on"
            " they are"
        )
    return np.concatenate([numbers(table, [target])[:, 0] for table in tables]), slots


def _edges(values: Numbers) -> tuple[float, ...]:
    good = values[values > 0]
    return (0.0, *(float(edge) for edge in np.quantile(good, _QUARTERS))) if len(good) else (0.0,)


def _starts(slots: Slots) -> NDArray[np.intp]:
    return np.flatnonzero(np.diff(slots, prepend=slots[0] - 1))


def _differing(grades: Numbers, starts: NDArray[np.intp]) -> Mask:
    differing: Mask = np.maximum.reduceat(grades, starts) > np.minimum.reduceat(grades, starts)
    return differing


def _ndcg(
    grades: Numbers,
    order: NDArray[np.intp],
    starts: NDArray[np.intp],
    sizes: NDArray[np.intp],
    places: int,
) -> NDArray[Any]:
    """Return the NDCG of the first `places` rows of each slot."""
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    weight = np.where(place < places, 1 / np.log2(place + 2), 0.0)
    gain = np.exp2(grades.astype(np.float64)) - 1
    ideal = np.lexsort((-gain, np.repeat(np.arange(len(starts)), sizes)))
    best = np.add.reduceat(gain[ideal] * weight, starts)
    return np.add.reduceat(gain[order] * weight, starts) / np.where(best > 0, best, 1.0)
