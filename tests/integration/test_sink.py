"""From Kafka to ClickHouse: on the embedded broker and on a real one, into the embedded engine."""

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY

from mev.bus.group import all_group_offsets
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.sink.block import InsertBlock
from mev.sink.partition import BlockLimits
from mev.sink.reconcile import Coverage, Reconciler
from mev.sink.service import Sink
from mev.sink.writer import Writer, dead_letter_topic
from mev.store.clickhouse import Address, ClickHouse, ClickHouseUnavailableError
from mev.wire.pb.dead_letter_pb2 import DeadLetter
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import BY_TOPIC, EVENT_TYPES, KafkaRecord
from mev.wire.resume import fingerprint
from mev.wire.topics import DEAD_LETTER, SINK_GROUP
from tests.integration.brokers import BOTH, TIMEOUT_S, opened, read_all, real, renew, values
from tests.services.kafka import RealKafka
from tests.services.waits import until

TICK = EVENT_TYPES["tick"]
LIMITS = BlockLimits(rows=500, size_bytes=1 << 20, age_s=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the one folder that the embedded engine of this process keeps its data in."""
    path = tmp_path_factory.mktemp("clickhouse")
    with (
        contextlib.chdir(path),
        closing(ClickHouse(Address(database="mev", path=path / "data"))) as engine,
    ):
        engine.ping()
        yield path / "data"


class Moody(ClickHouse):
    """ClickHouse that is away while it is told to be, and counts how often it was asked then."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.error: Exception | None = None
        self.refused = 0
        self.inserts = 0

    def insert_protobuf(
        self,
        table: str,
        columns: Sequence[str],
        block: bytes,
        *,
        schema: str,
        message: str,
        token: str,
    ) -> None:
        self.inserts += 1
        if self.error:
            self.refused += 1
            raise self.error
        super().insert_protobuf(table, columns, block, schema=schema, message=message, token=token)


class Rig:
    """Brokers, a database of its own, and all that a sink needs between them."""

    def __init__(self, brokers: Brokers, folder: Path, publisher: Publisher) -> None:
        self.brokers = brokers
        self.publisher = publisher
        self.store = Moody(Address(database=f"test_{uuid.uuid4().hex}", path=folder))
        self.cluster = uuid.uuid4().hex
        self.sinks: list[Sink] = []
        renew(brokers, SINK_GROUP, [*BY_TOPIC, DEAD_LETTER])

    def start(
        self,
        *,
        limits: BlockLimits = LIMITS,
        buffer_bytes: int = 64 << 20,
        stall_s: float = 60,
        brokers: Brokers | None = None,
    ) -> Sink:
        sink = Sink(
            brokers or self.brokers,
            [TICK.topic],
            Writer(self.store, dead_letter_topic(self.publisher), self.cluster),
            limits=limits,
            buffer_bytes=buffer_bytes,
            insert_threads=2,
            retry_max_s=0.2,
            timeout_s=TIMEOUT_S,
            stall_s=stall_s,
        )
        self.sinks.append(sink)
        sink.start()
        return sink

    @contextmanager
    def sink(self, *, limits: BlockLimits = LIMITS, buffer_bytes: int = 64 << 20) -> Iterator[Sink]:
        sink = self.start(limits=limits, buffer_bytes=buffer_bytes)
        try:
            yield sink
        finally:
            sink.close(30)
        assert sink.failure is None

    def publish(self, numbers: range, *, keys: int = 10, size: int = 0) -> None:
        self.publisher.publish_and_wait(
            TICK.topic, [tick(number, keys, size) for number in numbers]
        )

    def stored(self) -> list[int]:
        """Return the numbers of the ticks in the table, repeats collapsed."""
        return [
            number
            for (number,) in self.store.rows(
                f"SELECT timestamp_ns FROM `{self.store.database}`.tick FINAL ORDER BY 1"
            )
        ]

    def coverage(self) -> list[Coverage]:
        found = Reconciler(self.brokers, self.cluster, self.store, TIMEOUT_S).coverage()
        return [partition for partition in found if partition.topic == TICK.topic]

    def missing(self) -> list[tuple[int, int]]:
        return [gap for partition in self.coverage() for gap in partition.missing]

    def wait_for_all(self) -> None:
        """Wait until the group has committed all there is."""
        until(
            lambda: all(latest == committed for _, latest, committed in self.offsets().values()),
            what="the sink did not commit everything",
        )

    def offsets(self) -> dict[tuple[str, int], tuple[int, int, int]]:
        return all_group_offsets(self.brokers, SINK_GROUP, [TICK.topic], timeout_s=TIMEOUT_S)

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter.FromString(value) for value in values(read_all(self.brokers, DEAD_LETTER))
        ]


