"""The manifest of an export: its query, its source, and the digest of each file.

It is written last: if it exists, all files are complete.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

import mev
from mev.core.files import write_atomically
from mev.datasets.catalog import cell_type
from mev.datasets.query import Statements

NAME = "manifest.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of an export."""

    file: str
    rows: int
    bytes: int
    sha256: str


def write(
    folder: Path, export_id: str, statements: Statements, parts: Sequence[Part], created_ns: int
) -> None:
    """Write the manifest into `folder`, after all other files."""
    dataset = statements.dataset
    columns = [
        {
            "name": column.name,
            "type": cell_type(column, statements.query.format),
            "unit": column.unit,
            "description": column.description,
        }
        for column in statements.columns
    ]
    content = {
        "format_version": _VERSION,
        "id": export_id,
        "type": dataset.name,
        "columns": columns,
        "rows": sum(part.rows for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "schema_hash": dataset.schema_hash,
        "query": statements.query.as_json(),
        "order_by": list(dataset.order_by),
        "code_version": mev.__version__,
        "parts": [asdict(part) for part in parts],
        "created_at": datetime.fromtimestamp(created_ns / 1e9, UTC).isoformat(
            timespec="milliseconds"
        ),
    }
    if dataset.features is not None:
        content["feature_schema"] = dataset.features.name
        content["feature_schema_hash"] = dataset.features.hash
    write_atomically(folder / NAME, orjson.dumps(content, option=orjson.OPT_INDENT_2))


def read(folder: Path) -> Mapping[str, Any]:
    """Return the manifest in `folder`.

    :raises FileNotFoundError: if there is none.
    """
    content: Mapping[str, Any] = orjson.loads((folder / NAME).read_bytes())
    return content
