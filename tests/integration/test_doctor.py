"""Tests of `mev doctor` against this machine."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mev.doctor.finding import State
from mev.doctor.kernel import parse_limits
from tests.services.clickhouse import ClickHouseHttp
from tests.services.redis import RealRedis
from tests.services.system import RunningSystem, running_system

_SERVICES = ("KAFKA_BROKERS", "CLICKHOUSE_HOST", "REDIS_URL")
_MOST_CPU_S = 5.0
_PROGRAM = "from mev.cli.main import main; main()"


def run_doctor(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a data folder."""
    own = {name: value for name, value in os.environ.items() if name not in _SERVICES}
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, "doctor", *arguments],
        capture_output=True,
        text=True,
        env=own | {"MEV_DATA_DIR": str(folder)} | settings,
        check=False,
        timeout=60,
    )


def test_doctor_reports_on_this_machine_within_its_time(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_doctor(tmp_path / "data", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    states = {finding["state"] for finding in report["findings"]}
    assert done.stderr == ""
    assert done.returncode == (State.PROBLEM in states)
    assert not [one for one in report["findings"] if "failed" in one["found"]]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < _MOST_CPU_S
    assert not (tmp_path / "data").exists()


def test_doctor_prints_the_verdict_last(tmp_path: Path) -> None:
    done = run_doctor(tmp_path)
    last = done.stdout.splitlines()[-1]
    assert last.endswith("not applicable")
    assert last.startswith("0 problems") is (done.returncode == 0)
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]


def test_doctor_names_services_that_do_not_answer(tmp_path: Path) -> None:
    done = run_doctor(
        tmp_path,
        "--json",
        KAFKA_BROKERS="127.0.0.1:1",
        CLICKHOUSE_HOST="127.0.0.1",
        CLICKHOUSE_PORT="1",
        REDIS_URL="redis://127.0.0.1:1",
    )
    found = {one["name"]: one["state"] for one in json.loads(done.stdout)["findings"]}
    assert (done.returncode, done.stderr) == (1, "")
    assert {found[name] for name in ("Kafka", "ClickHouse", "Redis")} == {"problem"}


def test_doctor_reports_invalid_settings_as_a_problem(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, API_PORT="many")
    assert (done.returncode, done.stderr) == (1, "")
    assert "problem  Settings" in done.stdout
    assert "API_PORT" in done.stdout


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run everything embedded."""
    with running_system(tmp_path_factory.mktemp("mev") / "data") as system:
        yield system


def test_doctor_checks_the_process_of_the_running_system(running: RunningSystem) -> None:
    report = json.loads(run_doctor(running.data_dir, "--json").stdout)
    found = {one["name"]: one for one in report["findings"]}
    assert found["Running system"]["found"] == f"{running.url}, ready"
    assert found["Open files"]["area"] == "Limits of the running process"
    limits = parse_limits(Path(f"/proc/{running.pid}/limits").read_text())
    assert found["Open files"]["found"].startswith(f"{limits['Max open files'].soft:,}")


def test_doctor_asks_kafka_with_the_options_of_the_settings(
    running: RunningSystem, tmp_path: Path
) -> None:
    lines = running.run("config", "kafka").stdout.splitlines()
    settings = {
        name: "".join(shlex.split(value))
        for name, _, value in (line.partition("=") for line in lines)
    }
    done = run_doctor(tmp_path, "--json", **settings)
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["Kafka"]["state"] == "ok"
    assert f"at {settings['KAFKA_BROKERS']}, 1 broker;" in found["Kafka"]["found"]


def test_doctor_shows_the_version_of_a_redis_server(real_redis: RealRedis, tmp_path: Path) -> None:
    done = run_doctor(tmp_path, "--json", REDIS_URL=real_redis.url)
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["Redis"]["state"] == "ok"
    assert re.match(r"(Redis|Valkey) \d+\.\d+", found["Redis"]["found"])


def test_doctor_shows_the_version_of_a_clickhouse_server(
    clickhouse_http: ClickHouseHttp, tmp_path: Path
) -> None:
    done = run_doctor(tmp_path, "--json", **clickhouse_http.environment)
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["ClickHouse"]["state"] == "ok"
    assert re.match(r"\d+\.\d+", found["ClickHouse"]["found"])
