"""Exports run as their jobs run them, against the embedded engine."""

import csv
import gzip
import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard

from mev.core.errors import MevError
from mev.datasets.catalog import Format
from mev.datasets.errors import ExportTooLargeError, StillChangingError, TooManyPartsError
from mev.datasets.export import ExportLimits
from mev.datasets.query import COMPRESSIONS, Query, checked
from mev.jobs.errors import CancelledJobError
from mev.simulate.model import Market
from mev.store.clickhouse import ClickHouse
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from mev.wire.registry import EVENT_TYPES
from tests.unit.datasets.stored import empty, export, parquet, put

COUNT = 700
_MARKET = Market(7, 100.0)
STEPS = [_MARKET.step() for _ in range(COUNT)]
TICKS = [tick for tick, _, _ in STEPS]
OPPORTUNITIES = [opportunity for _, opportunity, _ in STEPS]
BUNDLES = [bundle for _, _, bundle in STEPS]
FORMATS = [(format_, compression) for format_ in Format for compression in COMPRESSIONS[format_]]


@pytest.fixture
def filled(store: ClickHouse) -> ClickHouse:
    """Give the engine with a market in it."""
    empty(store)
    put(store, "opportunity", OPPORTUNITIES)
    put(store, "bundle", BUNDLES)
    put(store, "tick", TICKS)
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "output").glob("part-*")}


