"""What an export asks for, and the statements that answer it.

The order is total (an event's identifying fields), repeats of an event are collapsed, and sampling goes by a hash of those fields, so
the same query on the same data gives the same rows in the same order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mev.datasets.catalog import Column, Dataset, dataset
from mev.datasets.conditions import Values, condition_sql
from mev.datasets.errors import InvalidExportError
from mev.wire.filters import Filter, parse

Key = Sequence[object]
MAX_PART_ROWS = 1_000_000
_SLOT_TYPE, _TIME_TYPE = "UInt64", "Int64"


class Format(StrEnum):
    """How the files are written."""

    PARQUET = "parquet"
    ARROW = "arrow"
    CSV = "csv"
    NDJSON = "ndjson"


COMPRESSIONS = {
    Format.PARQUET: ("zstd", "none", "snappy", "lz4", "gzip"),
    Format.ARROW: ("zstd", "none", "lz4"),
    Format.CSV: ("none", "gzip", "zstd"),
    Format.NDJSON: ("none", "gzip", "zstd"),
}
"""The compressions of a format, its default first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to export; ranges are half-open, None is no bound. Make one with :func:`checked`."""

    type: str
    columns: tuple[str, ...]
    filter: tuple[str, ...] = ()
    slots: tuple[int | None, int | None] = (None, None)
    time_ns: tuple[int | None, int | None] = (None, None)
    sample: float = 1.0
    format: Format = Format.PARQUET
    compression: str = "zstd"
    part_rows: int = 250_000

    def as_json(self) -> dict[str, Any]:
        """Return it as it is kept."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Query":
        """Return what :meth:`as_json` gave."""
        tuples = {name: tuple(content[name]) for name in ("columns", "filter", "slots", "time_ns")}
        return Query(**{**content, **tuples, "format": Format(content["format"])})


def checked(
    type: str,  # noqa: A002 - the word for it
    *,
    columns: Sequence[str] | None = None,
    filter: Sequence[str] = (),  # noqa: A002 - the word for it
    slots: tuple[int | None, int | None] = (None, None),
    time_ns: tuple[int | None, int | None] = (None, None),
    sample: float = 1.0,
    format: Format = Format.PARQUET,  # noqa: A002 - the word for it
    compression: str | None = None,
    part_rows: int = 250_000,
) -> Query:
    """Return the query when it can be answered.

    :raises MevError: saying what is wrong and what there is.
    """
    found = dataset(type)
    known = [column.name for column in found.columns]
    chosen = list(columns) if columns is not None else known
    if unknown := [name for name in chosen if name not in known]:
        raise InvalidExportError(
            f"columns: {type} has no {', '.join(unknown[:5])}; it has {', '.join(known)}", field="columns", known=known
        )
    if not chosen or len(set(chosen)) != len(chosen):
        raise InvalidExportError("columns: name at least one, each once", field="columns")
    compression = compression or COMPRESSIONS[format][0]
    if compression not in COMPRESSIONS[format]:
        raise InvalidExportError(f"compression: {format} takes {', '.join(COMPRESSIONS[format])}", field="compression")
    if not 0 < sample <= 1:
        raise InvalidExportError("sample: a share above 0, up to 1", field="sample")
    if not 1 <= part_rows <= MAX_PART_ROWS:
        raise InvalidExportError(f"part_rows: 1 to {MAX_PART_ROWS}", field="part_rows")
    _check_range("slots", slots, what="slots", there=found.has_slots, instead="time")
    _check_range("time", time_ns, what="time", there=found.time_field is not None, instead="slots")
    conditions = parse(list(filter), [found.event])
    return Query(
        type=type,
        columns=tuple(chosen),
        filter=tuple(conditions.text()),
        slots=slots,
        time_ns=time_ns,
        sample=float(sample),
        format=format,
        compression=compression,
        part_rows=part_rows,
    )