def tick(number: int, keys: int = 10, size: int = 0) -> KafkaRecord:
    """Make the tick that `number` tells from all others, its market padded to `size`."""
    return TICK.record(
        Tick(
            market_id=f"market-{number % keys}".ljust(size, "."),
            timestamp_ns=number,
            simulated=True,
        )
    )


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"topic": TICK.topic}) or 0.0


@contextmanager
def rig_on(brokers: Brokers, folder: Path) -> Iterator[Rig]:
    publisher = Publisher(
        brokers, queue_messages=200_000, queue_kbytes=65_536, linger_ms=1, timeout_s=30
    )
    with closing(publisher):
        found = Rig(brokers, folder, publisher)
        try:
            yield found
        finally:
            for sink in found.sinks:
                sink.close(0)  # a failed test may have left it running
            found.store.close()


@pytest.fixture(params=BOTH)
def rig(request: pytest.FixtureRequest, folder: Path) -> Iterator[Rig]:
    with opened(request) as brokers, rig_on(brokers, folder) as found:
        yield found


@pytest.fixture
def real_rig(real_kafka: RealKafka, folder: Path) -> Iterator[Rig]:
    with rig_on(real(real_kafka), folder) as found:
        yield found


def test_everything_is_stored_once_however_often_it_is_sent(rig: Rig) -> None:
    with rig.sink():
        for start in range(1, 5001, 1000):
            rig.publish(range(start, start + 1000))
        rig.publish(range(2001, 3001))
        rig.wait_for_all()
        assert rig.stored() == list(range(1, 5001))
    coverage = rig.coverage()
    assert [partition.missing for partition in coverage] == [[]] * 4
    assert all(
        partition.earliest == 0 and partition.latest == partition.committed
        for partition in coverage
    )
    assert sum(partition.stored_records for partition in coverage) == 6000
    assert rig.dead_letters() == []


def test_every_field_arrives(rig: Rig) -> None:
    sent = Tick(
        market_id="orca:SOL-USDC",
        timestamp_ns=7,
        bid_price=1.5,
        ask_price=1.75,
        bid_size=2,
        ask_size=3,
        last_price=1.625,
    )
    with rig.sink():
        rig.publisher.publish_and_wait(TICK.topic, [TICK.record(sent)])
        rig.wait_for_all()
    columns = ", ".join([*TICK.clickhouse_types, "_kafka_log", "_kafka_offset"])
    assert rig.store.rows(f"SELECT {columns} FROM `{rig.store.database}`.tick") == [
        ("orca:SOL-USDC", 7, 1.5, 1.75, 2, 3, 1.625, False, fingerprint(rig.cluster), 0)
    ]


def test_every_row_has_its_place_in_kafka(rig: Rig) -> None:
    with rig.sink():
        rig.publish(range(1, 2001))
        rig.wait_for_all()
    rows = rig.store.rows(
        f"SELECT _kafka_partition, min(_kafka_offset), max(_kafka_offset), count(), "
        "uniqExact(_kafka_offset) "
        f"FROM `{rig.store.database}`.tick GROUP BY 1 ORDER BY 1"
    )
    held = {
        partition.partition: partition.latest for partition in rig.coverage() if partition.latest
    }
    assert rows == [
        (number, 0, latest - 1, latest, latest) for number, latest in sorted(held.items())
    ]


