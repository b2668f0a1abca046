"""Inserts of blocks into ClickHouse; unreadable records are sent to the dead-letter topic.

A repeated insert adds nothing.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge, Histogram

from mev.bus.publisher import Publisher
from mev.core.clock import now_ns
from mev.sink.block import InsertBlock, join_located, token
from mev.store.clickhouse import ClickHouse, UnreadableBlockError
from mev.wire.pb.dead_letter_pb2 import DeadLetter
from mev.wire.registry import BY_TOPIC, PLACE_COLUMNS, EventType, KafkaRecord
from mev.wire.resume import fingerprint
from mev.wire.topics import DEAD_LETTER

ROWS = Counter("mev_sink_rows_total", "Rows inserted.", ["topic"])
DEAD_LETTERS = Counter(
    "mev_sink_dead_letters_total", "Records that are not messages of their topic's type.", ["topic"]
)
_LETTERS_AT_ONCE = 1000
INSERT_SECONDS = Histogram(
    "mev_sink_insert_seconds", "Time to insert a block.", buckets=[0.005 * 2**n for n in range(14)]
)
STORED_AT = Gauge("mev_sink_stored_timestamp_seconds", "When a block was last stored.")
INGEST_BLOCKS_DDL = """\
CREATE TABLE IF NOT EXISTS `{database}`.`ingest_blocks` (
    `cluster` String COMMENT 'Kafka cluster the offsets belong to.',
    `topic` String COMMENT 'Topic.',
    `partition` Int32 COMMENT 'Partition.',
    `first_offset` Int64 COMMENT 'Offset of the first record of the block.',
    `last_offset` Int64 COMMENT 'Offset of the last record of the block.',
    `records` UInt64 COMMENT 'Records between them, both included.',
    `dead_letters` UInt64 COMMENT 'How many of them went to the dead-letter topic.',
    `stored_at` DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When the block was stored.'
)
ENGINE = ReplacingMergeTree ORDER BY (cluster, topic, partition, first_offset, last_offset)
COMMENT
'Every block the sink stored: what was read from Kafka, and that nothing is missing between.'"""

WRITE_CHECKS = "write_checks"
_WRITE_CHECKS_DDL = """\
CREATE TABLE IF NOT EXISTS `{database}`.`write_checks` (
    `at` DateTime64(3, 'UTC') COMMENT 'When a health check stored this row.'
)
ENGINE = ReplacingMergeTree ORDER BY tuple()
COMMENT 'A row that health checks write to see whether ClickHouse takes any.'"""


class DeadLetters(Protocol):
    """Destination of unreadable records."""

    def __call__(self, records: list[KafkaRecord]) -> None:
        """Store `records`; return once they are safe."""


def dead_letter_topic(publisher: Publisher) -> DeadLetters:
    """Return a destination that publishes on the dead-letter topic."""
    return lambda records: publisher.publish_and_wait(DEAD_LETTER, records)


@dataclass(frozen=True)
class Writer:
    """Inserts blocks into ClickHouse.

    Thread-safe; the caller must run one insert at a time per partition.
    """

    clickhouse: ClickHouse
    dead_letters: DeadLetters
    cluster: str

    def prepare(self) -> None:
        """Create the database, and all missing tables and columns.

        :raises ClickHouseTooOldError: if ClickHouse does not support the inserts.
        """
        self.clickhouse.check_version()
        database = self.clickhouse.database
        self.clickhouse.command(f"CREATE DATABASE IF NOT EXISTS `{database}`")
        for event in BY_TOPIC.values():
            self.clickhouse.command(event.create_table_sql(database))
            self.clickhouse.command(event.add_columns_sql(database))
        for ddl in (INGEST_BLOCKS_DDL, _WRITE_CHECKS_DDL):
            self.clickhouse.command(ddl.format(database=database))

    def write(self, block: InsertBlock) -> None:
        """Insert `block` and record it in ``ingest_blocks``; a repeat changes nothing.

        :raises ClickHouseUnavailableError: if the insert failed; retry it.
        """
        started = time.perf_counter()
        topic = block.at[0]
        letters = self._insert(BY_TOPIC[topic], block)
        for start in range(0, len(letters), _LETTERS_AT_ONCE):
            batch = letters[start : start + _LETTERS_AT_ONCE]
            self.dead_letters([{"key": one.key, "value": one.SerializeToString()} for one in batch])
            DEAD_LETTERS.labels(topic).inc(len(batch))
        self._note(block, len(letters))
        INSERT_SECONDS.observe(time.perf_counter() - started)
        ROWS.labels(topic).inc(len(block.values) - len(letters))
        STORED_AT.set_to_current_time()

    def _insert(self, event: EventType, block: InsertBlock) -> list[DeadLetter]:
        """Insert `block` without its unreadable records, and return those.

        Records that Protobuf cannot read are taken out together. ClickHouse refuses some more;
        they are found by halving the block.
        """
        body = join_located(block, fingerprint(self.cluster))
        columns = [*event.clickhouse_types, *PLACE_COLUMNS]
        try:
            self.clickhouse.insert_protobuf(
                event.table,
                columns,
                body,
                schema=event.located_schema,
                message=event.descriptor.name,
                token=token(self.cluster, block, body),
            )
        except UnreadableBlockError as error:
            size = len(block.values)
            reasons = _unreadable(event, block) or ({0: str(error)} if size == 1 else {})
            if reasons:
                letters = [_letter(block, number, reason) for number, reason in reasons.items()]
                rest = block.without(reasons)
                return letters + (self._insert(event, rest) if rest.values else [])
            return self._insert(event, block.part(0, size // 2)) + self._insert(
                event, block.part(size // 2, size)
            )
        return []

    def _note(self, block: InsertBlock, refused: int) -> None:
        topic, partition = block.at
        row = {
            "cluster": self.cluster,
            "topic": topic,
            "partition": partition,
            "first_offset": block.offsets[0],
            "last_offset": block.offsets[-1],
            "records": len(block.values),
            "dead_letters": refused,
        }
        self.clickhouse.insert_row("ingest_blocks", row)


def _unreadable(event: EventType, block: InsertBlock) -> dict[int, str]:
    """Return the records that are not messages of the event's type, by index, with the reason."""
    found = {}
    for number, value in enumerate(block.values):
        try:
            event.message.FromString(value)
        except DecodeError as error:
            found[number] = f"not a message {event.descriptor.name}: {error}"
    return found


def _letter(block: InsertBlock, number: int, reason: str) -> DeadLetter:
    topic, partition = block.at
    return DeadLetter(
        topic=topic,
        partition=partition,
        offset=block.offsets[number],
        reason=reason,
        refused_at_ns=now_ns(),
        key=block.keys[number],
        value=block.values[number],
    )
