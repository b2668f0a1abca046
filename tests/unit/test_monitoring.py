"""Tests of deploy/monitoring with the tools of Prometheus and Alertmanager."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services import require

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
FILES = sorted((MONITORING / "prometheus" / "rules").glob("*.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
ALERT = re.compile(r"- alert: (\w+)")
TARGET = 'job="mev",cluster="main",instance="a"'
BUSINESS = f'{TARGET},agent="bot",simulated="false"'
SERVED = {
    f"mev_publish_messages_total{{{TARGET}}}": "0+100x200",
    f"mev_publish_failed_total{{{TARGET}}}": "0x200",
    f"mev_publish_seconds_count{{{TARGET}}}": "0+100x200",
    f'mev_publish_seconds_bucket{{{TARGET},le="0.256"}}': "0+100x200",
    f'mev_realtime_stage_seconds_count{{{TARGET},stage="receive"}}': "0+100x200",
    f'mev_realtime_stage_seconds_bucket{{{TARGET},stage="receive",le="0.5"}}': "0+100x200",
}


@dataclass(frozen=True)
class Fault:
    """Series with a value a minute, when the alert must fire, and when it must be over."""

    series: Mapping[str, str]
    fires_min: int
    over_min: int


def gauge(name: str, bad: str, good: str, labels: str = "") -> Fault:
    """A gauge that is bad for 20 minutes."""
    return Fault({f"{name}{{{TARGET}{labels}}}": f"{good}x4 {bad}x20 {good}x40"}, 24, 28)


def jump(name: str, by: int, labels: str = "", *, window_min: int = 15) -> Fault:
    """A counter that jumps once."""
    return Fault({f"{name}{{{TARGET}{labels}}}": f"0x5 {by}x150"}, 7, 9 + window_min)


def climb(name: str, labels: str = "") -> Fault:
    """A counter that rises once a second for 20 minutes."""
    return Fault({f"{name}{{{TARGET}{labels}}}": "0+60x20 1200x60"}, 19, 28)


def requests(ok: str, failed: str) -> dict[str, str]:
    """HTTP requests by their result."""
    name = f'mev_http_requests_total{{{TARGET},route="/api/events/{{type}}",method="POST"'
    return {f'{name},status="202"}}': ok, f'{name},status="503"}}': failed}


FAULTS = {
    "MevTargetDown": gauge("up", "0", "1"),
    "MevNoTargets": Fault({f"up{{{TARGET}}}": "_x9 1x30"}, 7, 12),
    "MevDependencyDown": gauge(
        "mev_dependency_up", "0", "1", ',dependency="kafka",required="true"'
    ),
    "MevDependencyDegraded": gauge(
        "mev_dependency_up", "0", "1", ',dependency="redis",required="false"'
    ),
    "MevProcessDown": gauge("mev_process_up", "0", "1", ',process="api-0"'),
    "MevChildRestarts": jump("mev_child_restarts_total", 4, ',child="kafka"'),
    "MevFileDescriptors": Fault(
        {
            f"process_open_fds{{{TARGET}}}": "10x4 900x20 10x40",
            f"process_max_fds{{{TARGET}}}": "1000x70",
        },
        20,
        28,
    ),
    "MevRequestsShed": climb("mev_shed_requests_total", ',reason="lag"'),
    "MevConnectionsRefused": climb("mev_http_connections_refused_total", ',reason="connections"'),
    "MevSinkBehind": gauge("mev_sink_oldest_seconds", "120", "0"),
    "MevSinkStopped": Fault(
        {
            f'mev_sink_lag_messages{{{TARGET},topic="mev.tick.v1"}}': "50x20 0x40",
            f'mev_sink_rows_total{{{TARGET},topic="mev.tick.v1"}}': "100x20 100+50x40",
        },
        15,
        23,
    ),
    "MevSinkTooSlow": Fault(
        {
            f'mev_sink_lag_messages{{{TARGET},topic="mev.tick.v1"}}': "100000x20 0x40",
            f'mev_sink_rows_total{{{TARGET},topic="mev.tick.v1"}}': "0+60x60",
        },
        15,
        23,
    ),
    "MevSinkRetries": gauge("mev_sink_retrying_blocks", "1", "0"),
    "MevEventsLost": jump("mev_sink_lost_total", 3, ',topic="mev.tick.v1"'),
    "MevStreamEventsLost": jump("mev_tail_lost_total", 3, ',topic="mev.tick.v1"'),
    "MevDeadLetters": jump("mev_sink_dead_letters_total", 1, ',topic="mev.tick.v1"'),
    "MevKafkaClientStalls": Fault(
        {
            f"mev_sink_stalls_total{{{TARGET}}}": "0x5 1x150",
            f"mev_tail_stalls_total{{{TARGET}}}": "0x155",
        },
        7,
        70,
    ),
    "MevStreamDrops": Fault(
        {
            f'mev_realtime_events_dropped_total{{{TARGET},policy="budget"}}': "0+60x20 1200x60",
            f'mev_realtime_events_sent_total{{{TARGET},transport="sse"}}': "0+60x80",
        },
        19,
        28,
    ),
    "MevFleetOffline": Fault(
        {f'mev_agents_online{{{TARGET},module="arbitrage"}}': "3x5 0x10 3x60"}, 12, 18
    ),
    "MevAgentsOffline": Fault(
        {f'mev_agents_online{{{TARGET},module="arbitrage"}}': "3x5 2x12 3x60"}, 14, 20
    ),
    "MevAgentsSteppedDown": gauge("mev_agents_stepped_down", "2", "0", ',module="arbitrage"'),
    "MevControlMessagesRefused": jump("mev_control_messages_refused_total", 1),
    "MevControlUnkept": gauge("mev_control_unkept", "1", "0"),
    "MevAuditNotWritten": gauge("mev_audit_spooled", "1", "0"),
    "MevAuditCopyBehind": gauge("mev_audit_copy_lag_records", "5000", "0"),
    "MevDeploymentRolledBack": Fault(
        {
            f"mev_deployment_rollbacks_total{{{TARGET}}}": "0x5 1x150",
            f"mev_deployment_rollback_refusals_total{{{TARGET}}}": "0x155",
        },
        7,
        70,
    ),
    "MevLoginsRefused": Fault(
        {f'mev_auth_logins_total{{{TARGET},outcome="refused"}}': "0+10x20 200x60"}, 19, 32
    ),
    "MevRefreshTokenReused": jump("mev_auth_refresh_reuse_total", 1, window_min=60),
    "MevTradingLoss": Fault(
        {
            f"mev_agent_loss_lamports_total{{{BUSINESS}}}": "0x5 5000000x150",
            f"mev_agent_profit_lamports_total{{{BUSINESS}}}": "0x5 1000000x150",
        },
        20,
        75,
    ),
    "MevLandedShareLow": Fault(
        {
            f"mev_agent_bundles_total{{{BUSINESS}}}": "0+10x30 300x120",
            f"mev_agent_bundles_landed_total{{{BUSINESS}}}": "0x150",
        },
        25,
        100,
    ),
    "MevNoBundles": Fault(
        {
            f'mev_agents_level{{{TARGET},module="arbitrage",level="ACTIVE"}}': "2x150",
            f"mev_agent_bundles_total{{{BUSINESS}}}": "100x70 100+5x60",
        },
        50,
        75,
    ),
    "MevErrorBudgetFast": Fault(requests("0+100x200", "0+50x70 3500x130"), 60, 115),
    "MevErrorBudgetSlow": Fault(requests("0+1000x200", "0+2x30 60x170"), 25, 100),
    "MevErrorsAtLowTraffic": Fault(requests("0+1x200", "0x5 5x200"), 10, 80),
    "MevRuleWithoutSeries": Fault(
        {**SERVED, f"up{{{TARGET}}}": "1x200", **requests("_x29 0+1x100", "_x200")}, 20, 35
    ),
}


def run(*command: str | Path) -> str:
    """Run a tool that must be installed, and return its output; it must succeed."""
    name = str(command[0])
    if shutil.which(name) is None:
        require(f"{name} is not installed (apt-get install prometheus prometheus-alertmanager)")
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=MONITORING
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts(path: Path) -> list[str]:
    """Return the names of the alerts in a file of rules."""
    return ALERT.findall(path.read_text())


def test_configuration_is_valid(tmp_path: Path) -> None:
    shutil.copytree(MONITORING / "prometheus", tmp_path, dirs_exist_ok=True)
    (tmp_path / "mev-api-key").write_text("mev_key")
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
    run("amtool", "check-config", MONITORING / "alertmanager" / "alertmanager.yml")


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_alert_reaches_receiver_of_its_severity(severity: str) -> None:
    configuration = MONITORING / "alertmanager" / "alertmanager.yml"
    route = run(
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={configuration}",
        f"severity={severity}",
    )
    assert route.split() == [severity]


def expectation(name: str, minute: int, *, firing: bool) -> dict[str, object]:
    return {
        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{}", "value": 1}] if firing else [],
    }


@pytest.mark.parametrize("rules", FILES, ids=lambda path: path.name)
def test_each_alert_fires_on_its_fault_and_resolves(rules: Path, tmp_path: Path) -> None:
    tests = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "name": name,
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values}
                    for series, values in FAULTS[name].series.items()
                ],
                "promql_expr_test": [
                    expectation(name, FAULTS[name].fires_min, firing=True),
                    expectation(name, FAULTS[name].over_min, firing=False),
                ],
            }
            for name in alerts(rules)
        ],
    }
    path = tmp_path / "tests.json"
    path.write_text(json.dumps(tests))
    run("promtool", "test", "rules", path)


def test_runbook_has_section_for_each_alert() -> None:
    sections = re.findall(r"^### (Mev\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(name for path in FILES for name in alerts(path))
    for path in FILES:
        for name, link in re.findall(
            r"- alert: (\w+).*?runbook: docs/runbook.md#(\w+)", path.read_text(), re.DOTALL
        ):
            assert link == name.lower()


def test_every_query_of_dashboards_selects_job_and_cluster() -> None:
    for path in (MONITORING / "grafana" / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                selectors = re.findall(r"\{([^}]*)\}", target["expr"])
                assert selectors, (path.name, panel["title"])
                for selector in selectors:
                    assert selector.startswith('job=~"$job",cluster=~"$cluster"'), panel["title"]
