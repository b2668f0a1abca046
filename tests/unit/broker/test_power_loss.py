"""Restart of the broker after a power failure: the offsets of lost records are not reused.

After a kill or a clean stop, no offsets are skipped.
"""

from pathlib import Path

import pytest

from mev.broker import topics
from mev.broker.batch import empty_batch
from mev.broker.topics import Topics
from tests.unit.broker.client import batch
from tests.unit.broker.test_log import read_all

SKIPPED = 1_000_000


def opened(folder: Path) -> Topics:
    return Topics(folder, partition_bytes=1 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a broker with five records, the last two lost in a power failure."""
    running = opened(tmp_path)
    running.create("events", 1)
    log = running.partitions("events")[0]
    for _ in range(5):
        log.append(batch())
    (segment,) = (tmp_path / "topics" / "events" / "0").glob("*.log")
    content = segment.read_bytes()
    segment.write_bytes(content[: len(content) * 3 // 5])
    return tmp_path


def start_again(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Topics:
    """Open the folder after the machine started again."""
    boot_id = folder / "other-boot"
    boot_id.write_text("another boot\n")
    monkeypatch.setattr(topics, "_BOOT_ID", boot_id)
    return opened(folder)


def test_offsets_that_a_power_failure_took_are_not_given_again(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    log = start_again(monkeypatch, folder).partitions("events")[0]
    assert log.end == 3 + SKIPPED
    empty = log.read(4, 1 << 20)  # to a reader that had seen the lost records
    assert empty == empty_batch(3, SKIPPED - 1)
    assert log.append(batch()) == 3 + SKIPPED
    assert read_all(log) == [0, 1, 2, 3, 3 + SKIPPED]
    assert log.read(4, 1 << 20) == empty + log.read(3 + SKIPPED, 1 << 20)
    again = opened(folder).partitions("events")[0]
    assert (read_all(again), again.end) == ([0, 1, 2, 3, 3 + SKIPPED], 4 + SKIPPED)


def test_kill_without_a_power_failure_skips_no_offset(folder: Path) -> None:
    assert opened(folder).partitions("events")[0].end == 3


def test_restart_of_the_machine_after_a_stop_skips_no_offset(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    opened(folder).close()
    assert start_again(monkeypatch, folder).partitions("events")[0].end == 3
    # That was only for the one start: the machine may lose its power now.
    (folder / "other-boot").write_text("a third boot\n")
    assert opened(folder).partitions("events")[0].end == 3 + SKIPPED
