"""A training in wrong hands: what its process can reach, and what of what it leaves is taken."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from mev.control.keys import open_keys
from mev.jobs.boot import running_jobs
from mev.jobs.context import Context
from mev.jobs.model import Job, JobState
from mev.registry.registry import Registry
from mev.training.job import train_kind
from mev.training.spec import parse
from tests.unit.training import attacks

ROOT = Path(__file__).parents[3]
QUICK: Mapping[str, Any] = {
    "rounds": 5,
    "params": {"max_depth": 3},
    "device": "cpu",
    "early_stopping_rounds": 0,
}


class Plane:
    """The part of a system that trains: keys, models, jobs."""

    def __init__(self, folder: Path, export: Path) -> None:
        self.folder = folder
        self.keys = open_keys(folder / "control", seed_hex=None, key_id=None, now_ns=1)
        self.registry = Registry(folder / "models", self.keys.trust)
        (folder / "export-job").mkdir()
        (folder / "export-job" / "state.json").write_bytes(
            orjson.dumps({"state": JobState.SUCCEEDED})
        )
        self._spec = {
            "export_id": "export-job",
            "export_folder": str(export),
            "export_state": str(folder / "export-job" / "state.json"),
            "compiled": False,
        }

    async def train(self, work: Callable[[Context], None]) -> Job:
        """Return the job of a training that does `work` in the place of its own."""
        kind = replace(train_kind(self.registry, self.keys), run=work)
        async with running_jobs(self.folder / "jobs", [kind]) as runner:
            training = parse(QUICK).model_dump(mode="json")
            job = await runner.submit(
                "train", self._spec | {"training": training}, owner="user:eve"
            )
            return await runner.wait(job.id)


@pytest.fixture
def plane(tmp_path: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> Plane:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MASTER_API_KEY", "a secret of the system")
    monkeypatch.setenv("CTRL_SIGN_SK_HEX", "11" * 32)
    monkeypatch.setenv("KAFKA_OPTIONS", '{"sasl.password": "secret"}')
    return Plane(tmp_path, export)


async def test_environment_of_a_training_holds_no_secret(plane: Plane) -> None:
    job = await plane.train(attacks.read_environment)
    assert job.error is not None
    assert job.error["code"] == "invalid_input"
    assert set(str(job.error["detail"]).split()) <= {
        *(
            "HOME",
            "LC_ALL",
            "LC_CTYPE",
            "OMP_WAIT_POLICY",
            "PATH",
            "PYTHONDONTWRITEBYTECODE",
            "PYTHONPATH",
            "TMPDIR",
            "LANG",
            "TZ",
        )
    }


@pytest.mark.parametrize(
    ("attack", "code", "reason"),
    [
        (attacks.link_key, "unsafe_file", "'note.png' is a symbolic link"),
        pytest.param(
            attacks.link_key_hard,
            "unsafe_file",
            "'note.png' has a second name",
            marks=pytest.mark.slow,
        ),
        (attacks.link_output, "unsafe_file", "output is no folder"),
        (attacks.lie_about_scores, "model_parity", "scores are off"),
    ],
)
async def test_what_a_training_leaves_is_not_taken_unless_it_is_what_it_says(
    plane: Plane, attack: Callable[[Context], None], code: str, reason: str
) -> None:
    job = await plane.train(attack)
    assert (job.state, job.error and job.error["code"]) == (JobState.FAILED, code), job.error
    assert job.error is not None
    assert reason in str(job.error["detail"])
    assert not plane.registry.folder.exists()
    assert not (plane.folder / "jobs" / job.id / "output").exists()
