"""A running system whose exports go to a disk that is full."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_exports import EXPORT, ended, exported
from tests.services.disk import fill, small_disk
from tests.services.system import RunningSystem

COUNT = 4_000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk"), 8 << 20) as path:
        yield path


@pytest.fixture(scope="module")
def settings(disk: Path) -> dict[str, str]:
    return {"EXPORT_DIR": str(disk), "EXPORT_RESERVE_BYTES": "0", "EXPORT_PART_ROWS_MIN": "1"}


@pytest.fixture(scope="module", autouse=True)
def _events(system: RunningSystem) -> None:
    system.simulate(COUNT)


def test_export_is_refused_when_its_estimate_does_not_fit(
    system: RunningSystem, disk: Path
) -> None:
    ballast = fill(disk, leave_bytes=64 << 10)
    with system.client() as http:
        refused = http.post(EXPORT, json={"type": "opportunity", "format": "ndjson"})
        assert (refused.status_code, refused.json()["code"], refused.json()["path"]) == (
            507,
            "disk_full",
            str(disk),
        )
        assert refused.json()["estimated_bytes"] > refused.json()["free_bytes"]
        assert http.get("/api/jobs?kind=export").json()["items"] == []
    ballast.unlink()


def test_export_that_fills_the_disk_fails_as_disk_full_and_makes_room(
    system: RunningSystem, disk: Path
) -> None:
    with system.client() as http:
        export_id = (
            http.post(EXPORT, json={"type": "opportunity", "format": "ndjson", "part_rows": 10})
            .raise_for_status()
            .json()["id"]
        )
        ballast = fill(disk)
        job = ended(http, export_id)
        assert (job["state"], job["error"]["code"]) == ("failed", "disk_full"), job
        assert str(disk / export_id) in job["error"]["detail"]
        assert not (disk / export_id).exists()
        ballast.unlink()
        assert exported(http, type="opportunity", format="ndjson")["manifest"]["rows"] == COUNT


def test_download_onto_a_full_disk_says_so(system: RunningSystem, tmp_path: Path) -> None:
    with system.client() as http, small_disk(tmp_path / "own", 1 << 20) as own:
        export_id = exported(http, type="opportunity", format="ndjson")["id"]
        failed = system.run("datasets", "download", export_id, "--out", str(own), check=False)
        assert failed.returncode == 1
        assert "No space left on device" in failed.stderr
        assert not (own / "manifest.json").exists()
        assert shutil.disk_usage(own).free < 1 << 20