def test_an_export_has_every_event_once_in_order_and_says_what_it_is(
    filled: ClickHouse, tmp_path: Path
) -> None:
    query = checked("opportunity", part_rows=300)
    manifest = export(filled, tmp_path, query)
    rows = parquet(tmp_path, manifest)
    assert [part["rows"] for part in manifest["parts"]] == [300, 300, 100]
    assert (manifest["rows"], manifest["format_version"], manifest["type"], manifest["id"]) == (
        COUNT,
        1,
        "opportunity",
        tmp_path.name,
    )
    assert manifest["schema_hash"] == EVENT_TYPES["opportunity"].schema_hash
    assert manifest["order_by"] == ["slot", "id"]
    assert Query.from_json(manifest["query"]) == query
    assert [column["name"] for column in manifest["columns"]] == [
        field.name for field in EVENT_TYPES["opportunity"].fields
    ]
    assert manifest["bytes"] == sum(part["bytes"] for part in manifest["parts"])
    for part in manifest["parts"]:
        content = (tmp_path / "output" / part["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            part["bytes"],
            part["sha256"],
        )
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [
        "manifest.json",
        *(f"part-{number:05}.parquet" for number in range(3)),
    ]
    expected = sorted(OPPORTUNITIES, key=lambda event: (event.slot, event.id))
    assert [row["id"] for row in rows] == [event.id for event in expected]
    assert [row["expected_profit_lamports"] for row in rows] == [
        event.expected_profit_lamports for event in expected
    ]
    assert rows[0]["route"][0]["dex"] == expected[0].route[0].dex


@pytest.mark.parametrize(("format_", "compression"), FORMATS)
def test_the_same_query_on_the_same_data_gives_the_same_bytes_however_the_table_lies(
    store: ClickHouse, tmp_path: Path, format_: Format, compression: str
) -> None:
    query = checked("opportunity", format=format_, compression=compression, part_rows=256)
    empty(store)
    put(store, "opportunity", OPPORTUNITIES)
    whole = export(store, tmp_path / "whole", query)
    empty(store)
    store.command("SYSTEM STOP MERGES")
    for first in range(11):
        put(store, "opportunity", OPPORTUNITIES[first::11])
    put(store, "opportunity", OPPORTUNITIES[::3])  # repeats, not merged yet
    scattered = export(store, tmp_path / "scattered", query)
    store.command("SYSTEM START MERGES")
    assert scattered["rows"] == COUNT
    assert files(tmp_path / "scattered") == files(tmp_path / "whole")
    assert scattered["parts"] == whole["parts"]
    rows = [
        row
        for part in whole["parts"]
        for row in _rows(tmp_path / "whole" / "output" / part["file"], format_, compression)
    ]
    assert [str(row) for row in rows] == [
        event.id for event in sorted(OPPORTUNITIES, key=lambda event: (event.slot, event.id))
    ]


@pytest.mark.parametrize("format_", [Format.PARQUET, Format.ARROW])
def test_parts_of_many_of_the_engines_blocks_do_not_show_them(
    store: ClickHouse, tmp_path: Path, format_: Format
) -> None:
    made = (
        "INSERT INTO `mev`.`bundle` (bundle_id, opportunity_id, slot, landed, latency_ns) SELECT"
        " toString(number), repeat('x', number % 40), intDiv(number, 9), number % 3 = 0,"
        " sipHash64(number) FROM numbers(300000)"
    )
    query = checked("bundle", format=format_, part_rows=140_000)
    empty(store)
    store.command(made)
    whole = export(store, tmp_path / "whole", query)
    empty(store)
    store.command("SYSTEM STOP MERGES")
    for turn in range(7):
        store.command(f"{made} WHERE number % 7 = {turn}")
    scattered = export(store, tmp_path / "scattered", query)
    store.command("SYSTEM START MERGES")
    assert [part["rows"] for part in whole["parts"]] == [140_000, 140_000, 20_000]
    assert scattered["parts"] == whole["parts"]


def _rows(path: Path, format_: Format, compression: str) -> list[Any]:
    """Return the ids in a file, read by an independent reader."""
    if format_ is Format.PARQUET:
        return list(pq.read_table(path).column("id").to_pylist())
    if format_ is Format.ARROW:
        return list(pyarrow.ipc.open_file(path).read_all().column("id").to_pylist())
    content = path.read_bytes()
    if compression == "gzip":
        content = gzip.decompress(content)
    elif compression == "zstd":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    lines = content.decode().splitlines()
    if format_ is Format.NDJSON:
        return [json.loads(line)["id"] for line in lines]
    assert lines[0].startswith('"id","slot"')
    return [line.split(",")[0].strip('"') for line in lines[1:]]


def test_numbers_survive_as_text(filled: ClickHouse, tmp_path: Path) -> None:
    content = export(
        filled,
        tmp_path,
        checked(
            "opportunity", format=Format.NDJSON, columns=["id", "probability", "features", "slot"]
        ),
    )
    lines = (tmp_path / "output" / content["parts"][0]["file"]).read_bytes().splitlines()
    by_id = {event.id: event for event in OPPORTUNITIES}
    for line in map(json.loads, lines):
        event = by_id[line["id"]]
        assert (line["probability"], line["slot"]) == (event.probability, event.slot)
        assert [value is None for value in line["features"]] == [
            math.isnan(value) for value in event.features
        ]


def test_slots_times_conditions_and_columns_bound_what_is_exported(
    filled: ClickHouse, tmp_path: Path
) -> None:
    slots = sorted({event.slot for event in OPPORTUNITIES})
    first, end = slots[2], slots[5]
    found = parquet(
        tmp_path / "a",
        export(
            filled,
            tmp_path / "a",
            checked("opportunity", slots=(first, end), columns=["slot", "kind"]),
        ),
    )
    assert [row["slot"] for row in found] == sorted(
        event.slot for event in OPPORTUNITIES if first <= event.slot < end
    )
    assert set(found[0]) == {"slot", "kind"}
    times = [event.timestamp_ns for event in TICKS]
    query = checked("tick", time_ns=(times[10], times[20]), filter=['market_id != "nope"'])
    found = parquet(tmp_path / "b", export(filled, tmp_path / "b", query))
    assert [row["timestamp_ns"].value for row in found] == times[10:20]


def test_a_sample_is_the_same_every_time_and_part_of_a_larger_one(
    filled: ClickHouse, tmp_path: Path
) -> None:
    def ids(name: str, share: float) -> set[str]:
        return {
            row["id"]
            for row in parquet(
                tmp_path / name,
                export(filled, tmp_path / name, checked("opportunity", sample=share)),
            )
        }

    tenth, half = ids("tenth", 0.1), ids("half", 0.5)
    assert tenth == ids("again", 0.1)
    assert tenth < half
    assert 0.03 * COUNT < len(tenth) < 0.2 * COUNT
    assert 0.4 * COUNT < len(half) < 0.6 * COUNT


@pytest.mark.parametrize("format_", Format)
@pytest.mark.parametrize("compressed", [False, True])
def test_export_without_rows_is_one_readable_file_with_its_schema(
    filled: ClickHouse, tmp_path: Path, format_: Format, compressed: bool
) -> None:
    compression = COMPRESSIONS[format_][-1 if compressed else 0]
    for name, type_, conditions in (
        ("none", "liquidation", []),
        ("filtered", "tick", ["bid_price < 0"]),
    ):
        query = checked(type_, filter=conditions, format=format_, compression=compression)
        (part,) = export(filled, tmp_path / name, query)["parts"]
        assert part["rows"] == 0
        path = tmp_path / name / "output" / part["file"]
        if format_ is Format.PARQUET:
            assert pq.read_table(path).column_names == list(query.columns)
        elif format_ is Format.ARROW:
            table = pyarrow.ipc.open_file(path).read_all()
            assert (table.num_rows, table.column_names) == (0, list(query.columns))
        else:
            header = [f'"{column}"' for column in query.columns] if format_ is Format.CSV else []
            assert unpacked(path, query) == "".join(
                f"{line}\n" for line in [",".join(header)] if line
            )


def unpacked(path: Path, query: Query) -> str:
    """Return the text of a CSV or NDJSON file."""
    content = path.read_bytes()
    if query.compression == "gzip":
        content = gzip.decompress(content)
    elif query.compression == "zstd":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return content.decode()


@pytest.mark.parametrize("format_", [Format.PARQUET, Format.ARROW])
def test_times_are_timestamps_with_nanoseconds(
    store: ClickHouse, tmp_path: Path, format_: Format
) -> None:
    empty(store)
    times = [1_735_689_600_123_456_789, 0]
    put(
        store,
        "opportunity",
        [Opportunity(id=f"o{n}", slot=n, detected_at_ns=time) for n, time in enumerate(times)],
    )
    query = checked("opportunity", columns=["id", "detected_at_ns"], format=format_)
    manifest = export(store, tmp_path, query)
    path = tmp_path / "output" / manifest["parts"][0]["file"]
    table = (
        pq.read_table(path) if format_ is Format.PARQUET else pyarrow.ipc.open_file(path).read_all()
    )
    assert table.schema.field("detected_at_ns").type == pyarrow.timestamp("ns", tz="UTC")
    assert table.column("detected_at_ns").cast(pyarrow.int64()).to_pylist() == [times[0], None]
    assert manifest["columns"][1]["type"] == "Nullable(DateTime64(9, 'UTC'))"


def test_csv_has_nested_values_as_json_and_no_formula_unless_asked(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    starts = "=+-@\t\r\n\0\uff1d\uff0b\uff0d\uff20"
    names = [*(f"{start}1" for start in starts), "'=1", "a=1", "1", "\uff11", "x", ""]
    put(
        store,
        "opportunity",
        [
            Opportunity(
                id=f"o{n}",
                slot=n,
                kind=name,
                features=[1.5, math.nan],
                route=[{"dex": '=cmd("x")', "amount_in": 2**63}],
            )
            for n, name in enumerate(names)
        ],
    )

    def cells(folder: str, **options: Any) -> list[dict[str, str]]:
        query = checked(
            "opportunity",
            columns=["kind", "route", "features", "detected_at_ns"],
            format=Format.CSV,
            **options,
        )
        manifest = export(store, tmp_path / folder, query)
        path = tmp_path / folder / "output" / manifest["parts"][0]["file"]
        return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))

    escaped, raw = cells("escaped"), cells("raw", escape_formulas=False)
    assert [row["kind"] for row in escaped] == [
        f"'{name}" if name[:1] in set(starts) else name for name in names
    ]
    assert [row["kind"] for row in raw] == names
    assert json.loads(escaped[0]["features"]) == [1.5, None]
    assert json.loads(escaped[0]["route"])[0]["dex"] == '=cmd("x")'
    assert json.loads(escaped[0]["route"])[0]["amount_in"] == 2**63
    assert escaped[0]["detected_at_ns"] == "0"


