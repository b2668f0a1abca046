"""Tests of training on a full disk: the error names the file, and training resumes later."""

from pathlib import Path
from typing import Any

import pytest

from mev.core.files import disk_full
from mev.training.run import run
from tests.services.disk import fill, small_disk
from tests.unit.training.exports import Watcher

PAGE_BYTES = 4096
QUICK: dict[str, Any] = {
    "rounds": 12,
    "params": {"max_depth": 3},
    "device": "cpu",
    "checkpoint_every": 4,
    "early_stopping_rounds": 0,
}


@pytest.fixture(scope="module")
def sizes(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Give the pages that each file of a training takes."""
    output = tmp_path_factory.mktemp("whole")
    run(QUICK, export, output, Watcher())
    return {
        path.name: -(-path.stat().st_size // PAGE_BYTES) * PAGE_BYTES for path in output.iterdir()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("file", ["checkpoint.ubj", "roc.svg", "model.ubj", "result.json"])
def test_training_names_the_file_that_a_full_disk_refused(
    export: Path, tmp_path: Path, sizes: dict[str, int], file: str
) -> None:
    order = ["roc", "precision_recall", "calibration", "profit", "learning", "importance"]
    written = [
        *(f"{name}.{kind}" for name in order for kind in ("png", "svg")),
        "model.ubj",
        "result.json",
    ]
    before = sum(sizes[name] for name in written[: written.index(file)]) if file in written else 0
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        output, work = disk / "output", tmp_path if file in written else disk
        output.mkdir()
        ballast = fill(disk, leave_bytes=before)
        with pytest.raises(OSError, match="No space left on device") as refused:
            run(QUICK, export, output, Watcher(), work=work)
        error = disk_full(refused.value)
        assert error is not None
        assert Path(str(error.problem()["path"])).name == file
        assert not (output / "result.json").exists()
        ballast.unlink()
        assert run(QUICK, export, output, Watcher(), work=work).rounds == 12
        assert {path.name for path in output.iterdir() if path.stat().st_size} == set(sizes)
