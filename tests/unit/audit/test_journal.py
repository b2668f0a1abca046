import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mev.audit.errors import AuditUnavailableError, JournalInUseError
from mev.audit.journal import Journal
from mev.audit.trusted import read_trusted, trusted_file
from mev.crypto.merkle import NoSuchTreeError, leaf_hash, verify_consistency, verify_inclusion
from mev.crypto.trust import AUDIT
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint
from tests.unit.audit.trail import KEY, journal, records, verdict


def test_records_are_numbered_and_read_back_after_a_restart(tmp_path: Path) -> None:
    first = journal(tmp_path)
    assert (first.append(records(3)), first.append(records(2, 3)), first.size) == (0, 3, 5)
    log_id = first.log_id
    first.close()

    again = journal(tmp_path)
    assert (again.log_id, again.size, again.damage) == (log_id, 5, None)
    assert again.append(records(1, 5)) == 5
    found = [AuditRecord.FromString(body) for body in again.records(0, 100)]
    assert [(record.index, record.log_id, record.object) for record in found] == [
        (n, log_id, f"agent-{n}") for n in range(6)
    ]
    assert [AuditRecord.FromString(body).index for body in again.records(2, 2)] == [2, 3]
    assert again.records(6, 1) == []
    again.close()


def test_one_process_writes_a_journal(tmp_path: Path) -> None:
    first = journal(tmp_path)
    with pytest.raises(JournalInUseError):
        journal(tmp_path)
    other = journal(tmp_path, role="worker")
    assert other.log_id != first.log_id
    first.close()
    other.close()


def test_segments_are_sealed_and_chained(tmp_path: Path) -> None:
    log = journal(tmp_path, segment_bytes=600)
    for number in range(20):
        log.append(records(1, number))
    names = sorted(path.name for path in tmp_path.glob("*.log"))
    assert len(names) > 3
    assert names[0] == f"{log.log_id}-{0:012d}.log"
    log.close()

    found = verdict(tmp_path)
    assert found.damage is None
    assert found.log is not None
    assert [segment.sealed for segment in found.log.segments] == [True] * (len(names) - 1) + [False]
    again = journal(tmp_path)
    assert [AuditRecord.FromString(again.records(n, 1)[0]).index for n in range(20)] == list(
        range(20)
    )
    again.close()


def test_a_checkpoint_is_signed_once_for_a_size_and_proofs_lead_to_it(tmp_path: Path) -> None:
    log = journal(tmp_path, segment_bytes=600)
    assert log.checkpoint() is None
    log.append(records(7))
    old = log.checkpoint()
    assert log.checkpoint() is None
    log.append(records(4, 7))
    new = log.checkpoint()
    assert old is not None
    assert new is not None
    head = read_trusted(trusted_file(tmp_path)).open(new.envelope, Checkpoint, AUDIT, 0)
    assert (head.size, head.log_id, head.root_hash) == (11, log.log_id, new.checkpoint.root_hash)
    for index in range(11):
        proof = log.proof(index, 11)
        assert proof.record is not None
        assert verify_inclusion(leaf_hash(proof.record), index, 11, proof.path, head.root_hash)
    step = log.consistency(7, 11)
    assert verify_consistency(7, 11, step.path, old.checkpoint.root_hash, head.root_hash)
    with pytest.raises(NoSuchTreeError):
        log.proof(11, 11)
    log.close()


def test_retention_removes_old_segments_and_keeps_every_proof(tmp_path: Path) -> None:
    log = journal(tmp_path, segment_bytes=600)
    for number in range(30):
        log.append(records(1, number))
        log.checkpoint()
    before = [log.proof(index, 30) for index in range(30)]
    heads = len(log.heads)
    assert log.retain(since_ns=0, below=30) == 0
    assert log.retain(since_ns=10**9, below=0) == 0
    assert log.retain(since_ns=15, below=30) > 1
    assert 8 < log.first_kept <= 15
    assert len(log.heads) < heads
    log.close()

    again = journal(tmp_path, segment_bytes=600)
    assert again.damage is None
    for index, old in enumerate(before):
        proof = again.proof(index, 30)
        assert (proof.path, proof.leaf_hash) == (old.path, old.leaf_hash)
        assert proof.record == (None if index < again.first_kept else old.record)
    assert again.append(records(1, 30)) == 30
    assert again.retain(since_ns=10**9, below=100) > 0
    again.close()
    assert verdict(tmp_path).damage is None


