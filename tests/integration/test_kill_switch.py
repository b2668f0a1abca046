"""Tests of the kill switch while stores, disks and brokers fail one at a time."""

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from mev.store.valkey import EmbeddedValkey
from tests.services import require
from tests.services.clickhouse import ClickHouseHttp
from tests.services.kafka import RealKafka
from tests.services.system import MEV, RunningSystem
from tests.services.waits import until

AGENT = "a1"
PROMPT = {"LEASE_RENEW_S": "0.5", "REPORT_INTERVAL_S": "0.3", "SERVICE_TIMEOUT_S": "3"}
HALT = {"scope": "all", "level": "HALTED", "reason": "test"}
RAISE = {"scope": "all", "level": "ACTIVE", "reason": "test"}
CONFIG = {"config_key": "batch_window_ms", "config_value": 11}
_BLOCK = bytes(4096)
_AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


class SmallDisk:
    """A disk of 256 KiB at `folder`, which a test fills and clears."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Allocate every free block; only the slack at the end of existing files remains."""
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            self._write_without_end()

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink()

    def _write_without_end(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            while file.write(_BLOCK):
                pass


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a small disk at `folder`."""
    folder.mkdir(parents=True, mode=0o700)
    options = f"size=256k,mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    try:
        subprocess.run(
            [*_AS_ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        require("no disk can be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run([*_AS_ROOT, "umount", "--lazy", folder], check=True)


class Site:
    """A running system with an agent that may trade."""

    def __init__(self, system: RunningSystem, http: httpx.Client) -> None:
        self.system = system
        self.http = http
        self._pid = system.pid

    def halt(self) -> str:
        """Lower all agents to HALTED, which is always accepted, and return the command's path."""
        answer = self.http.post("/api/control/kill-switch", json=HALT)
        assert answer.status_code == 202, answer.text
        command = answer.json()
        assert (command["kind"], command["body"]["level"]) == ("level", "HALTED")
        newest = self.http.get("/api/control/commands?limit=1").raise_for_status().json()["items"]
        assert [item["id"] for item in newest] == [command["id"]]
        return f"/api/control/commands/{command['id']}"

    def refused(self, path: str, body: dict[str, Any], code: str) -> str:
        """Check that the command is refused with 503 and `code`; return the reason."""
        before = self.commands()
        answer = self.http.post(path, json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (
            503,
            "application/problem+json",
        ), answer.text
        assert answer.json()["code"] == code
        assert int(answer.headers["retry-after"]) > 0
        assert self.commands() == before
        return str(answer.json()["detail"])

    def commands(self) -> list[str]:
        """Return the ids of all commands, newest first."""
        items = self.http.get("/api/control/commands?limit=1000").raise_for_status().json()["items"]
        return [item["id"] for item in items]

    def command(self, path: str) -> dict[str, Any]:
        """Return a command."""
        found: dict[str, Any] = self.http.get(path).raise_for_status().json()
        return found

    def state(self, path: str) -> str:
        """Return what is known of a command at the agent."""
        states = {
            delivery["agent_id"]: delivery["state"] for delivery in self.command(path)["deliveries"]
        }
        return str(states[AGENT])

    def level(self) -> str | None:
        """Return the level that the agent says it runs at; None before it has said anything."""
        agents = self.http.get("/api/control/agents").raise_for_status().json()["items"]
        return next((agent["level"] for agent in agents if agent["agent_id"] == AGENT), None)

    def raise_again(self) -> None:
        """Raise all agents to ACTIVE and wait until the agent obeys."""
        answer = self.http.post("/api/control/kill-switch", json=RAISE)
        assert answer.status_code == 202, answer.text
        until(lambda: self.level() == "ACTIVE", what="the agent was not raised")

    def obeyed(self, path: str) -> None:
        """Wait until the agent has halted because of the command."""
        until(
            lambda: self.state(path) == "SYNCED" and self.level() == "HALTED",
            what="the agent does not stand still",
        )

    def ready(self) -> tuple[int, set[str]]:
        """Return the status of readiness and what fails."""
        answer = self.http.get("/api/health/ready")
        return answer.status_code, {
            name for name, found in answer.json()["dependencies"].items() if not found["ok"]
        }

    def lives(self) -> None:
        """Check that the process was not restarted, and wait until its dependencies are healthy."""
        until(lambda: self.ready() == (200, set()), what="readiness did not come back")
        os.kill(self._pid, 0)
        assert self.http.get("/api/health/").status_code == 200

    def metric(self, name: str) -> float:
        """Return a metric."""
        found = re.search(
            rf"^{name} (\S+)$", self.http.get("/metrics").raise_for_status().text, re.MULTILINE
        )
        assert found, name
        return float(found[1])

    def audited(self) -> set[str]:
        """Return the ids of the level commands that the audit trail's search finds."""
        answer = self.http.get(
            "/api/control/audit-log?action=control.level&limit=1000"
        ).raise_for_status()
        return {item["correlation_id"] for item in answer.json()["items"]}


@contextmanager
def running(system: RunningSystem) -> Iterator[Site]:
    """Run `system` and an agent, raised to ACTIVE; at the end it has to stop in order."""
    system.start()
    try:
        with agent(system), system.client() as http:
            site = Site(system, http)
            until(lambda: site.level() is not None, what="the agent does not report")
            site.raise_again()
            yield site
        assert system.stop() == 0, system.log.read_text()
    finally:
        system.kill()


@contextmanager
def agent(system: RunningSystem) -> Iterator[None]:
    """Run an agent of module arbitrage."""
    with system.data_dir.with_name("agent.log").open("ab") as log:
        process = subprocess.Popen(
            [MEV, "agent", "run", "--module", "arbitrage", "--id", AGENT],
            env=system.environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def command_id(path: str) -> str:
    """Return the id of the command at `path`."""
    return path.rpartition("/")[2]


def test_it_works_while_valkey_is_dead(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data", **PROMPT)
    with running(system) as site:
        with redis.Redis(
            unix_socket_path=str(system.data_dir / "valkey" / "valkey.sock")
        ) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        until(lambda: site.ready() == (200, {"redis"}), what="readiness does not name redis alone")
        site.obeyed(site.halt())
        valkey = EmbeddedValkey(system.data_dir / "valkey", timeout_s=20)
        valkey.start()
        try:
            site.lives()
            site.raise_again()
        finally:
            valkey.stop()


@pytest.mark.slow
def test_it_works_while_clickhouse_is_down(tmp_path: Path, clickhouse_http: ClickHouseHttp) -> None:
    database = {"CLICKHOUSE_DATABASE": f"kill_switch_{os.getpid()}"}
    with running(
        RunningSystem(tmp_path / "data", **PROMPT, **database, **clickhouse_http.environment)
    ) as site:
        clickhouse_http.kill()
        until(
            lambda: site.ready()[0] == 503 and "clickhouse" in site.ready()[1],
            what="readiness does not name clickhouse",
        )
        halted = site.halt()
        site.obeyed(halted)
        clickhouse_http.start()
        site.lives()
        until(
            lambda: command_id(halted) in site.audited(),
            what="the command is not in the audit trail",
        )


@pytest.mark.slow
def test_it_works_while_nothing_can_be_audited_and_raising_does_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with small_disk(data / "audit") as disk, running(RunningSystem(data, **PROMPT)) as site:
        disk.fill()
        halted = [site.halt()]
        while not site.metric("mev_audit_spooled"):
            halted.append(site.halt())
        site.obeyed(halted[-1])
        why = site.refused("/api/control/kill-switch", RAISE, "audit_unavailable")
        assert os.strerror(errno.ENOSPC) in why
        assert site.refused("/api/control/config", CONFIG, "audit_unavailable")
        site.lives()
        assert site.level() == "HALTED"

        disk.clear()
        until(
            lambda: site.audited() >= {command_id(path) for path in halted},
            what="a command is not in the audit trail",
        )
        assert site.metric("mev_audit_spooled") == 0
        assert site.metric("mev_audit_spool_dropped_total") == 0
        site.raise_again()
        site.lives()
        checked = site.system.run("audit", "verify", check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_it_works_while_no_command_can_be_kept_and_other_commands_do_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with small_disk(data / "control") as disk, running(RunningSystem(data, **PROMPT)) as site:
        disk.fill()
        halted = [site.halt()]
        while not site.metric("mev_control_unkept"):
            halted.append(site.halt())
        site.obeyed(halted[-1])
        for path, body in (("/api/control/kill-switch", RAISE), ("/api/control/config", CONFIG)):
            assert os.strerror(errno.ENOSPC) in site.refused(path, body, "journal_unavailable")
        site.lives()
        assert site.level() == "HALTED"

        disk.clear()
        until(
            lambda: site.metric("mev_control_unkept") == 0,
            what="the commands are not kept when there is room",
        )
        known = site.commands()
        site.system.kill()
        site.system.start()
        with site.system.client() as http:
            again = Site(site.system, http)
            assert again.commands() == known
            newest = again.command(f"/api/control/commands/{command_id(halted[-1])}")
            assert newest["superseded_by"] is None
            again.lives()


@pytest.mark.slow
@pytest.mark.parametrize("publish_timeout_s", ["1", "120"], ids=["given_up", "still_trying"])
def test_it_works_while_kafka_is_down_and_is_obeyed_when_it_is_back(
    tmp_path: Path, real_kafka: RealKafka, publish_timeout_s: str
) -> None:
    environment = {"KAFKA_BROKERS": real_kafka.brokers, "PUBLISH_TIMEOUT_S": publish_timeout_s}
    with running(RunningSystem(tmp_path / "data", **PROMPT, **environment)) as site:
        real_kafka.kill()
        until(lambda: site.ready() == (503, {"kafka"}), what="readiness does not name kafka alone")
        halted = site.halt()
        assert site.command(halted)["published"] is False
        assert site.state(halted) == "NOT_SENT"
        if publish_timeout_s == "1":
            until(
                lambda: f"command {command_id(halted)} is not out" in site.system.log.read_text(),
                what="publishing was not given up",
            )
        real_kafka.start()
        until(lambda: site.command(halted)["published"], what="the command was not published")
        site.obeyed(halted)
        site.lives()
