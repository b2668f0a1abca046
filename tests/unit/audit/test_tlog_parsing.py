"""Tests of untrusted signed notes and tile paths: parsed or refused by name."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mev.audit.errors import NoSuchRecordError
from mev.audit.proofs import Proofs
from mev.audit.service import Audit
from mev.audit.tlog import Tiles
from mev.crypto.merkle import leaf_hash
from mev.crypto.note import (
    InvalidNoteError,
    NoteCheckpoint,
    is_signed_by,
    read_checkpoint,
    sign_checkpoint,
)
from tests.unit.audit.trail import KEY, journal, records

COUNT = 300
CHECKPOINTS = st.builds(
    NoteCheckpoint,
    origin=st.text(
        st.characters(exclude_characters="+", exclude_categories=["Cs", "Cc", "Z"]), min_size=1
    ).map(lambda text: f"mev-audit/{text}"),
    size=st.integers(0, (1 << 63) - 1),
    root_hash=st.binary(min_size=32, max_size=32),
)
PATHS = st.one_of(
    st.text(),
    st.from_regex(r"\A(entries|[0-9]{1,2})/(x[0-9]{3}/){0,6}[0-9]{3}(\.p/[0-9]{1,4})?\Z"),
    st.builds(
        "{}/{:03d}{}".format,
        st.sampled_from(["0", "1", "entries"]),
        st.integers(0, 3),
        st.integers(0, 300).map(lambda width: f".p/{width}"),
    ),
)


@given(CHECKPOINTS)
def test_signed_note_is_read_as_it_was_written(checkpoint: NoteCheckpoint) -> None:
    note = sign_checkpoint(KEY, checkpoint)
    assert read_checkpoint(note) == checkpoint
    assert is_signed_by(note, checkpoint.origin, KEY.public_key)


@given(CHECKPOINTS, st.data())
def test_changed_note_is_refused_or_not_signed(
    checkpoint: NoteCheckpoint, data: st.DataObject
) -> None:
    note = sign_checkpoint(KEY, checkpoint)
    at = data.draw(st.integers(0, len(note) - 1))
    changed = note[:at] + bytes([note[at] ^ data.draw(st.integers(1, 255))]) + note[at + 1 :]
    try:
        found = read_checkpoint(changed)
        signed = is_signed_by(changed, found.origin, KEY.public_key)
    except InvalidNoteError:
        return
    assert not signed or found == checkpoint


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.binary().map(lambda data: b"mev-audit/a\n1\n" + base64.b64encode(data) + b"\n\n"),
    )
)
@example(b"mev-audit/a\n01\n" + base64.b64encode(b"\7" * 32) + b"\n\n\xe2\x80\x94 a b\n")
def test_any_bytes_are_a_checkpoint_or_are_refused(content: bytes) -> None:
    try:
        found = read_checkpoint(content)
    except InvalidNoteError:
        return
    assert content.decode().startswith(found.text().removesuffix("\n"))
    assert (found.size >= 0, len(found.root_hash)) == (True, 32)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audit]:
    """Run an audit trail of 300 signed records."""
    folder: Path = tmp_path_factory.mktemp("audit")
    log = journal(folder)
    log.append(records(COUNT))
    log.close()
    running = Audit(folder, "api", KEY)
    running.start()
    yield running
    running.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS)
@example(path="0/000.p/256")
@example(path="entries/000.p/0")
@example(path="0/x000/000")
@example(path="0/000\n")
def test_any_path_names_a_whole_tile_or_none(audit: Audit, path: str) -> None:
    tiles, log_id = Tiles(Proofs(audit)), audit.journal.log_id
    try:
        content = tiles.tile(log_id, path)
    except NoSuchRecordError:
        return
    assert "\n" not in path
    level, _, rest = path.partition("/")
    number, _, width = rest.partition(".p/")
    first, count = int(number) * 256, int(width or 256)
    assert width != "256"
    assert "x000" not in path
    assert first + count <= COUNT
    if level == "0":
        leaves = [
            leaf_hash(audit.journal.records(index, 1)[0]) for index in range(first, first + count)
        ]
        assert content == b"".join(leaves)
    elif level == "entries":
        assert content[2:].startswith(audit.journal.records(first, 1)[0])
