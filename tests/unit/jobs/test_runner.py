"""Tests of jobs in real processes: outcomes, remaining files, and crashes of work or runner."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.core.confine import NOT_CONFINED
from mev.core.paging import InvalidCursorError
from mev.jobs import child
from mev.jobs.announce import Announcer, event
from mev.jobs.boot import running_jobs
from mev.jobs.context import Context
from mev.jobs.errors import (
    JobBrokenError,
    JobEndedError,
    JobNotEndedError,
    JobPinnedError,
    UnknownJobError,
    UnknownKindError,
)
from mev.jobs.model import Job, JobKind, JobState, Owner
from mev.jobs.runner import MAX_ATTEMPTS, Runner
from mev.jobs.worker import ChildWorker, Task
from mev.wire.pb import events_pb2
from tests.services.waits import until, until_async
from tests.unit.jobs import parent, work

ROOT = Path(__file__).parents[3]
COUNT = JobKind(name="count", run=work.count)
STEADY = JobKind(name="steady", run=work.count, resumable=True)
IN_THREAD = JobKind(name="thread", run=work.count, in_thread=True)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Give the file that lets work go on once it is there."""
    return tmp_path / "gate"


async def waiting(runner: Runner, job: Job) -> list[int]:
    """Return the processes of a job once they wait for their gate."""
    folder = runner.log(job.id).parent
    file = (folder if job.kind == "thread" else folder / "work") / "waiting"
    await until_async(lambda: file.exists() and bool(file.read_text()))
    return [int(pid) for pid in file.read_text().split()]


def lift(gate: Path) -> None:
    gate.touch()


