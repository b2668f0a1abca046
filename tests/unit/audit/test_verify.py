from pathlib import Path

import pytest

from mev.audit import frame
from mev.audit.errors import JournalDamagedError
from mev.audit.journal import Journal
from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import LogCopies, LogVerdict, compare, compare_kept
from mev.crypto.envelope import seal
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint
from tests.unit.audit.trail import KEY, UNSIGNED_S, journal, records, verdict


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a closed journal of three segments and 12 records, every second one checkpointed."""
    log = journal(tmp_path, segment_bytes=600)
    for number in range(12):
        log.append(records(1, number))
        if number % 2:
            log.checkpoint()
    log.close()
    assert len(segments(tmp_path)) == 3
    return tmp_path


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def damage(folder: Path) -> JournalDamagedError:
    found = verdict(folder).damage
    assert found is not None
    return found


def frames(path: Path) -> list[tuple[int, int, bytes]]:
    return [(piece.offset, piece.kind, piece.body) for piece in frame.scan(path.read_bytes())]


def rewrite(path: Path, bodies: list[tuple[int, bytes]]) -> None:
    """Write frames whose hashes are right, as a careful forger would."""
    path.write_bytes(b"".join(frame.encode(kind, body)[0] for kind, body in bodies))


@pytest.mark.slow
def test_every_flipped_byte_of_a_segment_is_named(folder: Path) -> None:
    for path in segments(folder):
        data = path.read_bytes()
        starts = [offset for offset, _, _ in frames(path)]
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
            found = damage(folder)
            assert found.fields["place"] == path.name
            assert found.fields["offset"] == max(start for start in starts if start <= place)
        path.write_bytes(data)
    assert verdict(folder).damage is None


@pytest.mark.slow
def test_every_flipped_byte_of_the_checkpoints_is_named(folder: Path) -> None:
    (path,) = folder.glob("*.checkpoints")
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert damage(folder).fields["place"] == path.name


def test_a_cut_tail_is_named_wherever_it_is_cut(folder: Path) -> None:
    path = segments(folder)[-1]
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        found = damage(folder)
        assert (found.fields["place"], found.fields["offset"]) == (
            path.name,
            max([0, *(o for o, _, _ in _whole(data, size))]),
        )
        assert "cut off: 12 records were signed" in found.detail


def _whole(data: bytes, size: int) -> list[tuple[int, int, bytes]]:
    """Return the ends of the pieces that lie wholly within the first `size` bytes."""
    pieces = [(piece.offset, piece.kind, piece.body) for piece in frame.scan(data)]
    ends = [*(offset for offset, _, _ in pieces[1:]), len(data)]
    return [
        (end, kind, body) for end, (_, kind, body) in zip(ends, pieces, strict=True) if end <= size
    ]


def test_seals_alone_tell_of_a_replaced_record(folder: Path) -> None:
    (heads,) = folder.glob("*.checkpoints")
    heads.unlink()
    path = segments(folder)[0]
    pieces = [(kind, body) for _, kind, body in frames(path)]
    record = AuditRecord.FromString(pieces[1][1])
    record.actor = "mallory"
    pieces[1] = (frame.RECORD, record.SerializeToString(deterministic=True))
    rewrite(path, pieces)
    found = damage(folder)
    assert "not those that were signed" in found.detail
    assert (found.fields["place"], found.fields["offset"]) == (path.name, frames(path)[-1][0])


def test_a_seal_taken_away_is_named(folder: Path) -> None:
    path = segments(folder)[0]
    size = frames(path)[-1][0]
    path.write_bytes(path.read_bytes()[:size])
    found = damage(folder)
    assert "without its seal" in found.detail
    assert (found.fields["place"], found.fields["offset"]) == (path.name, size)


def test_checkpoints_in_another_order_are_named(folder: Path) -> None:
    (path,) = folder.glob("*.checkpoints")
    pieces = [(kind, body) for _, kind, body in frames(path)]
    pieces[1], pieces[2] = pieces[2], pieces[1]
    rewrite(path, pieces)
    assert (damage(folder).fields["place"], damage(folder).fields["offset"]) == (
        path.name,
        frames(path)[2][0],
    )


def test_nothing_stands_behind_a_seal(folder: Path) -> None:
    path = segments(folder)[-1]
    log = journal(folder)
    log._seal()
    log.close()
    data = path.read_bytes()
    assert verdict(folder).damage is None
    for more in (b"\x01", frame.encode(frame.RECORD, b"")[0]):
        path.write_bytes(data + more)
        assert (damage(folder).fields["place"], damage(folder).fields["offset"]) == (
            path.name,
            len(data),
        )


def test_a_missing_segment_is_named(folder: Path) -> None:
    first, second, third = segments(folder)
    second.rename(folder / "away")
    found = damage(folder)
    assert (found.fields["place"], found.fields["offset"]) == (third.name, 0)
    assert "are missing before this file" in found.detail
    (folder / "away").rename(second)
    first.unlink()
    assert "records 0 to" in damage(folder).detail
    second.unlink()
    third.unlink()
    assert "12 records were signed, 0 are here" in damage(folder).detail


def test_two_records_in_the_other_order_are_named(folder: Path) -> None:
    path = segments(folder)[1]
    pieces = [(kind, body) for _, kind, body in frames(path)]
    pieces[2], pieces[3] = pieces[3], pieces[2]
    rewrite(path, pieces)
    found = damage(folder)
    offset = frames(path)[2][0]
    index = AuditRecord.FromString(pieces[3][1]).index
    assert (found.fields["place"], found.fields["offset"], found.fields["index"]) == (
        path.name,
        offset,
        index,
    )


@pytest.mark.parametrize(("number", "named"), [(0, 0), (1, 0), (6, 6), (7, 6), (11, 10)])
def test_a_record_that_was_replaced_carefully_is_named_by_the_checkpoints(
    folder: Path, number: int, named: int
) -> None:
    for path in segments(folder):
        pieces = []
        for _, kind, body in frames(path):
            record = AuditRecord.FromString(body) if kind == frame.RECORD else AuditRecord(index=99)
            if record.index == number:
                record.actor = "mallory"
                # The forger's own.
                body = record.SerializeToString(deterministic=True)  # noqa: PLW2901
            pieces.append((kind, body))
        rewrite(path, pieces)
    found = damage(folder)
    assert "not what was signed" in found.detail
    assert found.fields["index"] == named


def test_a_whole_forged_log_is_refused_for_its_signatures(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    trusted = trusted_file(folder).read_bytes()
    log = journal(other)
    log.key = SigningKey("audit-1", b"\x66" * 32)
    log.append(records(12))
    log.close()
    trusted_file(other).write_bytes(trusted)
    assert "does not fit" in damage(other).detail


def test_leaf_hashes_of_removed_segments_are_checked(folder: Path) -> None:
    log = journal(folder, segment_bytes=600)
    assert log.retain(since_ns=10**9, below=12) == 2
    kept = log.first_kept
    log.close()
    (path,) = folder.glob("*.leaves")
    leaves = path.read_bytes()
    assert verdict(folder).damage is None
    for place in range(0, len(leaves), 32):
        path.write_bytes(leaves[:place] + bytes([leaves[place] ^ 1]) + leaves[place + 1 :])
        found = damage(folder)
        assert found.fields["place"] == path.name
        assert isinstance(found.fields["offset"], int)
        assert found.fields["offset"] <= place
    path.write_bytes(leaves[:-32])
    assert f"records {kept - 1} to {kept - 1} are missing" in damage(folder).detail
    path.write_bytes(
        leaves + b"\x00" * 32
    )  # a crash between the two steps of retention leaves more
    assert verdict(folder).damage is None


def test_changed_trusted_keys_are_refused(folder: Path) -> None:
    path = trusted_file(folder)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
        try:
            found = verdict(folder)
        except EnvelopeError:
            continue
        assert found.damage or data[place] in {1, 2, 3}  # the epoch, which only counts


def copies(
    folder: Path,
    *,
    drop: int | None = None,
    change: int | None = None,
    published: list[bytes] | None = None,
) -> LogCopies:
    found = verdict(folder)
    assert found.log is not None
    rows = [AuditRecord.FromString(body) for n in range(12) for body in found.log.records(n, 1)]
    if change is not None:
        rows[change].outcome = "denied"
    rows = [row for row in rows if row.index != drop]
    heads = [head.envelope for head in found.log.heads]
    return LogCopies(
        records={found.log_id: rows},
        heads={found.log_id: heads},
        published=heads[-1:] if published is None else published,
    )


def compared(folder: Path, found: LogCopies) -> LogVerdict:
    outcome = verdict(folder)
    compare(outcome, found, read_trusted(trusted_file(folder)))
    return outcome


def test_copies_that_fit_are_sound(folder: Path) -> None:
    outcome = compared(folder, copies(folder))
    assert (outcome.damage, outcome.notes) == (None, [])
    anonymous = seal(
        Checkpoint(log_id="elsewhere", size=99), SigningKey.generate()
    ).SerializeToString()
    outcome = compared(folder, copies(folder, published=[b"x", anonymous]))
    assert outcome.damage is None
    assert "Kafka holds no checkpoint" in outcome.notes[0]


@pytest.mark.parametrize("index", [0, 5, 11])
def test_a_dropped_or_changed_row_is_named(folder: Path, index: int) -> None:
    dropped = compared(folder, copies(folder, drop=index)).damage
    assert dropped is not None
    assert (dropped.fields["index"], "missing" in dropped.detail) == (index, True)
    changed = compared(folder, copies(folder, change=index)).damage
    assert changed is not None
    assert (changed.fields["index"], "not what was journaled" in changed.detail) == (index, True)
    assert "ClickHouse audit_log" in changed.detail


def test_a_gap_among_rows_above_the_copied_checkpoints_is_named(folder: Path) -> None:
    found = copies(folder, drop=5)
    outcome = compared(folder, LogCopies(records=found.records, heads={}, published=[])).damage
    assert outcome is not None
    assert (outcome.fields["index"], "missing" in outcome.detail) == (5, True)


def test_rows_that_are_not_copied_yet_are_a_note(folder: Path) -> None:
    found = copies(folder, drop=11)
    (heads,) = found.heads.values()
    heads[:] = [head for head in heads[:-1] if head != b""]
    found = LogCopies(
        records=found.records,
        heads=dict.fromkeys(found.heads, heads[:-1]),
        published=found.published,
    )
    outcome = compared(folder, found)
    assert outcome.damage is None
    assert outcome.notes == ["the last 1 records are not in ClickHouse yet"]


def test_a_journal_rolled_back_with_its_checkpoints_is_named_by_the_copies(folder: Path) -> None:
    found = copies(folder)
    (path,) = folder.glob("*.checkpoints")
    pieces = frames(path)
    path.write_bytes(path.read_bytes()[: pieces[-1][0]])
    last = segments(folder)[-1]
    last.write_bytes(last.read_bytes()[: frames(last)[-2][0]])
    assert verdict(folder).damage is None  # nothing here can tell
    for only in (
        LogCopies(records={}, heads=found.heads, published=[]),
        LogCopies(records={}, heads={}, published=found.published),
    ):
        outcome = compared(folder, only).damage
        assert outcome is not None
        assert "cut off" in outcome.detail
    rows = compared(folder, LogCopies(records=found.records, heads={}, published=[])).damage
    assert rows is not None
    assert "a record that the journal does not have" in rows.detail


def test_a_checkpoint_of_another_log_among_the_copies_is_named(folder: Path) -> None:
    found = verdict(folder)
    assert found.log is not None
    other = seal(
        Checkpoint(log_id="other", size=3, root_hash=found.log.tree.root(3)), KEY
    ).SerializeToString()
    outcome = compared(
        folder, LogCopies(records={}, heads={found.log_id: [other]}, published=[])
    ).damage
    assert outcome is not None
    assert "ClickHouse audit_checkpoints" in outcome.detail


def test_what_an_earlier_key_signed_stays_valid(folder: Path) -> None:
    log = Journal(folder, "api", SigningKey("audit-2", b"\x07" * 32))
    log.append(records(1, 12))
    log.close()
    found = verdict(folder)
    assert (found.damage, found.notes) == (None, [])
    assert {key.key_id for key in read_trusted(trusted_file(folder)).key_set.keys} == {
        "audit-1",
        "audit-2",
    }


def test_a_copied_checkpoint_over_other_records_is_named(folder: Path) -> None:
    log_id = verdict(folder).log_id
    forked = seal(
        Checkpoint(log_id=log_id, size=3, root_hash=b"\x01" * 32), KEY
    ).SerializeToString()
    outcome = compared(folder, copies(folder, published=[forked])).damage
    assert outcome is not None
    assert "Kafka" in outcome.detail
    assert "one of them was replaced" in outcome.detail


def test_records_that_no_checkpoint_signs_are_damage_once_they_are_old(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.append(records(2))
    log.checkpoint()
    log.append(records(3, 10))
    young = verdict(tmp_path, at_ns=round(UNSIGNED_S * 1e9))
    assert (young.damage, young.notes) == (None, ["the last 3 records are in no checkpoint yet"])
    old = verdict(tmp_path, at_ns=round(UNSIGNED_S * 1e9) + 11)
    assert old.damage is not None
    assert "records 2 to 4, since 1970-01-01" in old.damage.detail
    log.close()  # signs them, as every orderly stop and the next start do
    assert verdict(tmp_path, at_ns=round(UNSIGNED_S * 1e9) + 11).damage is None


def test_checkpoint_kept_elsewhere_names_a_replaced_or_missing_log(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trust = read_trusted(trusted_file(folder))
    found = verdict(folder)
    assert found.log is not None
    kept = found.log.heads[2].envelope
    compare_kept([found], kept, "kept", trust)
    assert found.damage is None
    checkpoint = Checkpoint(log_id=found.log_id, size=5, root_hash=b"\0" * 32)
    changed = verdict(folder)
    compare_kept([changed], seal(checkpoint, KEY).SerializeToString(), "kept", trust)
    assert changed.damage is not None
    assert "is not the journal's" in changed.damage.detail
    other = journal(tmp_path_factory.mktemp("other"))
    other.append(records(1))
    head = other.checkpoint()
    assert head is not None
    with pytest.raises(JournalDamagedError, match="is not in the folder"):
        compare_kept([verdict(folder)], head.envelope, "kept", trust)
    with pytest.raises(JournalDamagedError, match="refused"):
        compare_kept([verdict(folder)], b"no checkpoint", "kept", trust)
    other.close()
