"""Export queries, and the SQL statements that answer them.

The labels of an example are those of bundles in a window of slots after the opportunity: ids alone
may repeat.

The order is total (the identifying fields of an event), repeated events are collapsed, and samples
are selected by a hash of those fields. The same query on the same data therefore gives the same
rows in the same order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mev.datasets.catalog import (
    EXAMPLE_FIELDS,
    EXAMPLES,
    Dataset,
    DatasetColumn,
    Format,
    cell_sql,
    dataset,
)
from mev.datasets.conditions import Values, condition_sql
from mev.datasets.errors import InvalidExportError
from mev.wire.filters import Condition, Filter, parse

Key = Sequence[object]
MAX_PART_ROWS = 1_000_000
MAX_LABEL_SLOTS = 432_000  # an epoch
# A blockhash is valid for 150 slots: afterwards a transaction can no more be included.
LABEL_SLOTS = 150
ONLY_REAL = "simulated == false"
_SLOT_TYPE, _TIME_TYPE = "UInt64", "Int64"


class Labels(StrEnum):
    """The bundle that labels an example: each agent's own, or the best one of all agents."""

    AGENT = "agent"
    MARKET = "market"


COMPRESSIONS = {
    Format.PARQUET: ("zstd", "none", "snappy", "lz4", "gzip"),
    Format.ARROW: ("zstd", "none", "lz4"),
    Format.CSV: ("none", "gzip", "zstd"),
    Format.NDJSON: ("none", "gzip", "zstd"),
}
"""The compressions of each format, its default first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """An export query; ranges are half-open, None means unbounded.

    Use :func:`checked` to create one. `labels` and `label_slots` apply to training examples:
    bundles up to `label_slots` after the opportunity's slot count.
    """

    type: str
    columns: tuple[str, ...]
    filter: tuple[str, ...] = ()
    slots: tuple[int | None, int | None] = (None, None)
    time_ns: tuple[int | None, int | None] = (None, None)
    sample: float = 1.0
    format: Format = Format.PARQUET
    compression: str = "zstd"
    part_rows: int = 250_000
    escape_formulas: bool = True
    labels: Labels = Labels.AGENT
    label_slots: int = LABEL_SLOTS

    def as_json(self) -> dict[str, Any]:
        """Return the query as JSON values for storage."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Query":
        """Return the query stored by :meth:`as_json`."""
        tuples = {name: tuple(content[name]) for name in ("columns", "filter", "slots", "time_ns")}
        enums = {
            "format": Format(content["format"]),
            "labels": Labels(content.get("labels", Labels.AGENT)),
        }
        return Query(**{**content, **tuples, **enums})


def checked(
    type: str,  # noqa: A002 - name of the query's field
    *,
    columns: Sequence[str] | None = None,
    filter: Sequence[str] = (),  # noqa: A002 - name of the query's field
    slots: tuple[int | None, int | None] = (None, None),
    time_ns: tuple[int | None, int | None] = (None, None),
    sample: float = 1.0,
    format: Format = Format.PARQUET,  # noqa: A002 - name of the query's field
    compression: str | None = None,
    part_rows: int = 250_000,
    escape_formulas: bool = True,
    labels: Labels | None = None,
    label_slots: int | None = None,
) -> Query:
    """Return a validated query.

    :raises MevError: naming the problem and the valid values.
    """
    found = dataset(type)
    known = [column.name for column in found.columns]
    chosen = list(columns) if columns is not None else known
    if unknown := [name for name in chosen if name not in known]:
        raise InvalidExportError(
            f"columns: {type} has no {', '.join(unknown[:5])}; it has {', '.join(known)}",
            field="columns",
            known=known,
        )
    if not chosen or len(set(chosen)) != len(chosen):
        raise InvalidExportError("columns: name at least one, each once", field="columns")
    compression = compression or COMPRESSIONS[format][0]
    if compression not in COMPRESSIONS[format]:
        raise InvalidExportError(
            f"compression: {format} takes {', '.join(COMPRESSIONS[format])}", field="compression"
        )
    if not 0 < sample <= 1:
        raise InvalidExportError("sample: a share above 0, up to 1", field="sample")
    if not 1 <= part_rows <= MAX_PART_ROWS:
        raise InvalidExportError(f"part_rows: 1 to {MAX_PART_ROWS}", field="part_rows")
    if found.features is None and (labels is not None or label_slots is not None):
        raise InvalidExportError(
            f"labels, label_slots: {type} has no labels; they are for {EXAMPLES}", field="labels"
        )
    if label_slots is not None and not 0 <= label_slots <= MAX_LABEL_SLOTS:
        raise InvalidExportError(f"label_slots: 0 to {MAX_LABEL_SLOTS}", field="label_slots")
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
        escape_formulas=escape_formulas,
        labels=labels or Labels.AGENT,
        label_slots=LABEL_SLOTS if label_slots is None else label_slots,
    )


