"""Shares of the rows of an export, each read and checked by one worker of a cluster."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mev.training import data
from mev.training.columns import SIMULATED, SLOT
from mev.training.errors import DamagedExportError
from mev.training.rows import TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A range of rows of one file.

    Of the rows whose slot is in [`first`, `end`), `rows` rows from index `start` on.
    """

    path: str
    sha256: str
    columns: tuple[str, ...]
    first: int | None
    end: int | None
    start: int
    rows: int
    real_only: bool = False


def shares(training_data: TrainingData) -> tuple[list[Share], list[Share]]:
    """Return the training and the validation shares, file by file."""
    export, cut = training_data.export, training_data.cut
    columns = (*training_data.features, training_data.target, SLOT)
    ends = np.cumsum([0, *(pq.ParquetFile(part).metadata.num_rows for part in export.parts)])
    places = [slice(int(first), int(end)) for first, end in pairwise(ends)]

    def side(keep: data.Mask, first: int | None, end: int | None) -> list[Share]:
        return [
            Share(
                path=str(part.resolve()),
                sha256=digest,
                columns=columns,
                first=first,
                end=end,
                start=0,
                rows=int(keep[place].sum()),
                real_only=cut.left_out > 0,
            )
            for part, digest, place in zip(export.parts, export.part_sha256, places, strict=True)
            if keep[place].any()
        ]

    return side(cut.train, None, cut.cutoff_slot - cut.embargo_slots), side(
        cut.validation, cut.cutoff_slot, None
    )


def divided(share: Share, most: int) -> Iterator[Share]:
    """Yield `share` in pieces of similar size with at most `most` rows."""
    bounds = np.linspace(0, share.rows, math.ceil(share.rows / most) + 1).astype(int)
    for start, end in pairwise(bounds):
        yield replace(share, start=int(start), rows=int(end - start))


def read(share: Share) -> NDArray[np.float32]:
    """Return features and, last, the target of some rows; runs on the worker.

    :raises DamagedExportError: when the file differs on this worker.
    """
    content = Path(share.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != share.sha256:
        raise DamagedExportError(
            f"{share.path} is another file on a worker than where the training was started"
        )
    names = dict.fromkeys((*share.columns, *([SIMULATED] if share.real_only else [])))
    table = pq.read_table(pa.BufferReader(content), columns=list(names))
    slots = data.whole_numbers(table, SLOT)
    keep = np.ones(len(slots), np.bool_)
    if share.first is not None:
        keep &= slots >= share.first
    if share.end is not None:
        keep &= slots < share.end
    if share.real_only:
        keep &= data.numbers(table, [SIMULATED])[:, 0] == 0
    return data.numbers(
        table.filter(pa.array(keep)).slice(share.start, share.rows), share.columns[:-1]
    )