def test_an_unreadable_record_goes_to_the_dead_letters_alone(rig: Rig) -> None:
    key = b"market-0"
    strange_bool = tick(1)["value"][:-1] + b"\x18"  # the last byte is the value of `simulated`
    unreadable = [b"\xff\xfe\xfd", strange_bool, b"\x0a\x7f"]
    sent = [tick(number, keys=1) for number in range(1, 101)]
    for place, value in zip((90, 40, 0), unreadable, strict=True):
        sent.insert(place, {"key": key, "value": value})
    before = counted("mev_sink_dead_letters_total")
    rig.publisher.publish_and_wait(TICK.topic, sent)
    with rig.sink():
        rig.wait_for_all()
    assert rig.stored() == list(range(1, 101))
    letters = sorted(rig.dead_letters(), key=lambda letter: letter.offset)
    assert [letter.value for letter in letters] == unreadable[::-1]
    assert [letter.offset for letter in letters] == [0, 41, 92]
    assert {(letter.topic, letter.key) for letter in letters} == {(TICK.topic, key)}
    (partition,) = {letter.partition for letter in letters}
    assert all(letter.reason and letter.refused_at_ns for letter in letters)
    assert counted("mev_sink_dead_letters_total") - before == 3
    coverage = rig.coverage()[partition]
    assert (coverage.stored_records, coverage.dead_letters, coverage.missing) == (103, 3, [])


def test_many_unreadable_records_cost_two_inserts_and_one_batch_of_dead_letters(rig: Rig) -> None:
    batches: list[list[KafkaRecord]] = []

    def keep(records: list[KafkaRecord]) -> None:
        batches.append(records)

    writer = Writer(rig.store, keep, rig.cluster)
    writer.prepare()
    block = InsertBlock((TICK.topic, 0))
    for number in range(1, 301):
        value = b"\x0a\x7f" if number % 3 == 0 else tick(number)["value"]
        block.append(number, b"key", value)
    writer.write(block)
    assert (rig.store.inserts, [len(batch) for batch in batches]) == (2, [100])
    letters = [DeadLetter.FromString(record["value"]) for record in batches[0]]
    assert [letter.offset for letter in letters] == list(range(3, 301, 3))
    assert all("not a message Tick" in letter.reason for letter in letters)
    writer.write(block)  # as after a crash
    assert rig.stored() == [number for number in range(1, 301) if number % 3]


def test_a_block_without_its_row_is_named(rig: Rig) -> None:
    with rig.sink():
        for start in range(1, 1501, 500):
            rig.publish(range(start, start + 500), keys=1)
            rig.wait_for_all()
    blocks = f"`{rig.store.database}`.ingest_blocks"
    for first, last, partition in rig.store.rows(
        f"SELECT first_offset, last_offset, partition FROM {blocks} ORDER BY first_offset"
    ):
        assert rig.missing() == []
        row = (
            f"(cluster, topic, partition, first_offset, last_offset) = ('{rig.cluster}',"
            f" '{TICK.topic}', {partition}, {first}, {last})"
        )
        rig.store.command(f"ALTER TABLE {blocks} DELETE WHERE {row} SETTINGS mutations_sync = 1")
        assert rig.missing() == [(first, last)]
        record = {
            "cluster": rig.cluster,
            "topic": TICK.topic,
            "partition": partition,
            "first_offset": first,
            "last_offset": last,
        }
        rig.store.insert_row(
            "ingest_blocks", {**record, "records": last - first + 1, "dead_letters": 0}
        )


def test_nothing_is_lost_while_clickhouse_is_away(rig: Rig) -> None:
    buffer = 1 << 20
    rig.store.error = ClickHouseUnavailableError("away")
    with rig.sink(
        buffer_bytes=buffer, limits=BlockLimits(rows=10_000, size_bytes=1 << 20, age_s=0.1)
    ) as sink:
        rig.publish(range(1, 4001), keys=40, size=600)
        until(lambda: len(sink._paused) == 4 and rig.store.refused > 4)
        held = sum(partition.held_bytes for partition in sink._partitions.values())
        assert buffer < held < 3 * buffer  # what a read or two bring is taken whole
        assert all(committed == 0 for *_, committed in rig.offsets().values())
        rig.store.error = None
        rig.wait_for_all()
        rig.publish(range(4001, 4101))
        rig.wait_for_all()
    assert rig.stored() == list(range(1, 4101))
    assert rig.missing() == []


@pytest.mark.parametrize("rig", ["embedded"], indirect=True)
def test_more_than_the_broker_holds_arrives_while_the_sink_runs(rig: Rig) -> None:
    with rig.sink(limits=BlockLimits(rows=65_536, size_bytes=1 << 20, age_s=0.2)):
        for start in range(1, 20_001, 4000):
            rig.publish(range(start, start + 4000), keys=3, size=1000)
        rig.wait_for_all()
    assert len(rig.stored()) == 20_000
    assert rig.missing() == []


