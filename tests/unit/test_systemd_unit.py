"""Tests of the systemd unit with systemd's own tools."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mev.server.process import EXIT_GRACE_S
from mev.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "mev-control-plane.service"
EXPOSURE_LIMIT = 1.3
"""Highest exposure, 0 to 10, that `systemd-analyze security` may report; lower it, never raise."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


def options() -> dict[str, str]:
    """Return the last value of each option of the unit."""
    lines = (line.partition("=") for line in UNIT.read_text().splitlines() if line[:1] != "#")
    return {name: value for name, equals, value in lines if equals}


@needs_systemd
def test_unit_is_valid(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    # systemd checks that the program exists: this one does.
    copy.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/sh", UNIT.read_text()))
    done = analyze("verify", "--man=no", str(copy))
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, complaints) == (0, [])


@needs_systemd
def test_exposure_of_the_unit_stays_low() -> None:
    done = analyze("security", "--offline=true", str(UNIT))
    if not (found := re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)):
        pytest.skip(f"systemd-analyze is too old: {done.stderr.strip()}")
    assert float(found[1]) <= EXPOSURE_LIMIT, done.stdout


def test_unit_waits_longer_than_an_orderly_stop_takes() -> None:
    fields = Settings.model_fields
    stop_s = fields["drain_s"].default + fields["shutdown_timeout_s"].default + EXIT_GRACE_S
    assert int(options()["TimeoutStopSec"]) > stop_s


def test_unit_allows_all_connections_of_the_settings() -> None:
    fields = Settings.model_fields
    wanted = fields["http_max_connections"].default + fields["ws_max_connections"].default
    assert int(options()["LimitNOFILE"]) > wanted
