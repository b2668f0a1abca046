"""Tests of jobs through `kill -9`: they resume to the same bytes and show no partial result.

One data folder and two runs of the system, with continuous reads of everything listed and served.
"""

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.system import RunningSystem
from tests.services.waits import until

pytestmark = pytest.mark.slow

COUNT = 2_000
EXPORT = "/api/datasets/export"
TRAIN = "/api/training"
QUERY = {"type": "opportunity", "format": "ndjson", "compression": "gzip", "part_rows": 20}
TRAINING = {"rounds": 1500, "early_stopping_rounds": 0, "checkpoint_every": 20, "device": "cpu"}


def trainers(data_dir: Path, job_id: str) -> set[int]:
    """Return the processes that work on a job, read from /proc."""
    folder = data_dir / "jobs" / job_id / "work"
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended since the listing
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"mev.jobs.child" in words and (process / "cwd").readlink() == folder.resolve():
                found.add(int(process.name))
    return found


class Watcher:
    """Looks at all that is listed and served, and writes down what should not be."""

    def __init__(self, system: RunningSystem) -> None:
        self.system = system
        self.exports: list[str] = []
        self.trainings: list[str] = []
        self.seen = {"absent": 0, "whole": 0}
        self.wrong: list[str] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look until the end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            with (
                contextlib.suppress(httpx.TransportError, OSError),
                self.system.client() as http,
            ):  # it is down, or goes down
                for export_id in [*self.exports]:
                    self._look_at_export(http, export_id)
                for job_id in [*self.trainings]:
                    self._look_at_training(http, job_id)

    def _look_at_export(self, http: httpx.Client, export_id: str) -> None:
        shown = http.get(f"{EXPORT}/{export_id}").json()
        if shown["manifest"] is None:
            answer = http.get(f"{EXPORT}/{export_id}/files/part-00000.ndjson.gz")
            self._check(shown["files"] == [], shown)
            # Between the two questions it may have been finished.
            whole = (
                answer.is_success
                and http.get(f"{EXPORT}/{export_id}").json()["manifest"] is not None
            )
            self._check(whole or answer.status_code == httpx.codes.CONFLICT, answer.status_code)
            self.seen["absent"] += 1
            return
        parts = shown["manifest"]["parts"]
        for part in (parts[0], parts[-1]):
            content = http.get(f"{EXPORT}/{export_id}/files/{part['file']}").content
            self._check(hashlib.sha256(content).hexdigest() == part["sha256"], part)
        self._check(sum(part["rows"] for part in parts) == COUNT, shown["manifest"]["rows"])
        self.seen["whole"] += 1

    def _look_at_training(self, http: httpx.Client, job_id: str) -> None:
        self._check(len(trainers(self.system.data_dir, job_id)) <= 1, "two processes on one job")
        shown = http.get(f"{TRAIN}/jobs/{job_id}").json()
        self._check((shown["model_id"] is None) == (shown["result"] is None), shown["job"])
        self._check(shown["model_id"] is None or shown["job"]["state"] == "succeeded", shown["job"])
        for model in http.get(f"{TRAIN}/models").json()["items"]:
            self._check(http.get(f"{TRAIN}/models/{model['id']}").is_success, model["id"])

    def _check(self, good: bool, what: object) -> None:
        if not good:
            self.wrong.append(str(what))


def job(http: httpx.Client, job_id: str) -> dict[str, Any]:
    return dict(http.get(f"/api/jobs/{job_id}").raise_for_status().json())


def has_come(http: httpx.Client, job_id: str, done: int, attempts: int = 1) -> bool:
    """Say whether a job has come so far in this attempt or a later one."""
    found = job(http, job_id)
    assert found["state"] in {"queued", "running"}, found
    so_far: float = (found["progress"] or {"done": 0})["done"]
    return found["attempts"] == attempts and found["state"] == "running" and so_far >= done


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """Return a job once it has ended."""
    return until(
        lambda: job(http, job_id),
        lambda found: found["state"] in {"succeeded", "failed", "cancelled"},
    )


def files(http: httpx.Client, export_id: str) -> dict[str, bytes]:
    """Return the parts of an export."""
    shown = http.get(f"{EXPORT}/{export_id}").raise_for_status().json()
    return {
        path.rpartition("/")[2]: http.get(path).raise_for_status().content
        for path in shown["files"][1:]
    }


def fill(system: RunningSystem, http: httpx.Client) -> None:
    system.run("simulate", "--count", str(COUNT), "--seed", "7", "--fast")
    until(
        lambda: (
            sum(
                item["rows"] or 0
                for item in http.get("/api/datasets").json()["items"]
                if item["type"] != "job"
            )
            >= 3 * COUNT
        )
    )


def submit(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    return str(http.post(path, json=body).raise_for_status().json()["id"])


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    """Give a system of the test's own."""
    running = RunningSystem(tmp_path / "data", EXPORT_PART_ROWS_MIN="20")
    running.start()
    yield running
    running.kill()


def test_jobs_go_on_after_kills_of_their_process_and_of_everything(system: RunningSystem) -> None:
    watcher = Watcher(system)
    with watcher.watching():
        with system.client() as http:
            fill(system, http)
            whole = submit(http, EXPORT, QUERY)
            watcher.exports.append(whole)
            assert ended(http, whole)["state"] == "succeeded"
            expected = files(http, whole)
            examples = submit(http, EXPORT, {"type": "training_examples"})
            assert ended(http, examples)["state"] == "succeeded"

            training = submit(http, f"{TRAIN}/train", {**TRAINING, "dataset": examples})
            watcher.trainings.append(training)
            until(lambda: has_come(http, training, 60))
            (first,) = trainers(system.data_dir, training)
            os.kill(first, signal.SIGKILL)
            before = job(http, training)["progress"]["done"]
            until(lambda: has_come(http, training, before + 40, attempts=2))
            (second,) = trainers(system.data_dir, training)
            os.kill(
                second, signal.SIGSTOP
            )  # so that it is at work when everything is killed, and hears nothing of it

            cut = submit(http, EXPORT, QUERY)
            watcher.exports.append(cut)
            until(lambda: has_come(http, cut, COUNT // 10))
            assert trainers(system.data_dir, training) == {second}
            system.kill()
        made = len(list((system.data_dir / "jobs" / cut / "output").glob("part-*")))
        assert 0 < made < COUNT // 20
        until(lambda: not trainers(system.data_dir, training))

        system.start()
        with system.client() as http:
            gone_on = ended(http, cut)
            assert (gone_on["state"], gone_on["attempts"]) == ("succeeded", 2)
            assert files(http, cut) == expected
            trained = ended(http, training)
            assert (trained["state"], trained["attempts"]) == ("succeeded", 3), trained["error"]
            done = http.get(f"{TRAIN}/jobs/{training}").json()
            assert done["result"]["lineage"]["resumed_from"] >= 60
            assert first != second
    assert system.stop() == 0
    assert watcher.wrong == []
    assert min(watcher.seen.values()) > 2
