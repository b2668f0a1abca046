"""`mev train`, `mev export`, `mev jobs`: commands that wait for work."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from mev.cli.datasets import UnwritableFolderError
from tests.unit.cli.api import BUSY, Answer, ScriptedApi

EXPORT, JOB, MODEL = (
    "019a0000-0000-7000-8000-000000000001",
    "019a0000-1111-7000-8000-000000000002",
    "29373009" + "0" * 56,
)


def job(job_id: str, state: str, **more: Any) -> dict[str, Any]:
    known = {
        "id": job_id,
        "kind": "export",
        "state": state,
        "owner": "eve",
        "created_at": "2026-11-22T21:44:51Z",
    }
    return known | {"progress": None, "error": None, "spec": {}} | more


def exported(api: ScriptedApi, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    parts = [
        {"file": "part-0.csv", "rows": 1, "bytes": len(content), "sha256": digest, "slots": None}
    ]
    manifest = {"rows": 1, "bytes": len(content), "parts": parts}
    api.tell(f"GET /api/jobs/{EXPORT}", job(EXPORT, "succeeded"))
    api.tell(
        "GET /api/jobs",
        {"items": [job(JOB, "running"), job(EXPORT, "succeeded")], "next_cursor": None},
    )
    api.tell("POST /api/datasets/export", {"id": EXPORT})
    api.tell(
        f"GET /api/datasets/export/{EXPORT}",
        {"id": EXPORT, "job": job(EXPORT, "succeeded"), "manifest": manifest},
    )
    api.tell(f"GET /api/datasets/export/{EXPORT}/files/part-0.csv", BUSY, Answer(content))
    api.tell(f"GET /api/datasets/export/{EXPORT}/files/manifest.json", manifest)


def test_a_training_succeeds_though_the_api_is_busy_meanwhile(api: ScriptedApi) -> None:
    done = job(JOB, "succeeded", kind="training", spec={"export_id": EXPORT})
    result = {"metrics": {"auc": 0.75}, "rows": {"train": 9, "validation": 3, "simulated": 0}}
    api.tell("POST /api/training/train", {"id": JOB, "notes": []})
    api.tell(
        f"GET /api/jobs/{JOB}",
        BUSY,
        job(JOB, "running"),
        Answer({"detail": "slower"}, 429, {"Retry-After": "3"}),
        done,
    )
    api.tell(f"GET /api/training/jobs/{JOB}", BUSY, {"model_id": MODEL, "result": result})
    said = api.run("train").stdout.splitlines()
    assert said[:3] == [
        f"model {MODEL}",
        f"learned from export {EXPORT}: 12 rows, 0 of them simulated",
        f"card {api.url}/api/training/models/{MODEL}/card",
    ]
    assert [pause for pause in api.pauses if pause >= 1] == [1, 3, 1]
    assert [request for request, _ in api.asked].count("POST /api/training/train") == 1


def test_a_training_names_its_export_by_the_beginning(api: ScriptedApi) -> None:
    api.tell("GET /api/jobs", {"items": [job(EXPORT, "succeeded")], "next_cursor": None})
    api.tell("POST /api/training/train", {"id": JOB, "notes": []})
    api.run("train", "--dataset", EXPORT[:8], "--no-wait")
    ((_, body),) = [asked for asked in api.asked if asked[1]]
    assert body["dataset"] == EXPORT


def test_jobs_are_named_by_the_beginning_of_their_ids(api: ScriptedApi) -> None:
    api.tell(
        "GET /api/jobs",
        {"items": [job(JOB, "running"), job(EXPORT, "succeeded")], "next_cursor": None},
    )
    api.tell(f"GET /api/jobs/{EXPORT}", job(EXPORT, "succeeded"))
    api.tell(f"DELETE /api/jobs/{JOB}", job(JOB, "cancelling"))
    assert EXPORT in api.run("jobs", "show", EXPORT[:13]).stdout
    assert api.run("jobs", "cancel", JOB[:12]).stdout == "cancelling\n"
    assert EXPORT in api.run("jobs", "follow", EXPORT[:13], EXPORT).stdout
    refused, _ = api.refused("jobs", "show", JOB[:8])
    assert f"{JOB}, {EXPORT}" in refused.detail


def test_nothing_to_follow_is_said(api: ScriptedApi) -> None:
    api.tell("GET /api/jobs", {"items": [], "next_cursor": None})
    assert api.run("jobs", "follow").stdout.startswith("no job waits or runs")


def test_an_export_arrives_and_one_is_no_plural(api: ScriptedApi, tmp_path: Path) -> None:
    exported(api, b"x")
    done = api.run("export", "bundle", "--out", str(tmp_path / "a" / "b"))
    assert done.stdout.splitlines()[0] == f"export {EXPORT}: 1 row, 1 byte, 1 part"
    assert f"1 file, verified, and manifest.json in {tmp_path}" in done.stderr
    assert (tmp_path / "a" / "b" / "part-0.csv").read_bytes() == b"x"
    api.tell("POST /api/datasets/export/estimate", {"rows": 1, "parts": 1, "bytes": 20})
    assert api.run("export", "bundle", "--estimate").stdout == "1 row in 1 part, about 20 bytes\n"


@pytest.mark.parametrize("command", [("export", "bundle"), ("datasets", "download", EXPORT)])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_asked(
    api: ScriptedApi, command: tuple[str, ...]
) -> None:
    refused, _ = api.refused(*command, "--out", "/proc/nope")
    assert isinstance(refused, UnwritableFolderError)
    assert refused.detail.startswith("No such file or directory: /proc/nope")
    assert api.asked == []


def test_a_file_that_cannot_be_written_is_one_line(api: ScriptedApi, tmp_path: Path) -> None:
    exported(api, b"x")
    (tmp_path / ".part-0.csv.partial").mkdir()
    refused, _ = api.refused("datasets", "download", EXPORT[:13], "--out", str(tmp_path))
    assert refused.detail.startswith(f"Is a directory: {tmp_path}")
