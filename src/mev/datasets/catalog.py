"""What can be exported: every event type as it is stored, and examples to learn from."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from mev.core.errors import NotFoundError
from mev.wire.features import OPPORTUNITY, FeatureSchema
from mev.wire.registry import EVENT_TYPES, EventType

EXAMPLES = "training_examples"
_TIMES = ("timestamp_ns", "detected_at_ns", "block_time_ns")


class UnknownDatasetError(NotFoundError):
    """There is no such dataset."""

    code = "unknown_dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a dataset; `expression` is what it is in the query, a name or SQL of ours."""

    name: str
    type: str
    unit: str
    description: str
    expression: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset: rows of `event`, which conditions and ranges are about, in its order.

    With `features` each row is an example: the features an opportunity had when it was decided on, and what became of its bundle.
    """

    name: str
    description: str
    event: EventType
    columns: tuple[Column, ...]
    features: FeatureSchema | None = None

    @property
    def order_by(self) -> tuple[str, ...]:
        """Columns that identify a row and order the rows."""
        return self.event.order_by

    @cached_property
    def time_field(self) -> str | None:
        """Field with the time in nanoseconds, None when the type has only slots."""
        return next((name for name in _TIMES if name in self.event.clickhouse_types), None)

    @property
    def has_slots(self) -> bool:
        """Whether rows have a slot."""
        return "slot" in self.event.clickhouse_types

    @cached_property
    def schema_hash(self) -> str:
        """SHA-256, hex: it changes when the columns can mean something else."""
        if self.features is None:
            return self.event.schema_hash
        parts = [self.name, self.features.hash, *(f"{column.name} {column.type} {column.unit}" for column in self.columns)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def schema(self) -> dict[str, object]:
        """Return what ``GET /api/datasets/schema/{type}`` answers."""
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
    """Return the dataset called `name`.

    :raises UnknownDatasetError: naming those there are.
    """
    try:
        return DATASETS[name]
    except KeyError:
        raise UnknownDatasetError(f"no dataset {name!r}; there are {', '.join(DATASETS)}", known=list(DATASETS)) from None


def _stored(event: EventType, name: str) -> Column:
    field = next(field for field in event.fields if field.name == name)
    return Column(name=name, type=field.clickhouse_type, unit=field.unit, description=field.description, expression=f"`{name}`")


_LABELS = tuple(_stored(EVENT_TYPES["bundle"], name) for name in ("landed", "profit_lamports", "tip_lamports"))


def _events(event: EventType) -> Dataset:
    columns = tuple(_stored(event, field.name) for field in event.fields)
    return Dataset(name=event.name, description=event.description, event=event, columns=columns)


def _examples() -> Dataset:
    event = EVENT_TYPES["opportunity"]
    features = tuple(
        Column(name=each.name, type="Float32", unit=each.unit, description=each.description, expression=f"`features`[{number}]")
        for number, each in enumerate(OPPORTUNITY.features, 1)
    )
    return Dataset(
        name=EXAMPLES,
        description="One row for each opportunity that a bundle was sent for: its features when it was decided on, and what became of it.",
        event=event,
        columns=(*(_stored(event, name) for name in ("id", "slot", "detected_at_ns", "simulated")), *features, *_LABELS),
        features=OPPORTUNITY,
    )


DATASETS = {each.name: each for each in (*map(_events, EVENT_TYPES.values()), _examples())}
