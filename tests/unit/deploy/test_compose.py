"""Tests of the compose file, loaded by the library of the compose specification."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mev import settings
from mev.settings import Settings
from tests.unit.deploy.conftest import Run

DOCKER = Path(__file__).parents[3] / "deploy" / "docker"
FILE = DOCKER / "compose.yaml"
PROMETHEUS = DOCKER.parent / "monitoring" / "prometheus" / "prometheus.yml"


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    """Return the variables that `new-secrets` makes."""
    text = subprocess.check_output([DOCKER / "new-secrets"], text=True)
    lines = [line.partition("=") for line in text.splitlines() if not line.startswith("#")]
    return {name: value for name, _, value in lines}


@pytest.fixture(scope="module")
def project(checker: Run, secrets: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(checker("compose", FILE, **secrets).stdout)
    return found


def test_compose_file_has_every_service(project: dict[str, Any]) -> None:
    wanted = {"mev", "kafka", "clickhouse", "redis", "object-store", "prometheus", "grafana"}
    assert project["services"].keys() == wanted
    assert all("healthcheck" in service for _, service in others(project))


def others(project: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the services whose images are not ours: ours has its health check in the image."""
    yield from ((name, each) for name, each in project["services"].items() if name != "mev")


def test_images_have_versions(project: dict[str, Any]) -> None:
    for name, service in others(project):
        tag = service["image"].rpartition(":")[2]
        assert any(each.isdigit() for each in tag), name


def test_missing_secret_and_unknown_key_are_refused(
    checker: Run, secrets: dict[str, str], tmp_path: Path
) -> None:
    without = {name: value for name, value in secrets.items() if name != "REDIS_PASSWORD"}
    done = checker("compose", FILE, check=False, **without)
    assert done.returncode == 1
    assert "run ./new-secrets" in done.stderr
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("    init: true", "    inti: true"))
    done = checker("compose", wrong, check=False, **secrets)
    assert done.returncode == 1
    assert "inti" in done.stderr


def test_settings_are_valid_and_known(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = project["services"]["mev"]["environment"]
    assert set(variables) <= {name.upper() for name in Settings.model_fields}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = settings.load()
    assert found.embedded == ()
    assert found.effective_workers == 2


def test_control_plane_has_no_privileges_and_a_read_only_root(project: dict[str, Any]) -> None:
    mev = project["services"]["mev"]
    assert mev["read_only"] is True
    assert mev["cap_drop"] == ["ALL"]
    assert mev["security_opt"] == ["no-new-privileges:true"]
    assert [mount["target"] for mount in mev["volumes"]] == ["/var/lib/mev"]


def test_ports_are_on_the_loopback_interface_only(project: dict[str, Any]) -> None:
    addresses = {
        port["host_ip"]
        for service in project["services"].values()
        for port in service.get("ports", ())
    }
    assert addresses == {"127.0.0.1"}


def test_services_without_tls_are_reached_by_the_control_plane_only(
    project: dict[str, Any],
) -> None:
    assert project["networks"]["services"]["internal"] is True
    for name, service in others(project):
        if name not in {"prometheus", "grafana"}:
            assert list(service["networks"]) == ["services"]
            assert "ports" not in service
        else:
            assert "services" not in service["networks"]


def test_mounted_files_exist(project: dict[str, Any]) -> None:
    for _, service in others(project):
        for mount in service.get("volumes", ()):
            assert mount["type"] != "bind" or Path(mount["source"]).exists()


def test_services_get_the_credentials_that_the_control_plane_uses(
    project: dict[str, Any], secrets: dict[str, str]
) -> None:
    services = {
        name: each["environment"]
        for name, each in project["services"].items()
        if "environment" in each
    }
    own, store = services["mev"], services["object-store"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert own[name] == store[name]
    bucket = own["OBJECT_STORE"].removeprefix("s3://").partition("/")[0]
    assert f"-bucket={bucket}" in project["services"]["object-store"]["command"]
    assert own["CLICKHOUSE_PASSWORD"] == services["clickhouse"]["CLICKHOUSE_PASSWORD"]
    assert secrets["REDIS_PASSWORD"] in own["REDIS_URL"]
    assert secrets["REDIS_PASSWORD"] in project["services"]["redis"]["command"]


def test_prometheus_scrapes_the_control_plane(project: dict[str, Any]) -> None:
    (target,) = json.loads(project["configs"]["prometheus-targets"]["content"])
    assert target["targets"] == ["mev:8000"]
    mounted = {each["target"] for each in project["services"]["prometheus"]["configs"]}
    named = set(re.findall(r"targets/[a-z]+\.json", PROMETHEUS.read_text()))
    assert mounted == {f"/etc/prometheus/{name}" for name in named}
