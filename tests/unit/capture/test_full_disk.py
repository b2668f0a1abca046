"""Tests of the follower's files on a full disk: the error names the file, old content stays."""

from pathlib import Path

import pytest

from mev.capture.follow import SlotFile
from mev.core.files import DiskFullError
from tests.services.disk import fill, small_disk


def test_position_that_a_full_disk_refuses_stays_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        position = SlotFile(disk / "node.json")
        position.write(7)
        ballast = fill(disk)
        with pytest.raises(DiskFullError, match=r"node\.json"):
            position.write(8)
        assert position.read() == 7
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "node.json"]
        ballast.unlink()
        position.write(8)
        assert position.read() == 8
