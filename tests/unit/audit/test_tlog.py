"""Checkpoints and tiles in the formats of C2SP, read by an independent implementation."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mev.audit.errors import JournalDamagedError, NoSuchRecordError
from mev.audit.proofs import Proofs
from mev.audit.service import Audit
from mev.audit.tlog import Tiles
from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import compare_kept
from mev.crypto.keys import SigningKey
from mev.crypto.note import NoteCheckpoint, read_checkpoint, sign_checkpoint
from tests.services import require
from tests.unit.audit.trail import KEY, journal, records, verdict

CHECKER = Path(__file__).parent / "tlogcheck"
COUNT = 600


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    """Run an audit trail of several segments, signed to record 600, with five unsigned records."""
    folder = tmp_path / "audit"
    log = journal(folder, segment_bytes=8192)
    for start in range(0, COUNT, 50):
        log.append(records(50, start))
    log.close()
    running = Audit(folder, "api", KEY)
    running.start()
    running.journal.append(records(5, COUNT))
    yield running
    running.close()


def dump(audit: Audit, folder: Path) -> str:
    """Write checkpoint and tiles into `folder` as static files; return the verifier key."""
    tiles, log_id = Tiles(Proofs(audit)), audit.journal.log_id
    names = [
        "0/000",
        "0/001",
        "0/002.p/88",
        "1/000.p/2",
        "entries/000",
        "entries/001",
        "entries/002.p/88",
    ]
    for name in names:
        path = folder / "tile" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiles.tile(log_id, name))
    (folder / "checkpoint").write_bytes(tiles.checkpoint(log_id))
    return tiles.verifier_key(log_id)


def test_go_implementation_verifies_every_record_and_refuses_a_changed_one(
    audit: Audit, tmp_path: Path
) -> None:
    go = shutil.which("go")
    if go is None:
        require("go is not installed")
    checker = tmp_path / "tlogcheck"
    subprocess.run([go, "build", "-o", checker, "."], cwd=CHECKER, check=True)
    static = tmp_path / "static"
    key = dump(audit, static)
    done = subprocess.run([checker, static, key], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (f"records {COUNT}\n", 0), done.stderr
    for name in ("checkpoint", "tile/entries/001", "tile/0/001", "tile/1/000.p/2"):
        path = static / name
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        assert (
            subprocess.run([checker, static, key], capture_output=True, check=False).returncode == 1
        ), name
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "path",
    [
        "0/003",
        "0/002",
        "0/002.p/0",
        "0/002.p/89",
        "0/000.p/256",
        "2/000.p/1",
        "0/0",
        "0/x000/000",
        "00/000",
        "entries/002.p/93",
        "64/000",
    ],
)
def test_tile_that_does_not_exist_or_is_not_signed_is_refused(audit: Audit, path: str) -> None:
    with pytest.raises(NoSuchRecordError):
        Tiles(Proofs(audit)).tile(audit.journal.log_id, path)


def test_kept_note_finds_rewritten_history_and_foreign_signatures(
    audit: Audit, tmp_path: Path
) -> None:
    note = Tiles(Proofs(audit)).checkpoint(audit.journal.log_id)
    trust = read_trusted(trusted_file(audit.folder))
    found = verdict(audit.folder)
    compare_kept([found], note, "kept", trust)
    assert found.damage is None

    with pytest.raises(JournalDamagedError, match="no trusted audit key"):
        compare_kept(
            [found],
            sign_checkpoint(SigningKey(None, b"\x01" * 32), read_checkpoint(note)),
            "kept",
            trust,
        )
    with pytest.raises(JournalDamagedError, match="no trusted audit key"):
        compare_kept([found], note.replace(b"\n600\n", b"\n599\n"), "kept", trust)

    other = NoteCheckpoint(read_checkpoint(note).origin, COUNT, b"\x07" * 32)
    compare_kept([found], sign_checkpoint(KEY, other), "kept", trust)
    assert "one of them was replaced" in str(found.damage)
