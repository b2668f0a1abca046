"""Catalog of datasets: every event type as stored, training examples, and values in files."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from mev.core.errors import NotFoundError
from mev.wire.features import OPPORTUNITY, FeatureSchema
from mev.wire.registry import EVENT_TYPES, EventType

EXAMPLES = "training_examples"
EXAMPLE_FIELDS = ("agent_id", "simulated")
"""Columns of an example that also depend on the bundle, not only on the opportunity."""
_TIMES = ("timestamp_ns", "detected_at_ns", "block_time_ns")
TIMESTAMP = "Nullable(DateTime64(9, 'UTC'))"
_NESTED = ("Array(", "Map(", "Tuple(")
# Those of OWASP ASVS 1.2.10, and the full-width = + - @ that some spreadsheets take for the same.
_FORMULA_STARTS = r"=+\-@\t\r\n\\x00" + "\uff1d\uff0b\uff0d\uff20"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetColumn:
    """A column of a dataset; `expression` is its SQL in the query."""

    name: str
    type: str
    unit: str
    description: str
    expression: str
    is_time: bool = False


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset: rows based on `event`, filtered and ordered by its fields.

    With `features`, each row is a training example: the features of an opportunity at decision
    time, and the outcome of an agent's bundle. Conditions on :data:`EXAMPLE_FIELDS` then apply to
    the row.
    """

    name: str
    description: str
    event: EventType
    columns: tuple[DatasetColumn, ...]
    features: FeatureSchema | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that identify an event of the dataset."""
        return self.event.order_by

    @property
    def order_by(self) -> tuple[str, ...]:
        """Columns that identify a row and define the order."""
        return self.keys if self.features is None else (*self.keys, "agent_id")

    @cached_property
    def time_field(self) -> str | None:
        """Field with the time in nanoseconds, None if the type has only slots."""
        return next((name for name in _TIMES if name in self.event.clickhouse_types), None)

    @property
    def has_slots(self) -> bool:
        """True if rows have a slot."""
        return "slot" in self.event.clickhouse_types

    @cached_property
    def schema_hash(self) -> str:
        """SHA-256 in hexadecimal; changes if the columns change."""
        if self.features is None:
            return self.event.schema_hash
        parts = [
            self.name,
            self.features.hash,
            *(f"{column.name} {column.type} {column.unit}" for column in self.columns),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def schema(self) -> dict[str, object]:
        """Return the response of ``GET /api/datasets/schema/{type}``."""
        if self.features is None:
            return self.event.dataset_schema()
        fields = ("name", "type", "unit", "description")
        return {
            "type": self.name,
            "description": self.description,
            "order_by": list(self.order_by),
            "schema_hash": self.schema_hash,
            "feature_schema": self.features.name,
            "feature_schema_hash": self.features.hash,
            "features": list(self.features.names),
            "labels": [column.name for column in _LABELS],
            "fields": [{name: getattr(column, name) for name in fields} for column in self.columns],
        }


def dataset(name: str) -> Dataset:
    """Return the dataset `name`.

    :raises NotFoundError: naming the known ones.
    """
    try:
        return DATASETS[name]
    except KeyError:
        raise NotFoundError(
            f"no dataset {name!r}; there are {', '.join(DATASETS)}",
            known=list(DATASETS),
            code="unknown_dataset",
        ) from None


def _stored(event: EventType, name: str) -> DatasetColumn:
    field = next(field for field in event.fields if field.name == name)
    return DatasetColumn(
        name=name,
        type=field.clickhouse_type,
        unit=field.unit,
        description=field.description,
        expression=f"`{name}`",
        is_time=field.time,
    )


_LABELS = tuple(
    _stored(EVENT_TYPES["bundle"], name) for name in ("landed", "profit_lamports", "tip_lamports")
)


_OF_ROWS = (
    DatasetColumn(
        name="agent_id",
        type="String",
        unit="",
        description="Bot that sent the bundle.",
        expression="`agent_id`",
    ),
    DatasetColumn(
        name="simulated",
        type="Bool",
        unit="",
        description="Whether the opportunity or its bundle was made by a simulator, or on paper.",
        expression="`simulated`",
    ),
)


def _events(event: EventType) -> Dataset:
    columns = tuple(_stored(event, field.name) for field in event.fields)
    return Dataset(name=event.name, description=event.description, event=event, columns=columns)


def _examples() -> Dataset:
    event = EVENT_TYPES["opportunity"]
    features = tuple(
        DatasetColumn(
            name=each.name,
            type="Float32",
            unit=each.unit,
            description=each.description,
            expression=f"`features`[{number}]",
        )
        for number, each in enumerate(OPPORTUNITY.features, 1)
    )
    return Dataset(
        name=EXAMPLES,
        description=(
            "One row for each opportunity and agent that sent a bundle for it: "
            "the features at decision time, and the outcome."
        ),
        event=event,
        columns=(
            *(_stored(event, name) for name in ("id", "slot", "detected_at_ns")),
            *_OF_ROWS,
            *features,
            *_LABELS,
        ),
        features=OPPORTUNITY,
    )


DATASETS = {each.name: each for each in (*map(_events, EVENT_TYPES.values()), _examples())}


class Format(StrEnum):
    """File format of an export."""

    PARQUET = "parquet"
    ARROW = "arrow"
    CSV = "csv"
    NDJSON = "ndjson"


def cell_sql(column: DatasetColumn, format_: Format, *, escape_formulas: bool) -> str:
    """Return the SQL expression of a column for a file."""
    name = f"`{column.name}`"
    if _is_timestamp(column, format_):
        return f"fromUnixTimestamp64Nano(nullIf({name}, 0), 'UTC')"
    if format_ is Format.CSV and column.type.startswith(_NESTED):
        return f"toJSONString({name})"
    if format_ is Format.CSV and column.type == "String" and escape_formulas:
        return f"if(match({name}, '^[{_FORMULA_STARTS}]'), concat('\\'', {name}), {name})"
    return name


def cell_type(column: DatasetColumn, format_: Format) -> str:
    """Return the ClickHouse type of a column's values in a file."""
    return TIMESTAMP if _is_timestamp(column, format_) else column.type


def _is_timestamp(column: DatasetColumn, format_: Format) -> bool:
    return column.is_time and format_ in {Format.PARQUET, Format.ARROW}
