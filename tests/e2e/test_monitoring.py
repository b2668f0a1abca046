"""Tests of `make monitoring`: Prometheus and Alertmanager beside a system with an agent."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services import require
from tests.services.disk import fill, small_disk
from tests.services.fleet import Fleet
from tests.services.system import RunningSystem
from tests.services.waits import until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PAUSE_S = 1.0
DISK_BYTES = 256 << 20
BEHIND_S = 15
VARIABLES = {
    "$job": ".*",
    "$cluster": "local",
    "$simulated": "true",
    "$__rate_interval": "1m",
    "$__range": "5m",
}


class Notifications(HTTPServer):
    """A webhook of Alertmanager: the status of each alert as last notified."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Notified)
        self.last: dict[str, str] = {}


class _Notified(BaseHTTPRequestHandler):
    server: Notifications

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        for alert in body["alerts"]:
            self.server.last[alert["labels"]["alertname"]] = alert["status"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@dataclass(frozen=True)
class Monitored:
    """A system with an agent, and what monitors it."""

    system: RunningSystem
    fleet: Fleet
    prometheus: httpx.Client
    notified: dict[str, str]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression."""
        answer = self.prometheus.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        series: list[dict[str, Any]] = answer.json()["data"]["result"]
        return series

    def until_notified(self, alert: str, status: str) -> None:
        """Wait until Alertmanager has sent a status of an alert."""
        until(
            lambda: dict(self.notified),
            lambda notified: notified.get(alert) == status,
            f"no notification that {alert} is {status}",
            pause_s=PAUSE_S,
        )


def hasten(folder: Path, webhook: str) -> None:
    """Let a configuration scrape, alert and notify at once."""
    path = folder / "prometheus" / "prometheus.yml"
    path.write_text(re.sub(r"(scrape|evaluation)_(\w+): \d+s.*", r"\1_\2: 1s", path.read_text()))
    for path in (folder / "prometheus" / "rules").glob("*.yml"):
        path.write_text(re.sub(r"for: \w+", "for: 1s", path.read_text()))
    path = folder / "alertmanager" / "alertmanager.yml"
    text = re.sub(r"group_(wait|interval): \w+", r"group_\1: 1s", path.read_text())
    receiver = rf"\g<0>    webhook_configs: [{{url: {webhook}}}]\n"
    path.write_text(re.sub(r"^  - name: \w+\n", receiver, text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Run a system with simulated events, an agent, Prometheus and Alertmanager."""
    for program in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(program) is None:
            require(f"{program} is not installed (apt-get install {program})")
    folder = tmp_path_factory.mktemp("mev")
    shutil.copytree(MONITORING, folder / "monitoring")
    with ExitStack() as stack:
        notifications = stack.enter_context(Notifications())
        threading.Thread(target=notifications.serve_forever, daemon=True).start()
        stack.callback(notifications.shutdown)
        hasten(folder / "monitoring", f"http://127.0.0.1:{notifications.server_port}")
        stack.enter_context(small_disk(folder / "data" / "clickhouse", DISK_BYTES))
        system = RunningSystem(
            folder / "data",
            TRADE_METRICS_S="1",
            REPORT_INTERVAL_S="0.3",
            HEALTH_WRITE_CHECK_S="0.5",
            SINK_RETRY_MAX_S="0.5",
        )
        system.start("--demo")
        stack.callback(system.kill)
        fleet = Fleet(system)
        stack.callback(fleet.close)
        fleet.start("a1")
        fleet.run(
            "run_monitoring",
            sys.executable,
            ROOT / "tools" / "run_monitoring.py",
            f"--configuration={folder / 'monitoring'}",
        )
        addresses = system.data_dir / "monitoring" / "addresses.json"
        until(addresses.exists, what="run_monitoring.py does not start")
        urls = json.loads(addresses.read_text())
        prometheus = stack.enter_context(httpx.Client(base_url=urls["prometheus"], timeout=30))
        yield Monitored(system, fleet, prometheus, notifications.last)
        fleet.signal("run_monitoring", signal.SIGTERM)
        until(lambda: not left(urls), what="services are left")


def left(urls: dict[str, str]) -> list[str]:
    """Return the services that still answer."""
    found = []
    for name in ("prometheus", "alertmanager"):
        with suppress(httpx.TransportError):
            httpx.get(urls[name])
            found.append(name)
    return found


def panel_queries() -> dict[str, str]:
    """Return the query of each panel by dashboard, title and query."""
    found = {}
    for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for name, value in VARIABLES.items():
                    expression = expression.replace(name, value)
                found[f"{path.stem}: {panel['title']}: {target['refId']}"] = expression
    return found


def has_number(series: list[dict[str, Any]]) -> bool:
    return any(one["value"][1] != "NaN" for one in series)


def test_every_panel_has_data_and_no_alert_fires_in_health(monitored: Monitored) -> None:
    event = [{"market_id": "test", "timestamp_ns": time.time_ns(), "simulated": True}]
    empty = panel_queries()
    assert len(empty) > 80
    with (
        monitored.system.client() as http,
        http.stream("GET", "/api/realtime/sse", params={"topics": "opportunity"}) as stream,
    ):
        chunks = stream.iter_bytes()

        def still_empty() -> list[str]:
            next(chunks)
            http.post("/api/events/tick", json=event)
            for name, expression in list(empty.items()):
                if has_number(monitored.query(expression)):
                    del empty[name]
            return sorted(empty)

        until(still_empty, lambda names: not names, "panels have no data", pause_s=PAUSE_S)
    # The rules hold for a second only, so that some may fire before there are two scrapes.
    until(
        lambda: (monitored.query("ALERTS"), dict(monitored.notified)),
        lambda seen: not seen[0] and "firing" not in seen[1].values(),
        "alerts fire in health",
        pause_s=PAUSE_S,
    )


def test_figures_of_trades_agree_with_stats(monitored: Monitored) -> None:
    names = {"count": "bundles", "landed": "bundles_landed", "tip_lamports": "tip_lamports"}
    with monitored.system.client() as http:

        def exact(figure: str, age_s: int = 0) -> int:
            to_ns = time.time_ns() - age_s * 1_000_000_000
            query = {"simulated": "only", "by": "agent", "to": str(to_ns)}
            answer = http.get("/api/stats/trades", params=query)
            return sum(sum(one[figure]) for one in answer.raise_for_status().json()["series"])

        def counted(figure: str) -> float:
            text = http.get("/metrics").raise_for_status().text
            samples = re.findall(
                rf"^mev_agent_{names[figure]}_total{{.*}} (\S+)$", text, re.MULTILINE
            )
            return sum(map(float, samples))

        stored = {figure: exact(figure, BEHIND_S) for figure in names}
        assert stored["landed"] > 0
        for figure, least in stored.items():
            value = until(lambda: counted(figure), lambda value: value >= least, pause_s=PAUSE_S)
            assert value <= exact(figure)


def test_metrics_are_valid_and_include_those_of_every_rule(monitored: Monitored) -> None:
    with monitored.system.client() as http:
        text = http.get("/metrics").raise_for_status().text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # A metric without a sample yet has a type already.
    known = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    rules = "".join(path.read_text() for path in (MONITORING / "prometheus/rules").glob("*.yml"))
    used = set(re.findall(r"\b(?:mev|process)_\w+", rules))
    assert len(used) > 30
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in used} - known == set()


def test_alert_fires_while_agent_is_silent(monitored: Monitored) -> None:
    monitored.fleet.signal("a1", signal.SIGSTOP)
    monitored.until_notified("MevFleetOffline", "firing")
    monitored.fleet.signal("a1", signal.SIGCONT)
    monitored.until_notified("MevFleetOffline", "resolved")


def test_alerts_fire_while_nothing_can_be_stored(monitored: Monitored) -> None:
    def is_retrying() -> list[dict[str, Any]]:
        return monitored.query('ALERTS{alertname="MevSinkRetries",alertstate="firing"}')

    ballast = fill(monitored.system.data_dir / "clickhouse")
    monitored.until_notified("MevDependencyDown", "firing")
    until(is_retrying, pause_s=PAUSE_S)
    ballast.unlink()
    monitored.until_notified("MevDependencyDown", "resolved")
    until(is_retrying, lambda series: not series, pause_s=PAUSE_S)


def test_alert_fires_while_system_does_not_answer(monitored: Monitored) -> None:
    os.kill(monitored.system.pid, signal.SIGSTOP)
    monitored.until_notified("MevTargetDown", "firing")
    os.kill(monitored.system.pid, signal.SIGCONT)
    monitored.until_notified("MevTargetDown", "resolved")
