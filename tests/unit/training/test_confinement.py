"""Tests of what a hostile training process can reach.

As another user, as the same user under Landlock, and without root.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mev.core import confine, kernel
from mev.core.confine import OTHER_USER, Confinement, ConfinementError
from tests.unit.training.attempts import REACHED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")
ROOT = Path(__file__).parents[3]
NOBODY = 12_345
SYSTEM_PYTHON = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
LANDLOCK = kernel.landlock_version()
# Stopped by Landlock only: the copy follows no link.
WITHOUT_LANDLOCK = {"link to a key"}


@dataclass(frozen=True)
class Setting:
    """User and Python of the system, and the confinement of its trainings."""

    name: str
    user: int
    confinement: str
    allowed: frozenset[str] = frozenset()

    @property
    def python(self) -> str:
        """A Python that both users can read."""
        return (
            sys.executable
            if self.user == 0 and "uid" not in self.confinement
            else readable_python(self.user or OTHER_USER)
        )


SETTINGS = [
    Setting("root, the strongest", 0, "strongest"),
    Setting(
        "root, another user and Landlock", 0, json.dumps({"uid": OTHER_USER, "landlock": LANDLOCK})
    ),
    Setting(
        "root, another user alone", 0, json.dumps({"uid": OTHER_USER}), frozenset(WITHOUT_LANDLOCK)
    ),
    Setting("root, Landlock alone", 0, json.dumps({"landlock": LANDLOCK})),
    Setting("not root", NOBODY, "strongest"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder accessible to other users, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="mev-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def as_user(user: int) -> dict[str, Any]:
    return {} if user == os.geteuid() else {"user": user, "group": user, "extra_groups": []}


def environment() -> dict[str, str]:
    packages = sysconfig.get_path("purelib")
    secrets = {"MASTER_API_KEY": "a secret", "CTRL_SIGN_SK_HEX": "11" * 32}
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}:{packages}",
        "LC_ALL": "C.UTF-8",
    } | secrets


@cache
def readable_python(user: int) -> str:
    for python in (sys.executable, str(SYSTEM_PYTHON)):
        try:
            done = subprocess.run(
                [python, "-c", "import numpy, mev.jobs.child"],
                env=environment(),
                capture_output=True,
                check=False,
                **as_user(user),
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip(f"no Python here can be run by user {user}: all lie in the home of root")


def run(place: Path, setting: Setting, *arguments: str) -> dict[str, Any]:
    """Return what a system said that ran in a folder of its own."""
    if os.geteuid() != 0 and setting.user == 0:
        pytest.skip("needs root")
    if LANDLOCK == 0 and not setting.allowed:
        pytest.skip("the kernel has no Landlock")
    folder = place / "system"
    folder.mkdir(mode=0o700)
    user = setting.user if os.geteuid() == 0 else os.geteuid()
    os.chown(folder, user, user)
    command = [
        setting.python,
        "-m",
        "tests.unit.training.attacked",
        str(folder),
        setting.confinement,
        *arguments,
    ]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, **as_user(user)
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_process_in_wrong_hands_reaches_its_own_files_and_its_export_alone(
    place: Path, setting: Setting
) -> None:
    said = run(place, setting)
    assert said["state"] == "succeeded", said
    assert {
        name for name, outcome in said["attacks"].items() if outcome == REACHED
    } <= setting.allowed
    assert set(said["own"].values()) == {REACHED}
    assert (said["status"]["CapEff"], said["status"]["CapPrm"], said["status"]["NoNewPrivs"]) == (
        ["0" * 16],
        ["0" * 16],
        ["1"],
    )
    assert ("user" in said["confinement"]) == (said["status"]["Uid"][0] == str(OTHER_USER))


def test_process_that_is_not_confined_reaches_what_the_others_do_not(place: Path) -> None:
    """The attempts are such that they succeed where nothing stops them."""
    user = os.geteuid()
    said = run(place, Setting("not confined", user, "{}", frozenset({"all"})))
    reached = {name for name, outcome in said["attacks"].items() if outcome == REACHED}
    assert reached > WITHOUT_LANDLOCK | {
        "key by path",
        "rights of a key",
        "own job's state",
        "other job overwritten",
        "Unix socket",
        "TCP",
        "UDP",
    }
    assert reached.isdisjoint(
        {
            "environment of the parent",
            "memory of the parent",
            "trace the parent",
            "secret in the environment",
        }
    )


@pytest.mark.parametrize(
    "setting",
    [
        SETTINGS[1],
        *(pytest.param(one, marks=pytest.mark.slow) for one in (SETTINGS[3], SETTINGS[4])),
    ],
    ids=lambda setting: setting.name,
)
def test_training_succeeds_confined(place: Path, export: Path, setting: Setting) -> None:
    mine = place / "export"
    mine.mkdir(mode=0o700)
    for file in export.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
        (mine / file.name).chmod(0o600)
    user = setting.user if os.geteuid() == 0 else os.geteuid()
    for path in (mine, *mine.iterdir()):
        os.chown(path, user, user)
    said = run(place, setting, str(mine))
    assert said["state"] == "succeeded", said


def test_confinement_that_is_required_and_missing_refuses(place: Path, export: Path) -> None:
    setting = Setting(
        "required",
        os.geteuid(),
        json.dumps({"required": True, "missing": ["no Landlock"]}),
        frozenset({"all"}),
    )
    said = run(place, setting, str(export))
    assert (said["state"], said["error"]["code"]) == ("failed", "confinement_unavailable")
    assert (
        "TRAIN_CONFINEMENT is required, and this system offers none: no Landlock"
        in said["error"]["detail"]
    )
    Confinement(landlock=1, required=True).check()
    with pytest.raises(ConfinementError):
        Confinement(required=True).check()


def test_data_folder_among_what_children_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = confine.strongest(secrets=tmp_path / "data")
    assert found.landlock == 0
    if LANDLOCK:
        assert any("cannot hide" in why and "MEV_DATA_DIR" in why for why in found.missing)
    assert confine.strongest(secrets=Path("/var/lib/elsewhere")).landlock == LANDLOCK
