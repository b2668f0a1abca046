"""Tests of what a release contains: the wheel, and the licences of its dependencies."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mev

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package_and_runs(tmp_path: Path) -> None:
    subprocess.run(
        [UV, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", tmp_path],
        cwd=ROOT,
        check=True,
        timeout=580,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    tracked = subprocess.check_output(["git", "ls-files", "src/mev"], cwd=ROOT, text=True).split()
    missing = {
        name
        for name in tracked
        if not (unpacked / name.removeprefix("src/")).is_file() and (ROOT / name).is_file()
    }
    assert missing == set()
    if shutil.which("cargo"):
        assert (unpacked / "mev/_native.abi3.so").is_file()
    shown = subprocess.check_output(
        [sys.executable, "-c", "from mev.cli.main import main; main()", "--version"],
        env={"PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"},
        text=True,
    )
    assert mev.__version__ in shown


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("MIT OR GPL-2.0-only", True),
        ("MIT AND GPL-2.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("AGPL-3.0-only", False),
        ("", False),
        ("see the file", False),
    ],
)
def test_licence_that_cannot_be_met_is_refused(expression: str, *, allowed: bool) -> None:
    spec = importlib.util.spec_from_file_location("dependencies", ROOT / "tools/dependencies.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules["dependencies"] = tool
    spec.loader.exec_module(tool)
    assert tool.is_allowed(expression) is allowed
