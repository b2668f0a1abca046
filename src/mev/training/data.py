"""Rows of an export: verified, split by time, and read in batches of bounded memory."""

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

from mev.training.columns import SIMULATED, SLOT
from mev.training.errors import DamagedExportError, EmptyExportError, UnknownColumnError

MANIFEST = "manifest.json"
_BATCH_ROWS = 65_536
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The files of an export, as listed in its manifest."""

    parts: tuple[Path, ...]
    part_sha256: tuple[str, ...]
    columns: tuple[str, ...]
    rows: int
    feature_schema: str | None
    feature_schema_hash: str | None
    manifest_sha256: str

    @property
    def data_sha256(self) -> str:
        """Return the digest of the file digests, equal for exports with the same rows."""
        return hashlib.sha256("\n".join(self.part_sha256).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Masks of the training and validation rows.

    The other rows are in the embargo between them, or are simulated and left out.
    """

    cutoff_slot: int
    embargo_slots: int
    train: Mask
    validation: Mask
    left_out: int = 0
    """Simulated rows left out in favour of real ones."""

    @property
    def embargoed(self) -> int:
        """Return the number of rows in the embargo."""
        return int((~(self.train | self.validation)).sum()) - self.left_out


def open_export(folder: Path) -> Export:
    """Return the export in `folder` after a check of every file's digest.

    :raises DamagedExportError: when a file is missing, changed or not Parquet.
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
        raise EmptyExportError(
            "the export has no rows; widen its range, or wait until bundles have outcomes"
        )
    return Export(
        parts=parts,
        part_sha256=tuple(part["sha256"] for part in content["parts"]),
        columns=columns,
        rows=rows,
        feature_schema=content.get("feature_schema"),
        feature_schema_hash=content.get("feature_schema_hash"),
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
    )


def split(
    export: Export, *, validation_share: float, embargo_slots: int, include_simulated: bool = False
) -> Split:
    """Split the rows by slot: the newest validate, those just before are embargoed, the rest train.

    Simulated rows are left out where there are real ones, unless `include_simulated`.

    :raises EmptyExportError: when a side has no rows.
    """
    slots = np.concatenate([whole_numbers(batch, SLOT) for batch in batches(export, [SLOT])])
    used = np.ones(len(slots), np.bool_) if include_simulated else _real(export, len(slots))
    kept = slots[used]
    cutoff = int(np.sort(kept)[int(len(kept) * (1 - validation_share))])
    train, validation = used & (slots < cutoff - embargo_slots), used & (slots >= cutoff)
    if not train.any() or not validation.any():
        left_out = (
            f"; {len(slots) - len(kept)} simulated rows are left out (include_simulated)"
            if len(kept) < len(slots)
            else ""
        )
        raise EmptyExportError(
            f"{len(kept)} rows of slots {kept.min()} to {kept.max()} leave {int(train.sum())} to"
            f" learn from and {int(validation.sum())} to validate with; export more, or make"
            f" validation_share or embargo_slots smaller{left_out}"
        )
    return Split(
        cutoff_slot=cutoff,
        embargo_slots=embargo_slots,
        train=train,
        validation=validation,
        left_out=len(slots) - len(kept),
    )


def _real(export: Export, rows: int) -> Mask:
    """Return the mask of the real rows, or of all rows where all are simulated."""
    if SIMULATED not in export.columns:
        return np.ones(rows, np.bool_)
    real = np.concatenate(
        [numbers(batch, [SIMULATED])[:, 0] == 0 for batch in batches(export, [SIMULATED])]
    )
    return real if real.any() else ~real


def batches(export: Export, columns: Sequence[str], keep: Mask | None = None) -> Iterator[pa.Table]:
    """Yield the rows in order, in batches of some ten thousand, filtered by `keep`."""
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
    """Return columns as a float32 table; missing values are NaN."""
    result = np.empty((table.num_rows, len(names)), np.float32)
    for place, name in enumerate(names):
        column = table.column(name)
        if not (
            pa.types.is_floating(column.type)
            or pa.types.is_integer(column.type)
            or pa.types.is_boolean(column.type)
        ):
            raise UnknownColumnError(
                f"column {name} holds {column.type}; only numbers are learned", column=name
            )
        result[:, place] = column.cast(pa.float32(), safe=False).to_numpy()
    return result


def whole_numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Return an integer column without missing values."""
    column = table.column(name)
    if column.null_count or not pa.types.is_integer(column.type):
        raise DamagedExportError(
            f"column {name} holds {column.type} with {column.null_count} nulls; whole numbers are"
            " needed"
        )
    values: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return values


def _part(folder: Path, part: Mapping[str, Any]) -> Path:
    path = folder / Path(part["file"]).name
    if path.suffix != ".parquet":
        raise DamagedExportError(f"{path.name} is no Parquet file; export with format parquet")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != part["sha256"]:
        raise DamagedExportError(
            f"{path.name} has SHA-256 {found}; the manifest says {part['sha256']}"
        )
    return path