def test_old_checkpoints_grow_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mev.audit.journal._MAX_HEADS", 16)
    log = journal(tmp_path, segment_bytes=600)
    for number in range(100):
        log.append(records(1, number))
        log.checkpoint()
    sizes = [head.checkpoint.size for head in log.heads]
    assert len(sizes) <= 20
    assert sizes[-8:] == list(range(93, 101))
    assert sizes[0] == 1
    log.close()
    found = verdict(tmp_path)
    assert found.damage is None
    assert found.log is not None
    assert [head.checkpoint.size for head in found.log.heads] == sizes


@pytest.mark.parametrize("name", [b"", b"../api", b"\xff", b"a b"])
def test_a_name_that_is_none_begins_a_new_log(tmp_path: Path, name: bytes) -> None:
    log = journal(tmp_path)
    log.append(records(1))
    log.close()
    (tmp_path / "api.log-id").write_bytes(name)
    again = journal(tmp_path)
    assert again.damage is not None
    assert again.damage.fields["place"] == "api.log-id"
    assert again.log_id != log.log_id
    again.close()


def test_removed_log_begins_a_new_one_with_damage(tmp_path: Path) -> None:
    log = journal(tmp_path)
    assert log.damage is None, "nothing is missing at the first start"
    log.append(records(1))
    log.close()
    for path in tmp_path.glob("api*"):
        path.unlink()
    again = journal(tmp_path)
    assert again.damage is not None
    assert again.damage.fields["place"] == "api.log-id"
    assert again.log_id != log.log_id
    again.close()
    once_more = journal(tmp_path)
    assert (once_more.damage, once_more.log_id) == (None, again.log_id)
    once_more.close()


def test_a_journal_that_cannot_be_opened_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mev.audit.journal.write_atomically", fail)
    with pytest.raises(OSError, match="No space"):
        journal(tmp_path)
    monkeypatch.undo()
    journal(tmp_path).close()


@pytest.mark.parametrize("cut", [1, 10, 60, 75])
def test_a_torn_write_is_cut_and_nothing_else(tmp_path: Path, cut: int) -> None:
    log = journal(tmp_path)
    log.append(records(3))
    (path,) = tmp_path.glob("*.log")
    whole = path.read_bytes()
    log.append(records(1, 3))
    full = path.read_bytes()
    log._lock.close()  # as a killed process leaves it: without a last checkpoint
    path.write_bytes(full[: len(whole) + cut])
    assert "never finished" in verdict(tmp_path).notes[0]

    again = journal(tmp_path)
    assert (again.size, again.damage) == (3, None)
    assert path.read_bytes() == whole
    assert again.append(records(1, 3)) == 3
    again.close()
    assert verdict(tmp_path).damage is None


def test_space_that_was_never_written_counts_as_torn(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.append(records(3))
    log._lock.close()
    (path,) = tmp_path.glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(2000))
    again = journal(tmp_path)
    assert (again.size, again.damage, path.read_bytes()) == (3, None, whole)
    again.close()


@pytest.mark.parametrize("torn", [b"\x01" * 20, bytes(2000)])
def test_a_torn_start_of_a_segment_and_of_a_checkpoint_are_cut(tmp_path: Path, torn: bytes) -> None:
    log = journal(tmp_path)
    log.append(records(2))
    log.checkpoint()
    log._lock.close()
    heads = tmp_path / f"{log.log_id}.checkpoints"
    whole = heads.read_bytes()
    heads.write_bytes(whole + torn)
    again = journal(tmp_path)
    again.append(records(1, 2))
    again.checkpoint()
    again._seal()
    again._lock.close()
    assert heads.read_bytes().startswith(whole)
    (tmp_path / f"{log.log_id}-{3:012d}.log").write_bytes(b"\x01\x02")

    last = journal(tmp_path)
    assert (last.damage, last.size) == (None, 3)
    assert last.append(records(1, 3)) == 3
    last.close()
    assert verdict(tmp_path).damage is None