def _check_range(
    field: str, bounds: tuple[int | None, int | None], *, what: str, there: bool, instead: str
) -> None:
    first, end = bounds
    if (first is not None or end is not None) and not there:
        raise InvalidExportError(f"{field}: these rows have no {what}; give {instead}", field=field)
    if first is not None and end is not None and first >= end:
        raise InvalidExportError(
            f"{field}: from must be below to, which is not included", field=field
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """An SQL statement and its bound values."""

    sql: str
    values: Values


class Statements:
    """The SQL statements of one query on the tables of `database`."""

    def __init__(self, query: Query, database: str) -> None:
        self.query = query
        self.dataset: Dataset = dataset(query.type)
        by_name = {column.name: column for column in self.dataset.columns}
        self.columns: list[DatasetColumn] = [by_name[name] for name in query.columns]
        self._database = database
        self._filter: Filter = parse(list(query.filter), [self.dataset.event])
        self._keys = ", ".join(f"`{name}`" for name in self.dataset.keys)
        self._order = ", ".join(f"`{name}`" for name in self.dataset.order_by)

    def last_key(self) -> Statement:
        """Return the statement for the greatest key of the rows, without deduplication."""
        values: Values = {}
        descending = ", ".join(f"`{name}` DESC" for name in self.dataset.keys)
        rows = self._rows(self._keys, (None, None), values, final=False)
        return Statement(f"{rows} ORDER BY {descending} LIMIT 1", values)

    def boundary(self, after: Key | None, upto: Key) -> Statement:
        """Return the statement for the last key of the part after `after`.

        It has no row if fewer rows than a part remain.
        """
        values: Values = {}
        rows = self._rows(self._keys, (after, upto), values)
        return Statement(
            f"{rows} ORDER BY {self._keys} LIMIT 1 OFFSET {self.query.part_rows - 1}", values
        )

    def size(self, upto: Key | None) -> Statement:
        """Return the statement for the number of events in the range."""
        values: Values = {}
        return Statement(
            # Values are bound.
            f"SELECT count() FROM ({self._rows(self._keys, (None, upto), values)})",
            values,
        )

    def count(self, after: Key | None, upto: Key | None) -> Statement:
        """Return the statement for the number of rows."""
        values: Values = {}
        return Statement(
            f"SELECT count() FROM ({self._source(self.dataset.order_by, (after, upto), values)})",
            values,
        )

    def part(self, after: Key | None, upto: Key | None, rows: int) -> Statement:
        """Return the statement for the rows."""
        values: Values = {}
        query = self.query
        cells = {
            column.name: cell_sql(column, query.format, escape_formulas=query.escape_formulas)
            for column in self.columns
        }
        names = ", ".join(f"{cell} AS `{name}`" for name, cell in cells.items())
        source = self._source(
            tuple(dict.fromkeys((*self.query.columns, *self.dataset.order_by))),
            (after, upto),
            values,
        )
        return Statement(
            f"SELECT {names} FROM ({source}) ORDER BY {self._order} LIMIT {rows}",
            values,
        )

    def any(self) -> Statement:
        """Return a statement that has a row if there are any training examples."""
        values: Values = {}
        return Statement(f"SELECT 1 FROM ({self._pairs((None, None), values)}) LIMIT 1", values)

    def _source(
        self, names: Sequence[str], between: tuple[Key | None, Key | None], values: Values
    ) -> str:
        expressions = {column.name: column.expression for column in self.dataset.columns}
        wanted = ", ".join(f"{expressions[name]} AS `{name}`" for name in names)
        if self.dataset.features is None:
            return self._rows(wanted, between, values)
        # Of several bundles, one that landed is preferred, then the earliest.
        each = self._order if self.query.labels is Labels.AGENT else self._keys
        best = f"ORDER BY {each}, `landed` DESC, `sent_slot`, `bundle_id` LIMIT 1 BY {each}"
        # Names of ours.
        return f"SELECT {wanted} FROM (SELECT * FROM ({self._pairs(between, values)}) {best})"

    def _pairs(self, between: tuple[Key | None, Key | None], values: Values) -> str:
        """Return SQL for all pairs of an opportunity and a bundle in its window of slots."""
        opportunities = self._rows(
            "`id`, `slot`, `detected_at_ns`, `features`, `simulated` AS `made_up`", between, values
        )
        bundles = (
            "SELECT `opportunity_id`, `bundle_id`, `agent_id`, "
            "`slot` AS `sent_slot`, `simulated` AS `on_paper`, "
            f"`landed`, `profit_lamports`, `tip_lamports` FROM `{self._database}`.`bundle` FINAL "
            f"WHERE `opportunity_id` IN ({self._rows('`id`', between, values)})"
        )
        values["label_slots"] = self.query.label_slots
        pairs = (
            "SELECT *, `made_up` OR `on_paper` AS `simulated` "
            f"FROM ({opportunities}) AS o INNER JOIN ({bundles}) AS b "
            "ON o.`id` = b.`opportunity_id` "
            "WHERE `sent_slot` >= `slot` AND `sent_slot` - `slot` <= {label_slots:UInt64}"
        )
        conditions = [
            condition_sql(self.dataset.event, each, f"r{number}", values)
            for number, each in enumerate(self._filter.conditions)
            if each.field in EXAMPLE_FIELDS
        ]
        # Values are bound.
        return f"SELECT * FROM ({pairs}) WHERE {' AND '.join(conditions)}" if conditions else pairs

    def _rows(
        self,
        what: str,
        between: tuple[Key | None, Key | None],
        values: Values,
        *,
        final: bool = True,
    ) -> str:
        table = f"`{self._database}`.`{self.dataset.event.table}`{' FINAL' if final else ''}"
        conditions = " AND ".join([*self._asked(values), *self._between(between, values)]) or "1"
        # Names of ours; values are bound.
        return f"SELECT {what} FROM {table} WHERE {conditions}"

    def _asked(self, values: Values) -> list[str]:
        query = self.query
        conditions = [
            condition_sql(self.dataset.event, each, f"f{number}", values)
            for number, each in enumerate(self._filter.conditions)
            if self._is_about_events(each)
        ]
        for name, kind, bounds in (
            ("slot", _SLOT_TYPE, query.slots),
            (self.dataset.time_field, _TIME_TYPE, query.time_ns),
        ):
            for operator, bound in zip((">=", "<"), bounds, strict=True):
                if bound is not None:
                    place = f"{name}_{'from' if operator == '>=' else 'to'}"
                    values[place] = bound
                    conditions.append(f"`{name}` {operator} {{{place}:{kind}}}")
        if query.sample < 1:
            values["sample"] = int(query.sample * 2**64)
            conditions.append(f"sipHash64({self._keys}) < {{sample:UInt64}}")
        if self.dataset.features is not None:
            values["schema"], values["width"] = (
                self.dataset.features.name,
                len(self.dataset.features.names),
            )
            conditions.append(
                "`feature_schema` = {schema:String} AND length(`features`) = {width:UInt64}"
            )
        return conditions

    def _is_about_events(self, condition: Condition) -> bool:
        """Return whether a condition applies to the event alone, not to an example's bundle."""
        return (
            self.dataset.features is None
            or condition.field not in EXAMPLE_FIELDS
            or str(condition) == ONLY_REAL
        )

    def _between(self, between: tuple[Key | None, Key | None], values: Values) -> list[str]:
        conditions = []
        first, *_ = self.dataset.keys
        for side, operator, key in (("after", ">", between[0]), ("upto", "<=", between[1])):
            if key is None:
                continue
            bound = []
            for name, value in zip(self.dataset.keys, key, strict=True):
                values[f"{side}_{name}"] = value
                bound.append(f"{{{side}_{name}:{self.dataset.event.clickhouse_types[name]}}}")
            # The first comparison is redundant, but lets the engine skip data.
            conditions.append(
                f"`{first}` {operator[0]}= {bound[0]} "
                f"AND ({self._keys}) {operator} ({', '.join(bound)})"
            )
        return conditions
