"""Exports onto a disk that is full: no file counts unless it holds the rows that were counted."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.core.errors import MevError
from mev.core.files import DiskFullError
from mev.datasets import parts
from mev.datasets.catalog import Format
from mev.datasets.errors import IncompletePartError
from mev.datasets.export import ExportLimits
from mev.datasets.query import COMPRESSIONS, Query, checked
from mev.simulate.model import Market
from mev.store.clickhouse import ClickHouse
from tests.services.disk import fill, small_disk
from tests.unit.datasets.stored import empty, export, put

COUNT = 3_000
FORMATS = [(format_, compression) for format_ in Format for compression in COMPRESSIONS[format_]]


def _nothing() -> None:
    """Go on."""


@pytest.fixture(scope="module")
def filled(store: ClickHouse) -> ClickHouse:
    market = Market(7, 100.0)
    empty(store)
    put(store, "opportunity", [market.step()[1] for _ in range(COUNT)])
    return store


@pytest.mark.parametrize(("format_", "compression"), FORMATS)
def test_export_onto_a_full_disk_fails_as_disk_full_and_resumes_to_the_same_bytes(
    filled: ClickHouse, tmp_path: Path, format_: Format, compression: str
) -> None:
    query = checked("opportunity", format=format_, compression=compression, part_rows=1_000)
    whole = export(filled, tmp_path / "whole", query)
    room = whole["parts"][0]["bytes"] + whole["parts"][1]["bytes"] // 2
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        (disk / "output").mkdir()
        ballast = fill(disk, leave_bytes=room + (64 << 10))
        with pytest.raises((DiskFullError, OSError)) as refused:
            export(filled, disk, query)
        assert str(disk / "output") in str(refused.value)
        assert not (disk / "output" / "manifest.json").exists()
        kept = json.loads((disk / "plan.json").read_bytes())["parts"]
        assert kept == whole["parts"][: len(kept)]
        assert len(kept) < len(whole["parts"])
        ballast.unlink()
        assert export(filled, disk, query)["parts"] == whole["parts"]


def test_export_leaves_the_reserve_of_a_disk_free(filled: ClickHouse, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 4 << 20) as disk,
        pytest.raises(DiskFullError, match="EXPORT_RESERVE_BYTES") as refused,
    ):
        export(filled, disk, checked("opportunity"), limits=ExportLimits(reserve_bytes=8 << 20))
    assert refused.value.problem()["path"] == str(disk / "output")


def test_part_that_was_changed_before_the_end_is_refused(
    filled: ClickHouse, tmp_path: Path
) -> None:
    query = checked("opportunity", part_rows=1_000)
    export(filled, tmp_path, query)
    (tmp_path / "output" / "manifest.json").unlink()
    part = tmp_path / "output" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(IncompletePartError, match="part-00001"):
        export(filled, tmp_path, query)


def _parquet(path: Path, cells: list[str]) -> None:
    pq.write_table(pa.table({"text": cells, "number": range(len(cells))}), path, row_group_size=7)


def _arrow(path: Path, cells: list[str]) -> None:
    table = pa.table({"text": cells, "number": range(len(cells))})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=7)


def _csv(path: Path, cells: list[str]) -> None:
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    path.write_bytes(
        "".join(f"{cell},{number}\n" for number, cell in enumerate(['"text"', *quoted])).encode()
    )


def _ndjson(path: Path, cells: list[str]) -> None:
    path.write_bytes("".join(json.dumps({"text": cell}) + "\n" for cell in cells).encode())


WRITERS: list[tuple[Format, Callable[[Path, list[str]], None]]] = [
    (Format.PARQUET, _parquet),
    (Format.ARROW, _arrow),
    (Format.CSV, _csv),
    (Format.NDJSON, _ndjson),
]
CELLS = st.lists(
    st.text(alphabet=st.sampled_from(['"', "\n", "\r", ",", "x", "é"]), max_size=6),
    min_size=1,
    max_size=30,
)


def _finished(raw: Path, format_: Format, rows: int) -> None:
    query = Query(type="opportunity", columns=(), format=format_, compression="none")
    parts.finish(raw, raw.with_name("part"), query, rows, _nothing)


@pytest.mark.parametrize(("format_", "write"), WRITERS)
@given(cells=CELLS, cut=st.floats(0, 1, exclude_max=True))
def test_part_is_kept_when_it_is_whole_and_refused_when_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    format_: Format,
    write: Callable[[Path, list[str]], None],
    cells: list[str],
    cut: float,
) -> None:
    raw = tmp_path_factory.mktemp("part") / "raw"
    write(raw, cells)
    content = raw.read_bytes()
    _finished(raw, format_, len(cells))
    for rows, given_bytes in (
        (len(cells), content[: int(cut * len(content))]),
        (len(cells) + 1, content),
    ):
        raw.write_bytes(given_bytes)
        with pytest.raises(MevError) as refused:
            _finished(raw, format_, rows)
        assert refused.value.code in {"incomplete_part", "disk_full"}


def test_parquet_part_with_a_hole_before_its_footer_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    _parquet(raw, ["x" * 100] * 1000)
    content = raw.read_bytes()
    raw.write_bytes(content[:4] + content[200:])
    with pytest.raises(IncompletePartError, match="is cut off"):
        _finished(raw, Format.PARQUET, 1000)
