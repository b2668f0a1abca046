import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mev.audit import tables
from mev.audit.copies import Copies
from mev.audit.errors import NoSuchRecordError, NotInCheckpointError
from mev.audit.proofs import Proofs
from mev.audit.service import Audit
from mev.audit.trusted import read_trusted, trusted_file
from mev.core.errors import UnavailableError
from mev.crypto.merkle import NoSuchTreeError, verify_inclusion
from mev.crypto.trust import AUDIT
from mev.wire.pb.audit_pb2 import Checkpoint
from tests.services.waits import until
from tests.unit.audit.trail import KEY, FakeClickHouse, journal, records


class Running:
    """A trail with its copies; Kafka is a list that does not answer while `kafka_away`."""

    def __init__(self, folder: Path, clickhouse: FakeClickHouse, *, retain_s: float = 0) -> None:
        self.clickhouse = clickhouse
        self.published: list[tuple[bytes, bytes]] = []
        self.kafka_away = False
        self.audit = Audit(folder, "api", KEY, segment_bytes=600)
        self.copies = Copies(
            self.audit, clickhouse, self._publish, checkpoint_s=0.05, retain_s=retain_s
        )
        self.audit.start()
        self.copies.start()

    def _publish(self, key: bytes, value: bytes) -> None:
        if self.kafka_away:
            raise UnavailableError("away")
        self.published.append((key, value))

    def close(self) -> None:
        self.copies.close(5)
        self.audit.close()

    def write(self, count: int) -> None:
        size = self.audit.journal.size if self.audit._journal else 0
        for number in range(size, size + count):
            self.audit.record_later("alice", "control.level", f"agent-{number}")
        until(lambda: self.audit.journal.size == size + count)

    @property
    def copied(self) -> list[int]:
        return [row["index"] for row in self.clickhouse.rows_by_table[tables.RECORDS_TABLE]]

    @property
    def copied_sizes(self) -> list[int]:
        return [row["size"] for row in self.clickhouse.rows_by_table[tables.HEADS_TABLE]]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    trail = Running(tmp_path, FakeClickHouse())
    yield trail
    trail.close()


def test_records_and_signed_heads_leave_the_process(running: Running, tmp_path: Path) -> None:
    running.write(25)
    until(lambda: running.copied_sizes[-1:] == [25] and bool(running.published))
    assert running.copied == list(range(25))
    key, envelope = running.published[-1]
    head = read_trusted(trusted_file(tmp_path)).open(envelope, Checkpoint, AUDIT, 0)
    assert (head.size, head.log_id) == (25, key.decode())
    row = running.clickhouse.rows_by_table[tables.HEADS_TABLE][-1]
    assert (row["root_hash"], base64.b64decode(row["envelope"])) == (head.root_hash.hex(), envelope)


def test_nothing_is_signed_or_sent_while_nothing_changes(running: Running) -> None:
    running.write(3)
    until(lambda: running.copied_sizes == [3])
    seen = (len(running.published), running.clickhouse.blocks)
    time.sleep(0.3)
    assert (len(running.published), running.clickhouse.blocks) == seen
    assert running.copied_sizes == [3]


def test_services_that_were_away_are_caught_up_with(running: Running) -> None:
    running.write(5)
    until(lambda: running.copied_sizes == [5])
    running.clickhouse.away = running.kafka_away = True
    running.write(30)
    until(lambda: running.clickhouse.refused, lambda count: count > 2)
    assert len(running.copied) == 5
    running.clickhouse.away = running.kafka_away = False
    until(lambda: running.copied_sizes[-1] == 35)
    assert running.copied == list(range(35))
    until(lambda: running.published[-1][1] == running.audit.journal.heads[-1].envelope)


def test_a_clickhouse_that_lost_everything_gets_everything_again(running: Running) -> None:
    running.write(5)
    until(lambda: running.copied_sizes == [5])
    running.clickhouse.away = True
    for rows in running.clickhouse.rows_by_table.values():
        rows.clear()
    running.write(1)
    until(lambda: running.clickhouse.refused)
    running.clickhouse.away = False
    until(lambda: running.copied_sizes[-1:] == [6])
    assert running.copied == list(range(6))


def test_a_checkpoint_is_copied_only_behind_its_records(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnavailableError("no room")

    monkeypatch.setattr(running.clickhouse, "insert_protobuf", fail)
    running.write(4)
    until(lambda: bool(running.published))
    assert running.copied_sizes == []
    monkeypatch.undo()
    until(lambda: running.copied_sizes == [4])
    monkeypatch.setattr(
        running.audit.journal, "records", lambda *_: []
    )  # as if the segment was sealed a moment later
    running.write(2)
    until(lambda: len(running.published) > 1)
    time.sleep(0.2)
    assert running.copied_sizes == [4]
    monkeypatch.undo()
    until(lambda: running.copied_sizes[-1] == 6)


def test_copying_goes_on_where_it_was_left(tmp_path: Path) -> None:
    clickhouse = FakeClickHouse()
    first = Running(tmp_path, clickhouse)
    first.write(7)
    first.close()
    assert first.copied_sizes[-1] == 7  # the end is signed and copied before the stop
    log = journal(tmp_path)
    log.append(records(3))
    log.close()
    second = Running(tmp_path, clickhouse)
    second.write(2)
    until(lambda: second.copied_sizes[-1] == 12)
    assert second.copied == list(range(12))
    assert second.copied_sizes.count(10) <= 1
    second.close()


def test_only_what_was_copied_is_removed(tmp_path: Path) -> None:
    clickhouse = FakeClickHouse()
    trail = Running(tmp_path, clickhouse, retain_s=0.001)
    clickhouse.away = True
    trail.write(20)
    trail.write(20)
    until(lambda: clickhouse.refused, lambda count: count > 2)
    kept = trail.audit.journal.first_kept
    assert kept <= len(trail.copied)
    clickhouse.away = False
    until(lambda: len(trail.copied) == 40)
    trail.write(1)
    until(lambda: trail.audit.journal.first_kept > kept)
    trail.close()
    assert trail.copied == list(range(41))


def test_proofs_come_from_every_log_of_the_folder(running: Running, tmp_path: Path) -> None:
    other = journal(tmp_path, role="worker")
    other.append(records(5))
    other.close()
    running.write(3)
    until(lambda: running.copied_sizes == [3])
    proofs = Proofs(running.audit)
    for log_id, size in ((running.audit.journal.log_id, 3), (other.log_id, 5)):
        proof, head = proofs.inclusion(log_id, 1)
        assert head.checkpoint.size == size
        assert verify_inclusion(proof.leaf_hash, 1, size, proof.path, head.checkpoint.root_hash)
        assert proofs.consistency(log_id, 2, size).new_root == head.checkpoint.root_hash
        with pytest.raises(NotInCheckpointError):
            proofs.inclusion(log_id, size)
        with pytest.raises(NoSuchRecordError):
            proofs.inclusion(log_id, -1)
        with pytest.raises(NoSuchTreeError):
            proofs.consistency(log_id, 0, 99)
    for wrong in ("elsewhere", "../api", ""):
        with pytest.raises(NoSuchRecordError):
            proofs.inclusion(wrong, 0)