def _check_range(field: str, bounds: tuple[int | None, int | None], *, what: str, there: bool, instead: str) -> None:
    first, end = bounds
    if (first is not None or end is not None) and not there:
        raise InvalidExportError(f"{field}: these rows have no {what}; give {instead}", field=field)
    if first is not None and end is not None and first >= end:
        raise InvalidExportError(f"{field}: from must be below to, which is not included", field=field)


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL and the values bound in it."""

    sql: str
    values: Values


class Statements:
    """The statements of one query on the tables of `database`."""

    def __init__(self, query: Query, database: str) -> None:
        self.query = query
        self.dataset: Dataset = dataset(query.type)
        by_name = {column.name: column for column in self.dataset.columns}
        self.columns: list[Column] = [by_name[name] for name in query.columns]
        self._database = database
        self._filter: Filter = parse(list(query.filter), [self.dataset.event])
        self._keys = ", ".join(f"`{name}`" for name in self.dataset.order_by)

    def last_key(self) -> Statement:
        """Ask for the greatest key of the rows, repeats not collapsed."""
        values: Values = {}
        descending = ", ".join(f"`{name}` DESC" for name in self.dataset.order_by)
        rows = self._rows(self._keys, (None, None), values, final=False)
        return Statement(f"{rows} ORDER BY {descending} LIMIT 1", values)

    def boundary(self, after: Key | None, upto: Key) -> Statement:
        """Ask for the last key of the part after `after`; no row when fewer than a part's rows are left."""
        values: Values = {}
        rows = self._rows(self._keys, (after, upto), values)
        return Statement(f"{rows} ORDER BY {self._keys} LIMIT 1 OFFSET {self.query.part_rows - 1}", values)

    def size(self, upto: Key) -> Statement:
        """Ask for the number of events that are looked at."""
        values: Values = {}
        return Statement(f"SELECT count() FROM ({self._rows(self._keys, (None, upto), values)})", values)  # noqa: S608 - values are bound

    def count(self, after: Key | None, upto: Key | None) -> Statement:
        """Ask for the number of rows."""
        values: Values = {}
        return Statement(f"SELECT count() FROM ({self._source(self.dataset.order_by, (after, upto), values)})", values)  # noqa: S608 - as above

    def part(self, after: Key | None, upto: Key, rows: int) -> Statement:
        """Ask for the rows themselves."""
        values: Values = {}
        names = ", ".join(f"`{name}`" for name in self.query.columns)
        source = self._source(tuple(dict.fromkeys((*self.query.columns, *self.dataset.order_by))), (after, upto), values)
        return Statement(f"SELECT {names} FROM ({source}) ORDER BY {self._keys} LIMIT {rows}", values)  # noqa: S608 - as above

    def _source(self, names: Sequence[str], between: tuple[Key | None, Key | None], values: Values) -> str:
        expressions = {column.name: column.expression for column in self.dataset.columns}
        if self.dataset.features is None:
            return self._rows(", ".join(f"{expressions[name]} AS `{name}`" for name in names), between, values)
        labels = {"landed", "profit_lamports", "tip_lamports"}
        wanted = ", ".join(
            f"b.`{name}` AS `{name}`" if name in labels else f"{expressions[name].replace('`', 'o.`', 1)} AS `{name}`" for name in names
        )
        opportunities = self._rows("`id`, `slot`, `detected_at_ns`, `simulated`, `features`", between, values)
        # Of several bundles for one opportunity the one that landed counts.
        bundles = (
            f"SELECT `opportunity_id`, `landed`, `profit_lamports`, `tip_lamports` FROM `{self._database}`.`bundle` FINAL "  # noqa: S608
            f"WHERE `opportunity_id` IN ({self._rows('`id`', between, values)}) "
            "ORDER BY `opportunity_id`, `landed` DESC, `slot`, `bundle_id` LIMIT 1 BY `opportunity_id`"
        )
        return f"SELECT {wanted} FROM ({opportunities}) AS o INNER JOIN ({bundles}) AS b ON o.`id` = b.`opportunity_id`"  # noqa: S608

    def _rows(self, what: str, between: tuple[Key | None, Key | None], values: Values, *, final: bool = True) -> str:
        table = f"`{self._database}`.`{self.dataset.event.table}`{' FINAL' if final else ''}"
        conditions = " AND ".join([*self._asked(values), *self._between(between, values)]) or "1"
        return f"SELECT {what} FROM {table} WHERE {conditions}"  # noqa: S608 - names of ours; values are bound

    def _asked(self, values: Values) -> list[str]:
        query = self.query
        conditions = [condition_sql(self.dataset.event, each, f"f{number}", values) for number, each in enumerate(self._filter.conditions)]
        for name, kind, bounds in (("slot", _SLOT_TYPE, query.slots), (self.dataset.time_field, _TIME_TYPE, query.time_ns)):
            for operator, bound in zip((">=", "<"), bounds, strict=True):
                if bound is not None:
                    place = f"{name}_{'from' if operator == '>=' else 'to'}"
                    values[place] = bound
                    conditions.append(f"`{name}` {operator} {{{place}:{kind}}}")
        if query.sample < 1:
            values["sample"] = int(query.sample * 2**64)
            conditions.append(f"sipHash64({self._keys}) < {{sample:UInt64}}")
        if self.dataset.features is not None:
            values["schema"], values["width"] = self.dataset.features.name, len(self.dataset.features.names)
            conditions.append("`feature_schema` = {schema:String} AND length(`features`) = {width:UInt64}")
        return conditions

    def _between(self, between: tuple[Key | None, Key | None], values: Values) -> list[str]:
        conditions = []
        first, *_ = self.dataset.order_by
        for side, operator, key in (("after", ">", between[0]), ("upto", "<=", between[1])):
            if key is None:
                continue
            bound = []
            for name, value in zip(self.dataset.order_by, key, strict=True):
                values[f"{side}_{name}"] = value
                bound.append(f"{{{side}_{name}:{self.dataset.event.clickhouse_types[name]}}}")
            # The first comparison says nothing new, but the engine skips what is outside by it.
            conditions.append(f"`{first}` {operator[0]}= {bound[0]} AND ({self._keys}) {operator} ({', '.join(bound)})")
        return conditions
