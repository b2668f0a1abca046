"""Request and response bodies of ``/api/datasets``."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from mev.core.body import Body, Items
from mev.core.clock import check_time, to_ns
from mev.datasets.catalog import Format
from mev.datasets.query import LABEL_SLOTS, MAX_LABEL_SLOTS, MAX_PART_ROWS, Labels, Query, checked
from mev.datasets.service import DatasetSummary
from mev.jobs.routes import JobOut

_NS = 1_000_000_000
Time = Annotated[AwareDatetime, AfterValidator(check_time)]


class SlotsIn(Body):
    """A range of slots; `to` is excluded."""

    model_config = ConfigDict(populate_by_name=True)

    since: int | None = Field(None, alias="from", ge=0, lt=2**64)
    to: int | None = Field(None, ge=0, lt=2**64)


class TimeIn(Body):
    """A range of times with UTC offsets; `to` is excluded."""

    model_config = ConfigDict(populate_by_name=True)

    since: Time | None = Field(None, alias="from")
    to: Time | None = None


class ExportIn(Body):
    """An export request; by default all columns and rows, as Parquet."""

    type: str = Field(max_length=64)
    columns: list[str] | None = Field(None, max_length=256)
    filter: Items[str] = Field(
        [], description="Conditions that must all hold, as the stream takes them."
    )
    slots: SlotsIn = Field(default_factory=lambda: SlotsIn.model_validate({}))
    time: TimeIn = Field(default_factory=lambda: TimeIn.model_validate({}))
    sample: float = Field(
        1.0, gt=0, le=1, description="Share of the rows; which ones depends on their keys alone."
    )
    format: Format = Format.PARQUET
    compression: str | None = Field(None, max_length=16)
    labels: Labels | None = Field(
        None,
        description=(
            "Of training_examples: `agent`, one row per opportunity and agent, or `market`, "
            "one per opportunity."
        ),
    )
    label_slots: int | None = Field(
        None,
        ge=0,
        le=MAX_LABEL_SLOTS,
        description=(
            f"Of training_examples: slots in which bundles count; {LABEL_SLOTS} when not given."
        ),
    )
    part_rows: int = Field(
        250_000,
        ge=1,
        le=MAX_PART_ROWS,
        description="Rows of one file; at least EXPORT_PART_ROWS_MIN.",
    )

    escape_formulas: bool = Field(
        True, description="CSV: put an apostrophe before text that a spreadsheet would run."
    )

    def query(self) -> Query:
        """Return the validated query.

        :raises MevError: if it is invalid.
        """
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
            escape_formulas=self.escape_formulas,
            labels=self.labels,
            label_slots=self.label_slots,
        )


class SlotSpan(BaseModel):
    """The lowest and the highest slot; 0 is ignored."""

    first: int
    last: int


class TimeSpan(BaseModel):
    """The earliest and the latest time; unknown times are ignored."""

    first: datetime
    last: datetime


class DatasetOut(BaseModel):
    """A dataset; `rows` counts unmerged repeats, and is null if only an estimate can tell."""

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
    """Estimate of an export: current `rows`, approximate `bytes`."""

    rows: int
    bytes: int
    parts: int


class ExportOut(BaseModel):
    """An export: its job and, after success, its manifest."""

    id: str
    job: JobOut
    manifest: dict[str, Any] | None
    files: list[str]
    """Paths of its files, the manifest's first."""


def dataset(summary: DatasetSummary) -> DatasetOut:
    """Return a dataset as shown by the API."""
    found, slots, time_ns = summary.dataset, summary.slots, summary.time_ns
    return DatasetOut(
        type=found.name,
        description=found.description,
        rows=summary.rows,
        slots=SlotSpan(first=slots[0], last=slots[1]) if slots else None,
        time=TimeSpan(first=_time(time_ns[0]), last=_time(time_ns[1]))
        if time_ns and time_ns[1]
        else None,
        order_by=list(found.order_by),
        schema_hash=found.schema_hash,
    )


def _ns(time: datetime | None) -> int | None:
    return to_ns(time) if time is not None else None


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / _NS, UTC)
