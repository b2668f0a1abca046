"""Files of a process that is not trusted: what is read and copied of them, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mev.core import plain
from mev.core.plain import UnsafeFileError


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A folder with a file, beside one that is secret."""
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "a").write_bytes(b"aaaa")
    (tmp_path / "secret").write_bytes(b"key")
    return folder


def test_plain_files_are_copied_for_their_new_owner_alone(left: Path, tmp_path: Path) -> None:
    (left / "b").write_bytes(b"")
    (left / "a").chmod(0o666)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "old").touch()
    plain.copy_all(left, tmp_path / "copy", max_files=2, max_bytes=4)
    copies = {
        path.name: (path.read_bytes(), path.stat().st_mode & 0o022)
        for path in (tmp_path / "copy").iterdir()
    }
    assert copies == {"a": (b"aaaa", 0), "b": (b"", 0)}


SPOILS: list[tuple[Callable[[Path], object], str]] = [
    (lambda left: (left / "b").symlink_to(left.parent / "secret"), "symbolic link"),
    (lambda left: os.link(left.parent / "secret", left / "b"), "second name"),
    (lambda left: os.mkfifo(left / "b"), "no plain file"),
    (lambda left: (left / "b").mkdir(), "no plain file"),
    (lambda left: (left / "b").write_bytes(bytes(100)), "larger than 99 bytes"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILS)
def test_links_pipes_folders_and_large_files_are_refused(
    left: Path, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(left)
    with pytest.raises(UnsafeFileError, match=reason):
        plain.read(left, "b", 99)
    with pytest.raises(UnsafeFileError, match=reason):
        plain.copy_all(left, tmp_path / "copy", max_files=10, max_bytes=99)


def test_folder_that_became_a_link_and_too_many_files_are_refused(
    left: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(left)
    with pytest.raises(UnsafeFileError, match="no folder"):
        plain.copy_all(tmp_path / "link", tmp_path / "copy", max_files=10, max_bytes=99)
    with pytest.raises(UnsafeFileError, match="1 files; 0 are allowed"):
        plain.copy_all(left, tmp_path / "copy", max_files=0, max_bytes=99)
