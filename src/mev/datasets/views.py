"""What ``/api/datasets`` takes and answers."""

from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from mev.datasets.query import MAX_PART_ROWS, Format, Query, checked
from mev.datasets.service import Summary
from mev.jobs.routes import JobOut

_NS = 1_000_000_000


class Body(BaseModel):
    """A request body; a field that is not known is an error, not a wish unheard."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class SlotsIn(Body):
    """A range of slots; `to` is not included."""

    since: int | None = Field(None, alias="from", ge=0, lt=2**64)
    to: int | None = Field(None, ge=0, lt=2**64)


class TimeIn(Body):
    """A range of times, with their offsets from UTC; `to` is not included."""

    since: AwareDatetime | None = Field(None, alias="from")
    to: AwareDatetime | None = None


class ExportIn(Body):
    """What to export. All columns, all rows, as Parquet, unless it says otherwise."""

    type: str = Field(max_length=64)
    columns: list[str] | None = Field(None, max_length=256)
    filter: list[str] = Field([], description="Conditions that must all hold, as the stream takes them.")
    slots: SlotsIn = Field(default_factory=lambda: SlotsIn.model_validate({}))
    time: TimeIn = Field(default_factory=lambda: TimeIn.model_validate({}))
    sample: float = Field(1.0, gt=0, le=1, description="Share of the rows; which ones depends on their keys alone.")
    format: Format = Format.PARQUET
    compression: str | None = Field(None, max_length=16)
    part_rows: int = Field(250_000, ge=1, le=MAX_PART_ROWS, description="Rows of one file; at least EXPORT_PART_ROWS_MIN.")

    def query(self) -> Query:
        """Return the query, or raise what is wrong with it."""
        return checked(
            self.type,
            columns=self.columns,
            filter=self.filter,
            slots=(self.slots.since, self.slots.to),
            time_ns=(_ns(self.time.since), _ns(self.time.to)),
            sample=self.sample,
            format=self.format,
            compression=self.compression,
            part_rows=self.part_rows,
        )


class SlotSpan(BaseModel):
    """The lowest and the highest slot, 0 left out."""

    first: int
    last: int


class TimeSpan(BaseModel):
    """The earliest and the latest time, unknown ones left out."""

    first: datetime
    last: datetime


class DatasetOut(BaseModel):
    """A dataset; `rows` counts repeats that are not merged yet, and is null where only `estimate` can say."""

    type: str
    description: str
    rows: int | None
    slots: SlotSpan | None
    time: TimeSpan | None
    order_by: list[str]
    schema_hash: str


class DatasetsOut(BaseModel):
    """All datasets."""

    items: list[DatasetOut]
    next_cursor: None = None


class EstimateOut(BaseModel):
    """What an export would be: `rows` as of now, `bytes` roughly."""

    rows: int
    bytes: int
    parts: int


class ExportOut(BaseModel):
    """An export: its job and, once that has succeeded, its manifest."""

    id: str
    job: JobOut
    manifest: dict[str, Any] | None
    files: list[str]
    """Paths of its files, the manifest's first."""


def dataset(summary: Summary) -> DatasetOut:
    """Return a dataset as the API shows it."""
    found, slots, time_ns = summary.dataset, summary.slots, summary.time_ns
    return DatasetOut(
        type=found.name,
        description=found.description,
        rows=summary.rows,
        slots=SlotSpan(first=slots[0], last=slots[1]) if slots else None,
        time=TimeSpan(first=_time(time_ns[0]), last=_time(time_ns[1])) if time_ns and time_ns[1] else None,
        order_by=list(found.order_by),
        schema_hash=found.schema_hash,
    )


def _ns(time: datetime | None) -> int | None:
    if time is None:
        return None
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / _NS, UTC)
