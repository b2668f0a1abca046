"""Tests of the run of all checks."""

import threading
import time
from pathlib import Path

import pytest

from mev.doctor import run, services
from mev.doctor.finding import Finding, State, verdict
from mev.doctor.run import Area, Target
from mev.server.security import Shares, connection_shares
from mev.settings import Settings, load
from tests.unit.doctor.tree import CPU, limits, write


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings with embedded services and a data folder of its own."""
    for name in ("KAFKA_BROKERS", "CLICKHOUSE_HOST", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    return load(mev_data_dir=tmp_path / "data")


def findings(areas: list[Area]) -> dict[str, Finding]:
    """Return the findings by name."""
    return {finding.name: finding for area in areas for finding in area.findings}


def check(
    settings: Settings, root: Path, *, pid: int | None = None, errors: str = ""
) -> list[Area]:
    """Run all checks on the files below `root`."""
    return run.run_checks(
        Target(settings=settings, errors=errors, pid=pid, api=None, root=root), limit_s=30
    )


def test_machine_without_any_files_has_no_failed_check(settings: Settings, tmp_path: Path) -> None:
    found = findings(check(settings, tmp_path / "empty"))
    assert not [one for one in found.values() if "failed" in one.found]
    assert found["CPU governor"].state is State.NOT_APPLICABLE
    assert found["Open files"].state is State.NOT_APPLICABLE


def test_machine_of_malformed_files_has_no_failed_check(settings: Settings, tmp_path: Path) -> None:
    names = [
        *(f"{CPU}/{name}" for name in ("online", "isolated", "cpu0/cpufreq/scaling_governor")),
        *(f"proc/self/{name}" for name in ("status", "limits", "cgroup")),
        *(f"proc/{name}" for name in ("cpuinfo", "swaps", "1/comm", "sys/vm/swappiness")),
        "sys/devices/system/node/node0/cpulist",
        "sys/kernel/mm/transparent_hugepage/enabled",
        "sys/class/net/eth0/device",
        "sys/class/net/eth0/queues",
        "sys/class/ptp/ptp0",
    ]
    write(tmp_path, dict.fromkeys(names, b"\xff: \x00[[-,\n0::/\xfe\nMax open files"))
    found = findings(check(settings, tmp_path))
    assert not [one for one in found.values() if "failed" in one.found]


def test_limits_are_those_of_the_running_process(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path, {"proc/77/limits": limits(soft=64), "proc/self/limits": limits()})
    areas = check(settings, tmp_path, pid=77)
    assert findings(areas)["Open files"].found == "64"
    assert "Limits of the running process" in [area.name for area in areas]
    assert findings(check(settings, tmp_path))["Open files"].state is State.OK


def test_wanted_limit_of_open_files_fits_all_connections(settings: Settings) -> None:
    whole = Shares(settings.http_max_connections, settings.ws_max_connections)
    wanted = run.wanted_files(settings)
    assert connection_shares(settings, wanted) == whole
    assert connection_shares(settings, wanted - 1) != whole


def test_check_that_fails_or_hangs_is_a_warning(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Finding:
        raise RuntimeError("broken")

    def hang(_: object) -> Finding:
        time.sleep(5)
        raise AssertionError

    monkeypatch.setattr(services, "check_kafka", fail)
    monkeypatch.setattr(services, "check_redis", hang)
    target = Target(settings=settings, errors="", pid=None, api=None, root=tmp_path)
    before = set(threading.enumerate())
    found = findings(run.run_checks(target, limit_s=2))
    assert found["Kafka"].state is State.WARNING
    assert found["Kafka"].found == "the check failed: RuntimeError: broken"
    assert found["Redis"].found == "no answer within 2 s"
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)


def test_invalid_settings_are_a_problem(settings: Settings, tmp_path: Path) -> None:
    found = findings(check(settings, tmp_path, errors="API_PORT: not a number"))["Settings"]
    assert (found.state, found.found) == (State.PROBLEM, "API_PORT: not a number")


def test_findings_that_are_not_ok_say_cost_and_remedy(settings: Settings) -> None:
    for one in findings(check(settings, Path("/"))).values():
        bad = one.state in {State.WARNING, State.PROBLEM}
        assert bool(one.cost) is bool(one.remedy) is bad, one
        assert one.wanted or one.state is State.NOT_APPLICABLE, one


def test_verdict_counts_every_state() -> None:
    states = [State.OK, State.WARNING, State.PROBLEM, State.OK, State.NOT_APPLICABLE]
    found = [Finding(name="x", state=state, found="") for state in states]
    assert verdict(found) == "1 problem, 1 warning, 2 ok, 1 not applicable"
    assert verdict([]) == "0 problems, 0 warnings, 0 ok, 0 not applicable"