def kill_parent(folder: Path, kind: str, spec: dict[str, object], *, stopped: bool = False) -> int:
    """Kill a runner with a waiting job and return the job's process, optionally `stopped`."""
    command = [sys.executable, "-m", "tests.unit.jobs.parent", str(folder), kind, json.dumps(spec)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        found = until(lambda: [file for file in folder.glob("*/work/waiting") if file.read_text()])
        pid = int(found[0].read_text())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
    return pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def files(runner: Runner, job: Job) -> list[str]:
    output = runner.output(job.id)
    return sorted(path.name for path in output.iterdir()) if output.exists() else []


@pytest.mark.parametrize("kind", [COUNT, IN_THREAD], ids=["process", "thread"])
async def test_a_job_that_succeeds_leaves_output_progress_and_a_log(
    tmp_path: Path, kind: JobKind
) -> None:
    async with running_jobs(tmp_path / "jobs", [kind]) as runner:
        job = await runner.submit(
            kind.name, {"to": 3}, owner=Owner(id="key:1", name="a/bot", person="user:a")
        )
        job = await runner.wait(job.id)
        assert (job.state, job.owner, job.attempts, job.error) == (
            JobState.SUCCEEDED,
            "key:1",
            1,
            None,
        )
        assert job.created_ns <= job.started_ns <= job.ended_ns < job.expires_ns
        assert files(runner, job) == ["sheep-0", "sheep-1", "sheep-2"]
        progress = runner.progress(job.id)
        assert progress is not None
        assert (progress.done, progress.total, progress.note, progress.figures) == (
            3,
            3,
            "counting",
            {"per_s": 1.5},
        )
        assert "counting from 0" in runner.log(job.id).read_text()
    async with running_jobs(tmp_path / "jobs", [kind]) as runner:
        assert runner.get(job.id) == job


@pytest.mark.parametrize("in_thread", [False, True], ids=["process", "thread"])
async def test_a_job_that_fails_says_why_and_leaves_no_output(
    tmp_path: Path, in_thread: bool
) -> None:
    kinds = [
        JobKind(name=run.__name__, run=run, in_thread=in_thread)
        for run in (work.refuse, work.stumble)
    ]
    async with running_jobs(tmp_path / "jobs", kinds) as runner:
        refused = await runner.wait((await runner.submit("refuse", {}, owner="me")).id)
        assert (refused.state, refused.error) == (
            JobState.FAILED,
            {"code": "no_sheep", "detail": "no sheep in the meadow; bring some"},
        )
        assert files(runner, refused) == []
        broken = await runner.wait((await runner.submit("stumble", {}, owner="me")).id)
        assert broken.error is not None
        assert broken.error["code"] == "job_broken"
        assert "ZeroDivisionError: a stone" in str(broken.error["detail"])
        assert "work.py" in runner.log(broken.id).read_text()


async def test_a_job_whose_request_cannot_be_read_fails_and_keeps_no_other_waiting(
    tmp_path: Path, gate: Path
) -> None:
    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        first, damaged, last = [
            await runner.submit(
                "count", {"to": 1, "wait_at": number, "gate": str(gate)}, owner="me"
            )
            for number in (0, 5, 5)
        ]
        await waiting(runner, first)
        runner.log(damaged.id).with_name("spec.json").write_bytes(b"{")
        lift(gate)
        assert (await runner.wait(last.id)).state is JobState.SUCCEEDED
        failed = await runner.wait(damaged.id)
        assert failed.error is not None
        assert (failed.state, failed.error["code"]) == (JobState.FAILED, "job_broken")
        assert (
            failed.created_ns < failed.ended_ns < failed.expires_ns
        )  # it is shown as long as any other


async def test_a_killed_process_fails_its_job_with_the_signal_or_is_taken_up_again(
    tmp_path: Path, gate: Path
) -> None:
    async with running_jobs(tmp_path / "jobs", [COUNT, STEADY]) as runner:
        jobs = [
            await runner.submit(kind, {"to": 3, "wait_at": 2, "gate": str(gate)}, owner="me")
            for kind in ("count", "steady")
        ]
        for job in jobs:
            (pid,) = await waiting(runner, job)
            os.kill(pid, signal.SIGKILL)
        lost = await runner.wait(jobs[0].id)
        assert lost.error is not None
        assert (lost.state, lost.error["code"]) == (JobState.FAILED, "job_lost")
        assert "SIGKILL" in str(lost.error["detail"])
        assert files(runner, lost) == []
        lift(gate)
        again = await runner.wait(jobs[1].id)
        assert (again.state, again.attempts) == (JobState.SUCCEEDED, 2)
        assert len(files(runner, again)) == 3
        assert "counting from 2" in runner.log(again.id).read_text()


async def test_work_gives_way_to_the_process_that_serves(tmp_path: Path) -> None:
    async with running_jobs(
        tmp_path / "jobs", [JobKind(name="nice", run=work.show_priority)]
    ) as runner:
        job = await runner.wait((await runner.submit("nice", {}, owner="me")).id)
        expected = min(os.nice(0) + 10, 19)
        assert (runner.output(job.id) / "niceness").read_text() == f"{expected} {expected}"


async def test_work_that_always_dies_is_given_up(tmp_path: Path) -> None:
    async with running_jobs(
        tmp_path / "jobs", [JobKind(name="die", run=work.die, resumable=True)]
    ) as runner:
        job = await runner.wait((await runner.submit("die", {}, owner="me")).id)
        assert (job.state, job.attempts) == (JobState.FAILED, MAX_ATTEMPTS)
        assert job.error is not None
        assert (job.error["code"], job.error["attempts"]) == ("job_lost", MAX_ATTEMPTS)


async def test_work_that_gives_no_sign_of_life_is_ended(tmp_path: Path, gate: Path) -> None:
    async with running_jobs(tmp_path / "jobs", [replace(COUNT, silent_s=4.0)]) as runner:
        job = await runner.submit("count", {"to": 1, "wait_at": 0, "gate": str(gate)}, owner="me")
        (pid,) = await waiting(runner, job)
        os.kill(pid, signal.SIGSTOP)
        job = await runner.wait(job.id)
        assert job.error is not None
        assert job.error["code"] == "job_stuck"
        assert not alive(pid)


async def test_as_many_of_a_kind_run_at_once_as_it_declares_oldest_first(
    tmp_path: Path, gate: Path
) -> None:
    async with running_jobs(tmp_path / "jobs", [COUNT, IN_THREAD]) as runner:
        spec = {"to": 1, "wait_at": 0, "gate": str(gate)}
        first, second, other = [
            await runner.submit(kind, spec, owner="me") for kind in ("count", "count", "thread")
        ]
        await waiting(runner, first)
        await waiting(runner, other)
        assert [runner.get(job.id).state for job in (first, second, other)] == [
            JobState.RUNNING,
            JobState.QUEUED,
            JobState.RUNNING,
        ]
        lift(gate)
        ended = [await runner.wait(job.id) for job in (first, second)]
        assert ended[0].ended_ns <= ended[1].started_ns


@pytest.mark.parametrize("kind", [COUNT, IN_THREAD], ids=["process", "thread"])
async def test_a_job_is_cancelled_queued_and_running(
    tmp_path: Path, gate: Path, kind: JobKind
) -> None:
    async with running_jobs(tmp_path / "jobs", [kind]) as runner:
        spec = {"to": 2, "wait_at": 1, "gate": str(gate)}
        first, second = [await runner.submit(kind.name, spec, owner="me") for _ in range(2)]
        await waiting(runner, first)
        assert (await runner.cancel(second.id)).state is JobState.CANCELLED
        assert (await runner.cancel(first.id)).state is JobState.CANCELLING
        assert (await runner.wait(first.id)).state is JobState.CANCELLED
        assert files(runner, first) == []
        with pytest.raises(JobEndedError):
            await runner.cancel(first.id)


async def test_deaf_work_is_killed_with_what_it_started(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    task = Task(
        kind=JobKind(name="deaf", run=work.deaf),
        spec={},
        folder=folder,
        output=folder / "output",
        log=folder / "log",
    )
    waits = folder / "work" / "waiting"
    with ThreadPoolExecutor(1) as executor:
        worker = ChildWorker(task, executor, NOT_CONFINED, grace_s=0.2)
        ended = asyncio.create_task(worker.run())
        await until_async(lambda: waits.exists() and len(waits.read_text().split()) == 2)
        worker.cancel()
        assert (await ended).lost
    await until_async(lambda: not any(alive(int(pid)) for pid in waits.read_text().split()))


def test_an_attempt_does_not_begin_while_the_process_of_an_earlier_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_LOCK_WAIT_S", 0.0)
    with child._locked(tmp_path), pytest.raises(SystemExit, match="an earlier attempt still runs"):
        child._locked(tmp_path)
    child._locked(tmp_path).close()


@pytest.mark.parametrize(
    ("kind", "state"), [("count", JobState.FAILED), ("steady", JobState.SUCCEEDED)]
)
async def test_a_killed_runner_leaves_no_work_behind_and_the_next_one_takes_up_what_it_can(
    tmp_path: Path, gate: Path, kind: str, state: JobState
) -> None:
    spec = {"to": 3, "wait_at": 2, "gate": str(gate)}
    pid = await asyncio.to_thread(kill_parent, tmp_path / "jobs", kind, spec)
    await until_async(lambda: not alive(pid))
    lift(gate)
    async with running_jobs(tmp_path / "jobs", parent.KINDS) as runner:
        (job,) = runner.jobs()
        job = await runner.wait(job.id)
        assert job.state is state
        assert len(files(runner, job)) == (3 if state is JobState.SUCCEEDED else 0)
        if job.error:
            assert "the system stopped while the job ran" in str(job.error["detail"])


async def test_a_killed_runner_takes_along_a_process_that_cannot_hear_of_it(
    tmp_path: Path, gate: Path
) -> None:
    spec = {"to": 3, "wait_at": 2, "gate": str(gate)}
    pid = await asyncio.to_thread(
        lambda: kill_parent(tmp_path / "jobs", "steady", spec, stopped=True)
    )
    await until_async(lambda: not alive(pid))


async def test_an_orderly_stop_is_like_a_crash_to_a_job_that_can_go_on(
    tmp_path: Path, gate: Path
) -> None:
    kinds = [STEADY, replace(IN_THREAD, resumable=True)]
    async with running_jobs(tmp_path / "jobs", kinds) as runner:
        jobs = [
            await runner.submit(kind.name, {"to": 2, "wait_at": 1, "gate": str(gate)}, owner="me")
            for kind in kinds
        ]
        for job in jobs:
            await waiting(runner, job)
    lift(gate)
    async with running_jobs(tmp_path / "jobs", kinds) as runner:
        for job in jobs:
            assert (await runner.wait(job.id)).state is JobState.SUCCEEDED
            assert len(files(runner, job)) == 2


async def test_a_job_that_was_being_cancelled_is_cancelled_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "1"
    folder.mkdir(parents=True)
    state = {
        "id": "1",
        "kind": "count",
        "owner": "me",
        "owner_name": "me",
        "state": "cancelling",
        "created_ns": 1,
    }
    (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "jobs" / "never-accepted").mkdir()
    damaged = tmp_path / "jobs" / "2"
    damaged.mkdir()
    (damaged / "state.json").write_text("{")
    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        assert [job.state for job in runner.jobs()] == [JobState.CANCELLED]
        assert not (tmp_path / "jobs" / "never-accepted").exists()
        assert damaged.exists()


async def test_jobs_are_listed_by_page_newest_first(tmp_path: Path) -> None:
    async with running_jobs(tmp_path / "jobs", [COUNT, IN_THREAD]) as runner:
        made = [
            await runner.submit(kind, {"to": 0}, owner=owner)
            for owner in "ab"
            for kind in ("count", "thread")
        ]
        for job in made:
            await runner.wait(job.id)
        page, cursor = runner.page(limit=3)
        rest, end = runner.page(limit=3, cursor=cursor)
        assert [job.id for job in [*page, *rest]] == sorted((job.id for job in made), reverse=True)
        assert end is None
        assert [job.owner for job in runner.jobs(kind="count")] == ["b", "a"]
        assert [job.kind for job in runner.jobs(person="a")] == ["thread", "count"]
        assert runner.jobs(owner="a", state=JobState.RUNNING) == []
        with pytest.raises(InvalidCursorError):
            runner.page(cursor="x")
        with pytest.raises(UnknownJobError):
            runner.get("nope")
        with pytest.raises(UnknownKindError, match="count, thread"):
            await runner.submit("nope", {}, owner="a")


async def test_changes_and_progress_are_announced_without_whose_job_it_is(
    tmp_path: Path, gate: Path
) -> None:
    said: list[events_pb2.Job] = []
    async with running_jobs(
        tmp_path / "jobs", [COUNT], announce=lambda job, progress: said.append(event(job, progress))
    ) as runner:
        job = await runner.submit(
            "count",
            {"to": 3, "wait_at": 2, "gate": str(gate)},
            owner=Owner(id="user:secret", name="secret", person="user:secret"),
        )
        await until_async(lambda: bool(said) and said[-1].done == 1)
        lift(gate)
        await runner.wait(job.id)
    assert [each.state for each in said] == ["queued", "running", "running", "succeeded"]
    assert [(each.done, each.total, each.note) for each in said[2:]] == [
        (1, 3, "counting"),
        (3, 3, "counting"),
    ]
    assert {(each.id, each.kind) for each in said} == {(job.id, "count")}
    assert [each.attempt for each in said] == [0, 1, 1, 1]
    times = [each.timestamp_ns for each in said]
    assert times == sorted(set(times))
    assert "secret" not in str(said)


async def test_why_a_job_failed_is_announced_as_a_code(tmp_path: Path) -> None:
    said: list[events_pb2.Job] = []
    kind = JobKind(name="refuse", run=work.refuse)
    async with running_jobs(
        tmp_path / "jobs", [kind], announce=lambda job, progress: said.append(event(job, progress))
    ) as runner:
        await runner.wait((await runner.submit("refuse", {}, owner="me")).id)
    assert (said[-1].state, said[-1].error_code, "meadow" in str(said)) == (
        "failed",
        "no_sheep",
        False,
    )


async def test_a_job_is_done_also_when_nobody_can_be_told(tmp_path: Path) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    away = Brokers(servers="127.0.0.1:1")
    with closing(
        Publisher(away, queue_messages=10, queue_kbytes=100, linger_ms=0, timeout_s=0.3)
    ) as publisher:
        async with running_jobs(
            tmp_path / "jobs", [COUNT], announce=Announcer(publisher)
        ) as runner:
            jobs = [await runner.submit("count", {"to": 1}, owner="me") for _ in range(4)]
            assert [(await runner.wait(job.id)).state for job in jobs] == [JobState.SUCCEEDED] * 4
            await until_async(lambda: publisher.fullness() == 0)
    await asyncio.sleep(0)
    gc.collect()  # what a task raises that nobody asks is told when it goes
    assert errors == []


async def test_a_job_that_has_ended_is_removed_with_its_files(tmp_path: Path, gate: Path) -> None:
    elsewhere = replace(COUNT, outputs=tmp_path / "elsewhere")
    async with running_jobs(tmp_path / "jobs", [elsewhere]) as runner:
        job = await runner.submit("count", {"to": 1, "wait_at": 0, "gate": str(gate)}, owner="me")
        await waiting(runner, job)
        queued = await runner.submit("count", {"to": 1}, owner="me")
        for each in (job, queued):
            with pytest.raises(JobNotEndedError, match="cancel it first"):
                await runner.remove(each.id)
        await runner.cancel(queued.id)
        lift(gate)
        await runner.wait(job.id)
        results = await asyncio.gather(
            runner.remove(job.id),
            runner.remove(job.id),
            runner.remove(queued.id),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in results) == ["Job", "Job", "UnknownJobError"]
        assert runner.jobs() == []
    assert [*(tmp_path / "jobs").iterdir(), *(tmp_path / "elsewhere").iterdir()] == []


async def test_a_removal_that_a_crash_cut_short_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        job = await runner.wait((await runner.submit("count", {"to": 1}, owner="me")).id)

        async def crash(_job: Job) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(runner, "_forget", crash)
        with pytest.raises(KeyboardInterrupt):
            await runner.remove(job.id)
    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        assert runner.jobs() == []
    assert list((tmp_path / "jobs").iterdir()) == []


async def test_nothing_is_begun_that_cannot_be_told_first(tmp_path: Path) -> None:
    told: list[str] = []

    async def first(job_id: str) -> None:
        told.append(job_id)
        assert not (tmp_path / "jobs" / job_id).exists()
        if len(told) == 1:
            raise JobBrokenError("nobody listens")

    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        with pytest.raises(JobBrokenError):
            await runner.submit("count", {"to": 1}, owner="me", first=first)
        assert (runner.jobs(), list((tmp_path / "jobs").iterdir())) == ([], [])
        assert (await runner.submit("count", {"to": 1}, owner="me", first=first)).id == told[1]


async def test_places_in_a_request_are_for_the_work_alone(tmp_path: Path) -> None:
    kind = replace(COUNT, shows=frozenset({"to"}))
    async with running_jobs(tmp_path / "jobs", [kind]) as runner:
        job = await runner.wait(
            (await runner.submit("count", {"to": 1, "gate": "/a/place"}, owner="me")).id
        )
        assert (runner.spec(job.id), job.state) == ({"to": 1}, JobState.SUCCEEDED)
        assert (
            runner.log(job.id).with_name("spec.json").read_bytes() == b'{"to":1,"gate":"/a/place"}'
        )


async def test_a_job_of_before_persons_were_kept_is_its_owners(tmp_path: Path) -> None:
    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        job = await runner.wait(
            (
                await runner.submit(
                    "count", {"to": 1}, owner=Owner(id="key:1", name="a", person="user:a")
                )
            ).id
        )
        assert job.whose == "user:a"
        state = runner.log(job.id).with_name("state.json")
    content = json.loads(state.read_bytes())
    del content["person"]
    state.write_text(json.dumps(content))
    async with running_jobs(tmp_path / "jobs", [COUNT]) as runner:
        assert [each.id for each in runner.jobs(person="key:1")] == [job.id]


async def test_what_was_old_at_the_start_is_never_shown(tmp_path: Path) -> None:
    kind = replace(COUNT, expires_s=0.0)
    async with running_jobs(tmp_path / "jobs", [kind]) as runner:
        await runner.wait((await runner.submit("count", {"to": 1}, owner="me")).id)
    runner = Runner(tmp_path / "jobs", [kind])
    await runner.start()
    assert runner.jobs() == []
    assert list((tmp_path / "jobs").iterdir()) == []
    await runner.close()


async def test_what_is_old_is_removed(tmp_path: Path) -> None:
    kind = replace(COUNT, expires_s=0.0, outputs=tmp_path / "elsewhere")
    async with running_jobs(tmp_path / "jobs", [kind]) as runner:
        job = await runner.wait((await runner.submit("count", {"to": 1}, owner="me")).id)
        output = runner.output(job.id)
        assert output.parent == tmp_path / "elsewhere"
        assert output.exists()
        expiry = asyncio.create_task(runner.expire())
        await until_async(lambda: not list((tmp_path / "jobs").iterdir()))
        expiry.cancel()
        assert runner.jobs() == []
        assert not output.exists()


async def test_pinned_job_neither_expires_nor_is_removed(tmp_path: Path) -> None:
    kind = replace(COUNT, expires_s=0.0)
    pinned: dict[str, str] = {}
    async with running_jobs(tmp_path / "jobs", [kind], pinned=lambda: pinned) as runner:
        kept = await runner.submit("count", {"to": 1}, owner="me")
        other = await runner.submit("count", {"to": 1}, owner="me")
        pinned[kept.id] = "model abc (champion) learned from it"
        for job in (kept, other):
            await runner.wait(job.id)
        expiry = asyncio.create_task(runner.expire())
        await until_async(lambda: other.id not in {job.id for job in runner.jobs()})
        expiry.cancel()
        with pytest.raises(JobPinnedError, match="champion"):
            await runner.remove(kept.id)
        assert files(runner, kept)
        pinned.clear()
        await runner.remove(kept.id)
        assert runner.jobs() == []


async def test_job_in_a_thread_that_begins_during_the_stop_is_ended(tmp_path: Path) -> None:
    ended = threading.Event()

    def work_on(context: Context) -> None:
        try:
            while True:
                context.check()
                time.sleep(0.01)
        finally:
            ended.set()

    runner = Runner(
        tmp_path / "jobs", [JobKind(name="thread", run=work_on, in_thread=True)], stop_timeout_s=5
    )
    await runner.start()
    await runner.submit("thread", {}, owner="me")  # its start is written down when the stop begins
    await runner.close()
    assert await asyncio.to_thread(ended.wait, 10) or not runner._workers
    assert not runner._tasks
