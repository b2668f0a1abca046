"""Tests of jobs on a full disk: they fail as `disk_full`, and their output is removed."""

from pathlib import Path

import pytest

from mev.jobs.boot import running_jobs
from mev.jobs.model import JobKind, JobState
from tests.services.disk import fill, small_disk
from tests.unit.jobs import work

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("in_thread", [False, True], ids=["process", "thread"])
async def test_job_that_fills_the_disk_fails_as_disk_full_and_its_files_go(
    tmp_path: Path, in_thread: bool
) -> None:
    kinds = [
        JobKind(name="fill", run=work.fill, in_thread=in_thread, resumable=True),
        JobKind(name="count", run=work.count),
    ]
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        async with running_jobs(disk / "jobs", kinds) as runner:
            job = await runner.wait((await runner.submit("fill", {}, owner="me")).id)
            assert (job.state, job.attempts) == (JobState.FAILED, 1)
            assert job.error is not None
            assert job.error["code"] == "disk_full"
            assert str(disk / "jobs" / job.id) in str(job.error["detail"])
            assert not runner.output(job.id).exists()
            counted = await runner.wait((await runner.submit("count", {"to": 2}, owner="me")).id)
            assert counted.state is JobState.SUCCEEDED
        async with running_jobs(disk / "jobs", kinds) as runner:
            assert runner.get(job.id) == job


async def test_job_that_cannot_be_written_down_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        async with running_jobs(disk / "jobs", [JobKind(name="count", run=work.count)]) as runner:
            fill(disk)
            with pytest.raises(OSError, match=r"No space left on device: .*spec\.json"):
                await runner.submit("count", {"to": 1}, owner="me")
            assert runner.jobs() == []
            assert list((disk / "jobs").iterdir()) == []