def test_examples_join_what_was_known_with_what_became_of_it(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    put(store, "opportunity", OPPORTUNITIES)
    sent = BUNDLES[: COUNT // 2]
    other = OPPORTUNITIES[0]
    twice = [
        Bundle(
            bundle_id=f"again-{number}",
            opportunity_id=other.id,
            slot=other.slot,
            landed=number == 2,
            profit_lamports=number,
            tip_lamports=9,
        )
        for number in range(1, 4)
    ]
    strange = [
        Opportunity(id="short", slot=other.slot, features=[1.0], feature_schema=OPPORTUNITY.name),
        Opportunity(
            id="other", slot=other.slot, features=list(other.features), feature_schema="mine.v1"
        ),
    ]
    put(store, "opportunity", strange)
    put(store, "bundle", [bundle for bundle in sent if bundle.opportunity_id != other.id])
    put(
        store,
        "bundle",
        [
            *twice,
            *(Bundle(bundle_id=event.id, opportunity_id=event.id, slot=1) for event in strange),
        ],
    )
    put(store, "bundle", sent[5:20])
    manifest = export(store, tmp_path, checked("training_examples", part_rows=100))
    rows = {row["id"]: row for row in parquet(tmp_path, manifest)}
    assert manifest["feature_schema"] == OPPORTUNITY.name
    known, came = (
        ("id", "slot", "detected_at_ns", "agent_id", "simulated"),
        ("landed", "profit_lamports", "tip_lamports"),
    )
    assert list(rows[other.id]) == [*known, *OPPORTUNITY.names, *came]
    assert set(rows) == {bundle.opportunity_id for bundle in sent}
    assert manifest["rows"] == len(rows)
    assert (
        rows[other.id]["landed"],
        rows[other.id]["profit_lamports"],
        rows[other.id]["tip_lamports"],
    ) == (True, 2, 9)
    opportunities = {event.id: event for event in OPPORTUNITIES}
    for bundle in sent:
        if bundle.opportunity_id == other.id:
            continue
        row, event = rows[bundle.opportunity_id], opportunities[bundle.opportunity_id]
        assert (row["landed"], row["profit_lamports"], row["tip_lamports"]) == (
            bundle.landed,
            bundle.profit_lamports,
            bundle.tip_lamports,
        )
        assert [str(row[name]) for name in OPPORTUNITY.names] == [
            str(value) for value in event.features
        ]
        assert (row["slot"], row["detected_at_ns"].value) == (event.slot, event.detected_at_ns)
    labels = export(
        store,
        tmp_path / "labels",
        checked("training_examples", columns=["landed", "tip_share"], filter=["slot > 0"]),
    )
    assert labels["rows"] == manifest["rows"]
    assert len(parquet(tmp_path / "labels", labels)) == manifest["rows"]


def test_an_export_that_was_cut_short_goes_on_where_it_was_to_the_same_bytes(
    filled: ClickHouse, tmp_path: Path
) -> None:
    query = checked("bundle", part_rows=100)
    whole = export(filled, tmp_path / "whole", query)
    with pytest.raises(CancelledJobError):
        export(filled, tmp_path / "cut", query, cancelled=lambda: len(files(tmp_path / "cut")) == 3)
    done = files(tmp_path / "cut")
    assert len(done) == 3
    assert not (tmp_path / "cut" / "output" / "manifest.json").exists()
    (tmp_path / "cut" / "output" / ".part").write_bytes(b"half")
    (tmp_path / "cut" / "output" / "part-00003.parquet").write_bytes(b"never noted down")
    times = {name: (tmp_path / "cut" / "output" / name).stat().st_mtime_ns for name in done}
    assert export(filled, tmp_path / "cut", query)["parts"] == whole["parts"]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert {name: (tmp_path / "cut" / "output" / name).stat().st_mtime_ns for name in done} == times


class Busy(ClickHouse):
    """Engine to which `arriving` further events are written while parts are exported."""

    def __init__(self, store: ClickHouse, arriving: int) -> None:
        super().__init__(store._address)
        self.arriving = arriving

    def write_file(
        self,
        path: Path,
        sql: str,
        parameters: Mapping[str, Any],
        *,
        fmt: str,
        settings: Mapping[str, Any],
        answer_s: float,
    ) -> None:
        super().write_file(path, sql, parameters, fmt=fmt, settings=settings, answer_s=answer_s)
        if self.arriving:
            self.arriving -= 1
            put(
                self,
                "bundle",
                [Bundle(bundle_id=f"late-{self.arriving}", slot=BUNDLES[0].slot + 1)],
            )


def test_an_event_that_arrives_meanwhile_is_in_the_rows_and_in_their_number_or_in_neither(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    put(store, "bundle", BUNDLES)
    busy = Busy(store, 2)
    manifest = export(busy, tmp_path, checked("bundle", part_rows=10_000))
    assert manifest["rows"] == len(parquet(tmp_path, manifest)) == COUNT + 2
    busy.arriving = 1_000
    with pytest.raises(StillChangingError, match="end a little earlier"):
        export(
            busy,
            tmp_path / "again",
            checked("bundle", part_rows=10_000),
            limits=ExportLimits(rests_s=(0.0, 0.1, 0.1)),
        )
    assert files(tmp_path / "again") == {}
    busy.close()


def test_what_arrives_after_the_start_at_the_end_is_left_out(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    put(store, "bundle", BUNDLES)

    def another() -> bool:
        if (tmp_path / "plan.json").exists():  # it has looked where it ends
            put(store, "bundle", [Bundle(bundle_id="later", slot=2**63)])
        return False

    assert (
        export(store, tmp_path, checked("bundle", part_rows=300), cancelled=another)["rows"]
        == COUNT
    )


def test_an_export_of_too_many_files_is_refused_before_the_first(
    filled: ClickHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mev.datasets.export.MAX_PARTS", 4)
    with pytest.raises(TooManyPartsError, match="larger part_rows"):
        export(filled, tmp_path / "a", checked("tick", part_rows=COUNT // 4 - 1))
    assert list((tmp_path / "a" / "output").iterdir()) == []
    assert len(export(filled, tmp_path / "b", checked("tick", part_rows=COUNT // 4))["parts"]) == 4


def test_an_export_stays_within_its_limits(filled: ClickHouse, tmp_path: Path) -> None:
    with pytest.raises(ExportTooLargeError, match="EXPORT_BYTES_PER_PRINCIPAL"):
        export(
            filled,
            tmp_path / "a",
            checked("tick", part_rows=100),
            limits=ExportLimits(size_bytes=5_000),
        )
    with pytest.raises(MevError, match=r"(?i)memory"):
        export(filled, tmp_path / "b", checked("tick"), limits=ExportLimits(memory_bytes=1_000))


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"type": "nope"}, "unknown_dataset", "training_examples"),
        ({"type": "tick", "columns": ["nope"]}, "invalid_export", "it has market_id"),
        ({"type": "tick", "columns": []}, "invalid_export", "at least one"),
        ({"type": "tick", "columns": ["bid_price", "bid_price"]}, "invalid_export", "each once"),
        ({"type": "tick", "columns": ["`x` FROM system.users --"]}, "invalid_export", "has no"),
        (
            {"type": "tick", "compression": "snappy", "format": Format.CSV},
            "invalid_export",
            "none, gzip, zstd",
        ),
        ({"type": "tick", "sample": 0.0}, "invalid_export", "sample"),
        ({"type": "tick", "part_rows": 0}, "invalid_export", "part_rows"),
        ({"type": "tick", "slots": (1, 2)}, "invalid_export", "no slots; give time"),
        ({"type": "bundle", "time_ns": (None, 2)}, "invalid_export", "no time; give slots"),
        ({"type": "bundle", "slots": (2, 2)}, "invalid_export", "below"),
        ({"type": "bundle", "filter": ["nope == 1"]}, "bad_filter", "no field"),
    ],
)
def test_what_cannot_be_exported_hears_why(options: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(MevError, match=said) as caught:
        checked(**options)
    assert caught.value.code == code
