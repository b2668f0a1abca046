"""Tests of the data folder: private to its owner, and locked by the running system."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mev.store.folder import DataFolder, FolderNotPrivateError, NotRunningError, Runtime


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    """Return a world-readable folder, as `mkdir` makes it."""
    found = DataFolder(tmp_path / "data")
    found.path.mkdir(mode=0o755)
    yield found
    found.release()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_made_in_a_folder_that_others_may_enter_is_private(folder: DataFolder) -> None:
    (folder.path / "clickhouse").mkdir(mode=0o755)  # of an earlier version
    folder.acquire()
    (folder.path / "made").mkdir()
    (folder.path / "file").write_text("x")
    subprocess.run(["touch", str(folder.path / "by-a-child")], check=True)
    assert {path.name: mode(path) & 0o077 for path in folder.path.iterdir()} == dict.fromkeys(
        ("lock", "clickhouse", "made", "file", "by-a-child"), 0
    )


def test_group_no_longer_writes_into_the_folder(folder: DataFolder) -> None:
    folder.path.chmod(0o775)
    folder.acquire()
    assert mode(folder.path) == 0o755


@pytest.mark.parametrize("wrong", [0o777, 0o1777, 0o702])
def test_folder_that_others_may_write_is_refused(folder: DataFolder, wrong: int) -> None:
    folder.path.chmod(wrong)
    with pytest.raises(FolderNotPrivateError, match="chmod 700"):
        folder.acquire()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_folder_of_another_user_is_refused(folder: DataFolder) -> None:
    os.chown(folder.path, 65_534, 65_534)
    with pytest.raises(FolderNotPrivateError, match="65534"):
        folder.acquire()


def test_process_that_got_the_id_of_a_killed_system_is_not_taken_for_it(folder: DataFolder) -> None:
    """A process with the same id may have the port too, and would receive the key."""
    runtime = Runtime(pid=os.getpid(), api="http://127.0.0.1:1", kafka="", kafka_embedded=True)
    folder.write_runtime(runtime)
    assert folder.read_runtime() == runtime
    file = folder.path / "runtime.json"
    with subprocess.Popen(["sleep", "60"]) as other:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": other.pid}))
        with pytest.raises(NotRunningError):
            folder.read_runtime()
        other.kill()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"pid": 1}', '{"pid": 999999999, "born": ""}']
)
def test_runtime_file_that_says_nothing_is_no_running_system(
    folder: DataFolder, content: str
) -> None:
    (folder.path / "runtime.json").write_text(content)
    with pytest.raises(NotRunningError):
        folder.read_runtime()
