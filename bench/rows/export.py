"""Export of a million rows to Parquet, against one ``INTO OUTFILE`` of the same rows.

Both deduplicate and sort. The export writes parts with digests, durably; the engine's single file
has none of these.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count, cycle
from pathlib import Path

import clickhouse_connect

from bench import events
from bench.harness import Clock, Row, RowInput, Sides
from mev.datasets import manifest
from mev.datasets.export import ExportLimits, make_export
from mev.datasets.query import checked
from mev.jobs.context import Context
from mev.simulate.model import EPOCH_NS
from mev.sink.block import join
from mev.sink.writer import Writer
from mev.store.clickhouse import Address, ClickHouse

_ROWS = 1_000_000
_BLOCK_ROWS = 65_536
_DIFFERENT = 8192
_EVENTS_A_SLOT = 20
_DATABASE = "mev"


@contextmanager
def _open(setting: RowInput) -> Iterator[Sides]:
    os.chdir(setting.scratch)  # the engine keeps a cache of schemas in the working directory
    path = setting.scratch / "clickhouse"
    with closing(ClickHouse(Address(database=_DATABASE, path=path))) as store:
        Writer(store, lambda _: None, "bench").prepare()
        _fill(store)
        with closing(clickhouse_connect.get_client(dsn=f"chdb://{path}")) as client:
            columns = ", ".join(f"`{field.name}`" for field in events.EVENT.fields)
            table = f"`{_DATABASE}`.`{events.EVENT.table}`"
            bench = _Bench(
                setting.scratch,
                store,
                lambda target: client.raw_query(
                    f"SELECT {columns} FROM {table} FINAL ORDER BY"
                    f" {', '.join(events.EVENT.order_by)} INTO OUTFILE '{target}'",
                    settings={"output_format_parquet_compression_method": "zstd"},
                    fmt="Parquet",
                ),
            )
            yield Sides(bench.engine, bench.export)


def _fill(store: ClickHouse) -> None:
    patterns = cycle(events.opportunities(_DIFFERENT))
    event = events.EVENT
    for first in range(0, _ROWS, _BLOCK_ROWS):
        values = []
        for number, each in zip(
            range(first, min(first + _BLOCK_ROWS, _ROWS)), patterns, strict=False
        ):
            each.id = f"event-{number}"
            each.detected_at_ns = EPOCH_NS + number
            each.slot = 310_000_000 + number // _EVENTS_A_SLOT
            values.append(each.SerializeToString())
        columns = list(event.clickhouse_types)
        name = event.descriptor.name
        store.insert_protobuf(
            event.table,
            columns,
            join(values),
            schema=event.proto_schema,
            message=name,
            token=f"{first}",
        )


class _Bench:
    """The two sides, on one table."""

    def __init__(self, scratch: Path, store: ClickHouse, outfile: Callable[[Path], object]) -> None:
        self._scratch = scratch
        self._store = store
        self._outfile = outfile
        self._rounds = count()

    def export(self) -> float:
        """Export everything as its job does."""
        folder = self._scratch / f"export-{next(self._rounds)}"
        output = folder / "output"
        output.mkdir(parents=True)
        spec = checked(events.EVENT.name).as_json()
        started = time.perf_counter()
        make_export(self._store, ExportLimits())(
            Context(spec, folder, output, logging.getLogger("bench"), lambda: False)
        )
        elapsed = time.perf_counter() - started
        rows = manifest.read(output)["rows"]
        shutil.rmtree(folder)
        if rows != _ROWS:
            raise RuntimeError(f"{rows} rows were exported, not {_ROWS}")
        return _ROWS / elapsed

    def engine(self) -> float:
        """Let the engine write one file."""
        target = self._scratch / "engine.parquet"
        started = time.perf_counter()
        self._outfile(target)
        elapsed = time.perf_counter() - started
        target.unlink()
        return _ROWS / elapsed


ROW = Row(
    name="export",
    unit="rows",
    ours="a million opportunities to Parquet in four parts, counted, digested, on the disk",
    baseline="the engine's INTO OUTFILE of the same rows, in the same order, to one file",
    clock=Clock.WALL,
    open=_open,
    expected_ratio=0.7,
)
