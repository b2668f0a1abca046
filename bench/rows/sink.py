"""Kafka to ClickHouse: the whole sink, against the engine's own insert of the same blocks.

Measured from its start to the last committed offset. Kafka is the real broker of the tests, because
the embedded one retains too little; ClickHouse is the engine in this process. The broker is filled
once; every round reads it as a new consumer group into new tables.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import count, cycle
from pathlib import Path
from typing import Any, cast

import clickhouse_connect
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from bench import events
from bench.harness import Clock, Row, RowInput, Sides, SkippedError
from mev.bus.kafka import PARTITIONS, Brokers, KafkaCluster
from mev.simulate.model import EPOCH_NS
from mev.sink.block import join
from mev.sink.partition import BlockLimits
from mev.sink.service import Sink
from mev.sink.writer import Writer
from mev.store.clickhouse import Address, ClickHouse
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.registry import KafkaRecord
from tests.services.kafka import RealKafka, jars

_DATABASE = "mev"
_BLOCK_ROWS = 65_536
_BLOCKS = (
    4  # of each partition, all full: a last block that waits for its age would measure the waiting
)
_ROWS = _BLOCK_ROWS * _BLOCKS * PARTITIONS
_DIFFERENT = 8192
_INSERT_THREADS = 2
_TIMEOUT_S = 30.0
_ROUND_S = 120.0
_LOOK_S = 0.005
_TOPIC, _TABLE = events.EVENT.topic, events.EVENT.table


@contextmanager
def _one(setting: RowInput) -> Iterator[Sides]:
    with _open(setting, engine_threads=1) as sides:
        yield sides


@contextmanager
def _as_many(setting: RowInput) -> Iterator[Sides]:
    with _open(setting, engine_threads=_INSERT_THREADS) as sides:
        yield sides


@contextmanager
def _open(setting: RowInput, *, engine_threads: int) -> Iterator[Sides]:
    os.chdir(setting.scratch)  # the engine keeps a cache of schemas in the working directory
    with ExitStack() as stack:
        kafka = stack.enter_context(_kafka(setting.scratch / "kafka"))
        brokers = Brokers(servers=kafka.brokers)
        _fill(brokers)
        clickhouse = stack.enter_context(
            closing(ClickHouse(Address(database=_DATABASE, path=setting.scratch / "clickhouse")))
        )
        bench = _Bench(brokers, clickhouse, setting.scratch / "clickhouse", engine_threads)
        yield Sides(bench.engine, bench.sink)


def _kafka(folder: Path) -> RealKafka:
    try:
        java, classpath = jars.java(), jars.classpath()
    except jars.JarsMissingError as missing:
        raise SkippedError(str(missing)) from None
    folder.mkdir()
    return RealKafka(folder, java, classpath)


@cache
def _patterns() -> list[Opportunity]:
    return events.opportunities(_DIFFERENT)


def _records(partition: int) -> Iterator[KafkaRecord]:
    """Yield the records of a partition, generated on demand because they do not fit in memory."""
    for number, event in zip(range(_ROWS // PARTITIONS), cycle(_patterns()), strict=False):
        event.id = f"event-{partition}-{number}"
        event.detected_at_ns = EPOCH_NS + number
        yield events.EVENT.record(event)


def _fill(brokers: Brokers) -> None:
    KafkaCluster(brokers, timeout_s=_TIMEOUT_S).ensure_topics([_TOPIC])
    with closing(
        Producer(
            brokers.config(
                linger_ms=20, queue_buffering_max_messages=_ROWS, queue_buffering_max_kbytes=1 << 20
            )
        )
    ) as producer:
        for partition in range(PARTITIONS):
            records = cast("list[dict[str, Any]]", list(_records(partition)))
            producer.produce_batch(_TOPIC, records, partition=partition)
            if producer.flush(_ROUND_S):
                raise RuntimeError("the broker did not take the events")


class _Bench:
    """The two sides, on one broker and one engine."""

    def __init__(
        self, brokers: Brokers, clickhouse: ClickHouse, path: Path, engine_threads: int
    ) -> None:
        self._brokers = brokers
        self._clickhouse = clickhouse
        self._path = path
        self._engine_threads = engine_threads
        self._rounds = count()
        self._blocks = [
            (number, first, _BLOCK_ROWS)
            for first in range(0, _ROWS // PARTITIONS, _BLOCK_ROWS)
            for number in range(PARTITIONS)
        ]

    def sink(self) -> float:
        """Store everything with the sink and remember its blocks."""
        cluster = self._new_round()
        group = f"bench-{cluster}"
        sink = self._sink(Writer(self._clickhouse, _refuse, cluster), group)
        started = time.perf_counter()
        sink.start()
        self._wait_for_commits(sink, group)
        elapsed = time.perf_counter() - started
        sink.close(_TIMEOUT_S)
        self._blocks = [
            (int(partition), int(first), int(records))
            for partition, first, records in self._clickhouse.rows(
                f"SELECT partition, first_offset, records FROM `{_DATABASE}`.`ingest_blocks`"
            )
        ]
        return self._checked(elapsed)

    def engine(self) -> float:
        """Insert the blocks that the sink made last."""
        cluster = self._new_round()
        Writer(self._clickhouse, _refuse, cluster).prepare()
        bodies = enumerate(self._bodies())
        started = time.perf_counter()
        with ThreadPoolExecutor(self._engine_threads) as executor:
            list(executor.map(lambda _: self._insert(bodies, cluster), range(self._engine_threads)))
        return self._checked(time.perf_counter() - started)

    def _insert(self, bodies: Iterator[tuple[int, bytes]], cluster: str) -> None:
        """Insert what is left of `bodies` over a connection of its own."""
        settings = {
            "format_schema_source": "string",
            "format_schema": events.EVENT.proto_schema,
            "format_schema_message_name": events.EVENT.descriptor.name,
        }
        table, columns = f"`{_DATABASE}`.`{_TABLE}`", list(events.EVENT.clickhouse_types)
        with closing(clickhouse_connect.get_client(dsn=f"chdb://{self._path}")) as client:
            for number, body in bodies:
                token = {"insert_deduplication_token": f"{cluster}-{number}"}
                client.raw_insert(
                    table,
                    column_names=columns,
                    insert_block=body,
                    fmt="Protobuf",
                    settings=settings | token,
                )

    def _sink(self, writer: Writer, group: str) -> Sink:
        return Sink(
            Brokers(
                servers=self._brokers.servers, options={"group.id": group}
            ),  # options win over what the sink asks for
            [_TOPIC],
            writer,
            limits=BlockLimits(rows=_BLOCK_ROWS, size_bytes=64 << 20, age_s=_ROUND_S),
            buffer_bytes=1 << 30,
            insert_threads=_INSERT_THREADS,
            retry_max_s=1,
            timeout_s=_TIMEOUT_S,
        )

    def _bodies(self) -> list[bytes]:
        """Return the blocks of the sink's last round by partition, in the engine's input format."""
        bodies = []
        for partition in range(PARTITIONS):
            values = [record["value"] for record in _records(partition)]
            bodies += [
                join(values[first : first + rows])
                for number, first, rows in self._blocks
                if number == partition
            ]
        return bodies

    def _new_round(self) -> str:
        self._clickhouse.command(f"DROP DATABASE IF EXISTS `{_DATABASE}` SYNC")
        return f"round-{next(self._rounds)}"

    def _wait_for_commits(self, sink: Sink, group: str) -> None:
        deadline = time.monotonic() + _ROUND_S
        with closing(
            Consumer(self._brokers.config(group_id=group, enable_auto_commit=False))
        ) as observer:
            while _committed(observer) < _ROWS:
                if sink.failure or time.monotonic() > deadline:
                    raise RuntimeError(f"the sink did not store everything: {sink.failure}")
                time.sleep(_LOOK_S)

    def _checked(self, elapsed: float) -> float:
        ((rows,),) = self._clickhouse.rows(f"SELECT count() FROM `{_DATABASE}`.`{_TABLE}`")
        if rows != _ROWS:
            raise RuntimeError(f"{rows} rows were stored, not {_ROWS}")
        return _ROWS / elapsed


def _committed(observer: Consumer) -> int:
    partitions = [TopicPartition(_TOPIC, number) for number in range(PARTITIONS)]
    try:
        return sum(max(0, at.offset) for at in observer.committed(partitions, timeout=_TIMEOUT_S))
    except KafkaException:  # a group without a coordinator yet has committed nothing
        return 0


def _refuse(records: list[KafkaRecord]) -> None:
    raise RuntimeError(f"{len(records)} records were unreadable")


_OURS = (
    f"{_ROWS:,} events in a Kafka topic of {PARTITIONS} partitions to rows with committed offsets"
)
ROWS = (
    Row(
        name="sink",
        unit="rows/s",
        ours=_OURS,
        baseline="ClickHouse's insert of the same blocks, one after the other",
        clock=Clock.WALL,
        open=_one,
        expected_ratio=0.7,
    ),
    Row(
        name="sink_parallel",
        unit="rows/s",
        ours=_OURS,
        baseline=(
            f"ClickHouse's insert of the same blocks by {_INSERT_THREADS} threads, with no broker"
            " and no reading beside it"
        ),
        clock=Clock.WALL,
        open=_as_many,
    ),
)
