"""Settings of the path of events: ingest, publisher and sink."""

from datetime import date

from pydantic import Field

from mev.settings.types import Seconds, VariableGroup


class IngestVariables(VariableGroup):
    """The bulk ingest and the publisher."""

    ingest_max_body_bytes: int = Field(
        8 << 20,
        ge=1024,
        le=1 << 30,
        description="Largest request body of the bulk ingest, in bytes.",
    )
    ingest_max_record_bytes: int = Field(
        900_000,
        ge=1024,
        description="Largest event including its key, in bytes; the brokers' limit applies too.",
    )
    ingest_time_earliest: date = Field(
        date(2020, 1, 1),
        ge=date(1970, 1, 1),
        le=date(2262, 1, 1),
        description=(
            "Earliest date of a posted event; an earlier time is probably not in nanoseconds."
        ),
    )
    ingest_time_ahead_s: float = Field(
        3600.0,
        ge=0,
        le=366 * 86_400,
        description="Time a posted event may be ahead of the clock.",
    )
    publish_queue_messages: int = Field(
        500_000,
        ge=1000,
        le=10_000_000,
        description="Messages in the producer queue above which further ones are refused.",
    )
    publish_queue_kbytes: int = Field(
        262_144,
        ge=1024,
        le=2_097_151,
        description="KiB in the producer queue above which further messages are refused.",
    )
    publish_timeout_s: Seconds = Field(
        30.0, description="Timeout of the acknowledgement of a message by the brokers."
    )
    publish_linger_ms: float = Field(
        2.0, ge=0, le=1000, description="Time a producer waits to fill a batch."
    )

    @property
    def ingest_time_earliest_ns(self) -> int:
        """Return the earliest accepted time of a posted event."""
        return (self.ingest_time_earliest - date(1970, 1, 1)).days * 86_400 * 10**9


class SinkVariables(VariableGroup):
    """The sink."""

    sink_block_rows: int = Field(
        65_536,
        ge=1,
        le=1_048_576,
        description="Largest number of rows of one partition per insert.",
    )
    sink_block_bytes: int = Field(32 << 20, ge=1024, description="Largest insert, in bytes.")
    sink_block_age_s: Seconds = Field(1.0, description="Time a row waits for its block to fill.")
    sink_insert_timeout_s: Seconds = Field(
        60.0, description="Timeout of an insert or statement in ClickHouse."
    )
    sink_retry_max_s: Seconds = Field(
        30.0, description="Longest delay between retries of a failed insert."
    )

    sink_buffer_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Bytes the sink buffers before it stops reading."
    )
    sink_stall_s: Seconds = Field(
        30.0,
        description=(
            "Time without progress, with more messages in Kafka, after which the client is"
            " replaced."
        ),
    )
    sink_insert_threads: int = Field(
        2, ge=1, le=64, description="Parallel inserts of blocks of different partitions."
    )
