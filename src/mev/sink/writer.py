"""Writing blocks into ClickHouse: a repeat adds nothing, an unreadable record goes to the dead-letter topic, alone."""

import time
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Counter, Histogram

from mev.bus.publisher import Publisher
from mev.core.clock import now_ns
from mev.sink.block import Block, join, token
from mev.store.clickhouse import ClickHouse, UnreadableBlockError
from mev.wire.pb.dead_letter_pb2 import DeadLetter
from mev.wire.registry import BY_TOPIC, EventType, Record
from mev.wire.topics import DEAD_LETTER

ROWS = Counter("mev_sink_rows_total", "Rows inserted.", ["topic"])
DEAD_LETTERS = Counter("mev_sink_dead_letters_total", "Records that are no message of their topic.", ["topic"])
INSERT_SECONDS = Histogram("mev_sink_insert_seconds", "Time to insert a block.", buckets=[0.005 * 2**n for n in range(14)])
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
COMMENT 'Every block the sink stored: what was read from Kafka, and that nothing is missing between.'"""


class DeadLetters(Protocol):
    """Where unreadable records go."""

    def __call__(self, records: list[Record]) -> None:
        """Keep `records`; return when they are safe."""


def dead_letter_topic(publisher: Publisher) -> DeadLetters:
    """Return a keeper that publishes on the dead-letter topic."""
    return lambda records: publisher.publish_and_wait(DEAD_LETTER, records)


@dataclass(frozen=True)
class Writer:
    """Stores blocks. Thread-safe; one insert at a time for each partition is the caller's business."""

    clickhouse: ClickHouse
    dead_letters: DeadLetters
    cluster: str

    def prepare(self) -> None:
        """Create the database and every table that does not exist.

        :raises ClickHouseTooOldError: when the blocks to come could not be inserted.
        """
        self.clickhouse.check_version()
        database = self.clickhouse.database
        self.clickhouse.command(f"CREATE DATABASE IF NOT EXISTS `{database}`")
        for event in BY_TOPIC.values():
            self.clickhouse.command(event.create_table_sql(database))
        self.clickhouse.command(INGEST_BLOCKS_DDL.format(database=database))

    def write(self, block: Block) -> None:
        """Store `block` and note that it is stored. Repeating it changes nothing.

        :raises ClickHouseUnavailableError: when it could not be done now; do it again.
        """
        started = time.perf_counter()
        refused = self._insert(BY_TOPIC[block.at[0]], block)
        self._note(block, refused)
        INSERT_SECONDS.observe(time.perf_counter() - started)
        ROWS.labels(block.at[0]).inc(len(block.values) - refused)

    def _insert(self, event: EventType, block: Block) -> int:
        """Insert `block`, halving it while it holds unreadable records; return how many those are."""
        body = join(block.values)
        columns = list(event.clickhouse_types)
        name = event.descriptor.name
        try:
            self.clickhouse.insert_protobuf(
                event.table, columns, body, schema=event.proto_schema, message=name, token=token(self.cluster, block, body)
            )
        except UnreadableBlockError as error:
            size = len(block.values)
            if size == 1:
                self._bury(block, str(error))
                return 1
            return self._insert(event, block.part(0, size // 2)) + self._insert(event, block.part(size // 2, size))
        return 0

    def _bury(self, block: Block, reason: str) -> None:
        topic, partition = block.at
        letter = DeadLetter(
            topic=topic,
            partition=partition,
            offset=block.offsets[0],
            reason=reason,
            refused_at_ns=now_ns(),
            key=block.keys[0],
            value=block.values[0],
        )
        self.dead_letters([{"key": block.keys[0], "value": letter.SerializeToString()}])
        DEAD_LETTERS.labels(topic).inc()

    def _note(self, block: Block, refused: int) -> None:
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
