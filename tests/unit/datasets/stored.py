"""Events stored as the sink stores them, and exports run as their jobs run them."""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from google.protobuf.message import Message

from mev.datasets import manifest
from mev.datasets.export import ExportLimits, make_export
from mev.datasets.query import Query
from mev.jobs.context import Context
from mev.sink.block import join
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import EVENT_TYPES

_TOKENS = count()


def put(store: ClickHouse, name: str, messages: Sequence[Message]) -> None:
    """Store one block."""
    event = EVENT_TYPES[name]
    block = join([message.SerializeToString() for message in messages])
    columns = [field.name for field in event.fields]
    token = f"block-{next(_TOKENS)}"
    store.insert_protobuf(
        event.table,
        columns,
        block,
        schema=event.proto_schema,
        message=event.descriptor.name,
        token=token,
    )


def empty(store: ClickHouse) -> None:
    for event in EVENT_TYPES.values():
        store.command(f"TRUNCATE TABLE `{store.database}`.`{event.table}`")


def export(
    store: ClickHouse,
    folder: Path,
    query: Query,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    limits: ExportLimits | None = None,
) -> dict[str, Any]:
    """Run an export and return its manifest; its files are in ``output`` below `folder`."""
    output = folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    spec = json.loads(json.dumps(query.as_json()))
    make_export(store, limits or ExportLimits())(
        Context(spec, folder, output, logging.getLogger("test"), cancelled)
    )
    return dict(manifest.read(output))


def parquet(folder: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a Parquet export, part after part."""
    rows: list[dict[str, Any]] = []
    for part in content["parts"]:
        found = pq.read_table(folder / "output" / part["file"]).to_pylist()
        assert len(found) == part["rows"]
        rows += found
    return rows
