"""The journal: what was acknowledged is read back, what was torn is cut, damage is named."""

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.control.errors import JournalError
from mev.control.journal import EnvelopeJournal


def written(path: Path, *envelopes: bytes) -> Path:
    journal = EnvelopeJournal(path)
    for envelope in envelopes:
        journal.append(envelope)
    journal.close()
    return path


def read(path: Path) -> list[bytes]:
    journal = EnvelopeJournal(path)
    try:
        return list(journal.read())
    finally:
        journal.close()


@given(st.lists(st.binary(max_size=200), max_size=10), st.data())
def test_a_torn_end_costs_only_the_torn_record(
    tmp_path_factory: pytest.TempPathFactory, envelopes: list[bytes], data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("journal") / "journal", *envelopes)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = read(path)
    assert whole == envelopes[: len(whole)]
    written(path, b"after")
    assert read(path) == [*whole, b"after"]


def test_damage_before_the_end_is_named_and_nothing_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", b"first", b"second", b"third")
    content = bytearray(path.read_bytes())
    content[8 + 5 + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalError, match="byte 13"):
        read(path)
    assert path.stat().st_size == len(content)


def test_a_full_disk_refuses_the_record_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", b"kept")
    journal = EnvelopeJournal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, hard))
    try:
        with pytest.raises(JournalError, match="make room"):
            journal.append(b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(b"later")
    journal.close()
    assert read(path) == [b"kept", b"later"]


def test_a_rewrite_replaces_everything(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", b"old", b"older")
    journal = EnvelopeJournal(path)
    journal.rewrite([b"kept"])
    journal.append(b"new")
    journal.close()
    assert read(path) == [b"kept", b"new"]