def test_what_a_sink_could_not_store_the_next_one_does(real_rig: Rig) -> None:
    real_rig.publish(range(1, 1001))
    real_rig.store.error = ClickHouseUnavailableError("away")
    stuck = real_rig.start()
    until(lambda: real_rig.store.refused > 4)
    stuck.close(0.1)
    assert stuck.failure is None
    real_rig.store.error = None
    with real_rig.sink():
        real_rig.publish(range(1001, 2001))
        real_rig.wait_for_all()
    assert real_rig.stored() == list(range(1, 2001))
    assert real_rig.missing() == []


def test_a_sink_that_fails_says_why_and_makes_room(real_rig: Rig) -> None:
    real_rig.publish(range(1, 101))
    real_rig.store.error = ValueError("unforeseen")
    failed = real_rig.start()
    until(lambda: failed.failure is not None)
    assert isinstance(failed.failure, ValueError)
    real_rig.store.error = None
    with real_rig.sink():
        real_rig.wait_for_all()
    failed.close(1)
    assert real_rig.stored() == list(range(1, 101))


def test_records_that_are_gone_are_counted_and_named(real_rig: Rig) -> None:
    with real_rig.sink():
        real_rig.publish(range(1, 101), keys=1)
        real_rig.wait_for_all()
    ((at, (_, committed, _)),) = [
        (at, found) for at, found in real_rig.offsets().items() if found[1]
    ]
    assert committed == 100
    real_rig.publish(range(101, 301), keys=1)
    admin = AdminClient(real_rig.brokers.config())
    for future in admin.delete_records([TopicPartition(*at, 150)]).values():
        future.result(TIMEOUT_S)
    before = counted("mev_sink_lost_total")
    with real_rig.sink():
        real_rig.wait_for_all()
    assert counted("mev_sink_lost_total") - before == 50
    assert real_rig.stored() == [*range(1, 101), *range(151, 301)]
    assert real_rig.missing() == [(100, 149)]


def test_two_sinks_share_partitions_and_hand_them_over(real_rig: Rig) -> None:
    first = real_rig.start()
    sent = [0]

    def publish(more: int) -> None:
        real_rig.publish(range(sent[-1] + 1, sent[-1] + more + 1))
        sent.append(sent[-1] + more)

    with real_rig.sink() as second:

        def both_read() -> bool:
            publish(50)
            return bool(first._partitions and second._partitions)

        until(both_read)
        loader = threading.Thread(target=publish, args=(5000,))
        loader.start()
        first.close(30)
        loader.join()
        real_rig.wait_for_all()
        assert first.failure is None
    assert real_rig.stored() == list(range(1, sent[-1] + 1))
    assert real_rig.missing() == []


@pytest.mark.slow
def test_partitions_that_were_held_back_are_read_when_they_return(real_rig: Rig) -> None:
    small = BlockLimits(rows=10, size_bytes=1 << 20, age_s=0.1)
    real_rig.publish(range(1, 2001))
    real_rig.store.error = ClickHouseUnavailableError("away")
    with real_rig.sink(limits=small) as first:
        until(lambda: len(first._paused) == 4)
        second = real_rig.start(limits=small)
        until(lambda: len(first._partitions) < 4 and second._partitions)
        second.close(0.1)
        real_rig.store.error = None
        real_rig.wait_for_all()
        real_rig.publish(range(2001, 3001))
        real_rig.wait_for_all()
    assert real_rig.stored() == list(range(1, 3001))
    assert real_rig.missing() == []


def test_a_client_that_finds_no_brokers_any_more_is_replaced(real_rig: Rig) -> None:
    def stalls() -> float:
        return REGISTRY.get_sample_value("mev_sink_stalls_total") or 0.0

    before = stalls()
    real_rig.publish(range(1, 1001))
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and never answers
        options: dict[str, str | int | float | bool] = {
            "bootstrap.servers": f"127.0.0.1:{mute.getsockname()[1]}"
        }
        sink = real_rig.start(
            stall_s=1, brokers=Brokers(servers=real_rig.brokers.servers, options=options)
        )
        with mute.accept()[0]:
            options.clear()  # for the clients to come
            real_rig.wait_for_all()
            assert stalls() > before
            sink.close(30)
    assert sink.failure is None
    assert real_rig.stored() == list(range(1, 1001))
    assert real_rig.missing() == []
