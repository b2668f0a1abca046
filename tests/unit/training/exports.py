"""Folders as an export leaves them, of the simulated market."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mev.simulate.model import Market
from mev.wire.features import OPPORTUNITY

LABELS = ("landed", "profit_lamports", "tip_lamports")


def examples(rows: int, *, seed: int = 7, rate_per_s: float = 20.0) -> pa.Table:
    """Return what the training examples of a simulated market are."""
    market = Market(seed, rate_per_s)
    lines = []
    for _ in range(rows):
        _, opportunity, bundle = market.step()
        keys = {
            "id": opportunity.id,
            "slot": opportunity.slot,
            "detected_at_ns": opportunity.detected_at_ns,
            "simulated": opportunity.simulated,
        }
        labels = {
            "landed": bundle.landed,
            "profit_lamports": bundle.profit_lamports,
            "tip_lamports": bundle.tip_lamports,
        }
        lines.append(
            keys | dict(zip(OPPORTUNITY.names, opportunity.features, strict=True)) | labels
        )
    features = [(name, pa.float32()) for name in OPPORTUNITY.names]
    keyed = [
        ("id", pa.string()),
        ("slot", pa.uint64()),
        ("detected_at_ns", pa.int64()),
        ("simulated", pa.bool_()),
    ]
    labelled = [
        ("landed", pa.bool_()),
        ("profit_lamports", pa.int64()),
        ("tip_lamports", pa.uint64()),
    ]
    return pa.Table.from_pylist(lines, pa.schema([*keyed, *features, *labelled]))


def write_export(
    folder: Path,
    table: pa.Table,
    *,
    part_rows: int = 1500,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Write `table` as the files of an export."""
    folder.mkdir(parents=True)
    parts: list[Mapping[str, Any]] = []
    for number, start in enumerate(range(0, table.num_rows, part_rows)):
        path = folder / f"part-{number:05}.parquet"
        part = table.slice(start, part_rows)
        pq.write_table(part, path, compression="zstd")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        parts.append(
            {
                "file": path.name,
                "rows": part.num_rows,
                "bytes": path.stat().st_size,
                "sha256": digest,
            }
        )
    content: dict[str, Any] = {
        "format_version": 1,
        "id": "export-1",
        "type": "training_examples",
        "columns": [
            {"name": field.name, "type": str(field.type), "unit": "", "description": ""}
            for field in table.schema
        ],
        "rows": table.num_rows,
        "feature_schema": OPPORTUNITY.name,
        "feature_schema_hash": OPPORTUNITY.hash,
        "parts": parts,
    }
    if change:
        change(content)
    (folder / "manifest.json").write_bytes(orjson.dumps(content))
    return folder


class Watcher:
    """A report that remembers what it was told, and asks for an end after some rounds."""

    def __init__(self, cancel_after: float = float("inf")) -> None:
        self.told: list[tuple[float, float, str, dict[str, object]]] = []
        self._cancel_after = cancel_after

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        self.told.append((done, total, note, figures))

    def is_cancelled(self) -> bool:
        return bool(self.told) and self.told[-1][0] >= self._cancel_after
