"""The rows of an export: checked, split by time, and read batch by batch, so that memory does not grow with their number."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mev.training.errors import DamagedExportError, EmptyExportError, LeakingFeatureError, UnknownColumnError
from mev.training.spec import TrainSpec

MANIFEST = "manifest.json"
SLOT = "slot"
PROFIT = "profit_lamports"
OUTCOMES = ("landed", PROFIT, "tip_lamports")
"""Columns that are known only when everything is over."""
SIMULATED = "simulated"
_KEYS = ("id", SLOT, "detected_at_ns", SIMULATED)
_BATCH_ROWS = 65_536
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The files of an export, as its manifest lists them."""

    parts: tuple[Path, ...]
    part_sha256: tuple[str, ...]
    columns: tuple[str, ...]
    rows: int
    feature_schema: str | None
    feature_schema_hash: str | None
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which rows are learned from and which are validated with; the others lie in the embargo between."""

    cutoff_slot: int
    embargo_slots: int
    train: Mask
    validation: Mask

    @property
    def embargoed(self) -> int:
        """How many rows are in neither."""
        return int((~(self.train | self.validation)).sum())


def open_export(folder: Path) -> Export:
    """Return the export in `folder`, every file compared with its digest.

    :raises DamagedExportError: when a file is missing, another one, or not Parquet.
    :raises EmptyExportError: when it has no rows.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        content: Mapping[str, Any] = orjson.loads(raw)
        parts = tuple(_part(folder, part) for part in content["parts"])
        columns = tuple(column["name"] for column in content["columns"])
        rows = int(content["rows"])
    except OSError as error:
        raise DamagedExportError(f"the export cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedExportError(f"{MANIFEST} is not the manifest of an export: {error}") from None
    if rows == 0 or not parts:
        raise EmptyExportError("the export has no rows; widen its range, or wait until bundles have outcomes")
    return Export(
        parts=parts,
        part_sha256=tuple(part["sha256"] for part in content["parts"]),
        columns=columns,
        rows=rows,
        feature_schema=content.get("feature_schema"),
        feature_schema_hash=content.get("feature_schema_hash"),
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
    )


def choose_features(export: Export, spec: TrainSpec) -> tuple[str, ...]:
    """Return the columns to learn from, in order.

    :raises UnknownColumnError: when the export lacks one, the target or the slot.
    :raises LeakingFeatureError: when one would tell the outcome.
    """
    chosen = spec.features or tuple(name for name in export.columns if name not in (*_KEYS, *OUTCOMES, spec.target))
    for name in (*chosen, spec.target, SLOT):
        if name not in export.columns:
            raise UnknownColumnError(f"the export has no column {name[:100]!r}; it has {', '.join(export.columns)}", column=name[:100])
    if leaking := [name for name in chosen if name in (*OUTCOMES, spec.target)]:
        raise LeakingFeatureError(f"{', '.join(leaking)}: known only after the decision; leave it out of the features", columns=leaking)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UnknownColumnError("the features are none, or one comes twice")
    return chosen


def split(export: Export, *, validation_share: float, embargo_slots: int) -> Split:
    """Divide the rows by their slot: the newest validate, those just before them are left out, the rest is learned from.

    :raises EmptyExportError: when a side has no rows.
    """
    slots = np.concatenate([whole_numbers(batch, SLOT) for batch in batches(export, [SLOT])])
    cutoff = int(np.sort(slots)[int(len(slots) * (1 - validation_share))])
    found = Split(cutoff_slot=cutoff, embargo_slots=embargo_slots, train=slots < cutoff - embargo_slots, validation=slots >= cutoff)
    if not found.train.any() or not found.validation.any():
        raise EmptyExportError(
            f"{len(slots)} rows of slots {slots.min()} to {slots.max()} leave {int(found.train.sum())} to learn from and "
            f"{int(found.validation.sum())} to validate with; export more, or make validation_share or embargo_slots smaller"
        )
    return found


def batches(export: Export, columns: Sequence[str], keep: Mask | None = None) -> Iterator[pa.Table]:
    """Yield the rows in the order of the export, some ten thousand at a time; only those that `keep` says."""
    start = 0
    for part in export.parts:
        try:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                    chosen = None if keep is None else keep[start : start + batch.num_rows]
                    start += batch.num_rows
                    if chosen is None:
                        yield pa.Table.from_batches([batch])
                    elif chosen.any():
                        yield pa.Table.from_batches([batch]).filter(pa.array(chosen))
        except pa.ArrowException as error:
            raise DamagedExportError(f"{part.name} cannot be read as Parquet: {error}") from None
    if start != export.rows:
        raise DamagedExportError(f"the files have {start} rows; the manifest says {export.rows}")


def numbers(table: pa.Table, names: Sequence[str]) -> NDArray[np.float32]:
    """Return columns as a table of float32; what is missing is NaN."""
    result = np.empty((table.num_rows, len(names)), np.float32)
    for place, name in enumerate(names):
        column = table.column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            raise UnknownColumnError(f"column {name} holds {column.type}; only numbers are learned", column=name)
        result[:, place] = column.cast(pa.float32(), safe=False).to_numpy()
    return result


def whole_numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Return a column of whole numbers, of which none is missing."""
    column = table.column(name)
    if column.null_count or not pa.types.is_integer(column.type):
        raise DamagedExportError(f"column {name} holds {column.type} with {column.null_count} nulls; whole numbers are needed")
    values: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return values


def _part(folder: Path, part: Mapping[str, Any]) -> Path:
    path = folder / Path(part["file"]).name
    if path.suffix != ".parquet":
        raise DamagedExportError(f"{path.name} is no Parquet file; export with format parquet")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != part["sha256"]:
        raise DamagedExportError(f"{path.name} has SHA-256 {found}; the manifest says {part['sha256']}")
    return path
