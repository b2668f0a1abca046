"""Tests of the checks of the disk."""

from pathlib import Path

import pytest

from mev.doctor import storage
from mev.doctor.finding import State


def test_fsync_is_measured_beside_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    found = storage.check_fsync(tmp_path / "a" / "b")
    assert f"in {tmp_path}" in found.found
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_a_problem() -> None:
    found = storage.check_fsync(Path("/proc/mev"))
    assert found.state is State.PROBLEM
    assert found.found.startswith("/proc cannot be written")


@pytest.mark.parametrize(
    ("taken", "state"),
    [
        ([0.001] * 10, State.OK),
        ([0.001] * 8 + [0.05] * 2, State.WARNING),
        ([0.2] * 10, State.PROBLEM),
    ],
)
def test_latency_of_fsync(taken: list[float], state: State) -> None:
    assert storage.judge_fsync(taken, Path("/data")).state is state


def test_quantile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    values = [float(n) for n in range(10, 0, -1)]
    assert [storage.quantile(values, share) for share in (0.0, 0.5, 0.9, 1.0)] == [1, 5, 9, 10]


def test_disk_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert "GiB free" in storage.check_space(tmp_path / "missing").found