def test_a_signed_record_is_never_taken_for_a_torn_write(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.append(records(5))
    log.close()
    (path,) = tmp_path.glob("*.log")
    cut = path.read_bytes()[:-3]
    path.write_bytes(cut)
    again = journal(tmp_path)
    assert again.damage is not None
    assert "5 records were signed, 4 are here" in again.damage.detail
    assert path.read_bytes() == cut  # left for people to look at
    assert again.log_id != log.log_id
    again.append(records(1))
    again.close()


def test_a_full_disk_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = journal(tmp_path)
    log.append(records(2))
    (path,) = tmp_path.glob("*.log")
    whole = path.read_bytes()
    write = os.pwrite

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) > 20:
            return write(descriptor, data[:20], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(AuditUnavailableError, match="No space left on device"):
        log.append(records(3, 2))
    with pytest.raises(AuditUnavailableError):
        log.checkpoint()
    assert log.size == 2
    monkeypatch.undo()
    assert log.append(records(1, 2)) == 2
    assert path.read_bytes().startswith(whole)
    assert log.checkpoint() is not None
    log.close()
    found = verdict(tmp_path)
    assert (found.damage, found.notes) == (None, [])


def test_what_the_disk_did_not_confirm_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = journal(tmp_path)
    log.append(records(2))

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(AuditUnavailableError, match="Input/output error"):
        log.append(records(1, 2))
    assert log.size == 2
    monkeypatch.undo()
    assert log.append(records(1, 9)) == 2
    log.close()
    found = verdict(tmp_path)
    assert (found.damage, found.notes) == (None, [])


def test_a_segment_that_cannot_be_begun_is_begun_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = journal(tmp_path, segment_bytes=200)
    log.append(records(2))
    calls = []
    write = os.pwrite

    def full_at_second(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 2:  # the seal and its checkpoint fit, the new segment does not
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full_at_second)
    with pytest.raises(AuditUnavailableError):
        log.append(records(1, 2))
    monkeypatch.undo()
    assert log.append(records(1, 2)) == 2
    log.close()
    found = verdict(tmp_path)
    assert found.damage is None
    assert found.log is not None
    assert len(found.log.segments) == 2


def test_readers_and_the_writer_do_not_disturb_each_other(tmp_path: Path) -> None:
    log = journal(tmp_path, segment_bytes=3000)
    log.append(records(1))
    done = threading.Event()
    failures: list[BaseException] = []

    def prove() -> None:
        try:
            while not done.is_set():
                size = log.size
                root = log.consistency(size, size).new_root
                proof = log.proof(size - 1, size)
                assert verify_inclusion(proof.leaf_hash, size - 1, size, proof.path, root)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    thread = threading.Thread(target=prove)
    thread.start()
    for number in range(1, 150):
        log.append(records(1, number))
    done.set()
    thread.join()
    assert not failures
    log.close()


def test_kill_loses_no_acknowledged_record(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from tests.unit.audit.trail import journal, records\n"
        "from pathlib import Path\n"
        "log = journal(Path(sys.argv[1]), segment_bytes=20_000)\n"
        "while True:\n"
        "    first = log.append(records(3, log.size))\n"
        "    print(first + 2, flush=True)\n"
        "    log.checkpoint()\n"
    )
    acknowledged = -1
    for round_number in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert child.stdout is not None
        for _ in range(20 + 37 * round_number):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        acknowledged = max(
            [acknowledged, *(int(line) for line in child.stdout if line.endswith("\n"))]
        )
        child.stdout.close()
        child.wait()
        log = Journal(tmp_path, "api", KEY)
        assert log.damage is None
        assert log.size > acknowledged
        assert [
            AuditRecord.FromString(body).at_ns
            for n in range(log.size)
            for body in log.records(n, 1)
        ] == list(range(log.size))
        log.close()
    assert verdict(tmp_path).damage is None
