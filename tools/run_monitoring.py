"""Run Prometheus, Alertmanager and, where it is installed, Grafana beside the running system.

Without a running system on the data folder, one with simulated events and an agent is started.
Everything ends with this program. The files of the services are in `monitoring` in the data folder.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mev import settings as settings_module
from mev.core.errors import MevError
from mev.store.folder import DataFolder

CONFIGURATION = Path(__file__).resolve().parent.parent / "deploy/monitoring"
_MEV = Path(sys.executable).with_name("mev")
_START_S = 120.0
_STOP_S = 30.0
_GRAFANA_HOMES = ("/usr/share/grafana", "/usr/local/share/grafana")


def main() -> None:
    """Run until SIGINT or SIGTERM, or until a service ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configuration", type=Path, default=CONFIGURATION, help="a copy of deploy/monitoring"
    )
    configuration = parser.parse_args().configuration
    prometheus, alertmanager = _program("prometheus"), _program("prometheus-alertmanager")
    data = settings_module.load().mev_data_dir
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with ExitStack() as stack:
        processes: list[subprocess.Popen[bytes]] = []

        def start(name: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
            log = stack.enter_context((folder / f"{name}.log").open("ab"))
            # A new session: Ctrl-C in a terminal reaches this program only, which ends the others.
            process = subprocess.Popen(  # noqa: S603
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
            stack.callback(_end, process)
            processes.append(process)

        folder = data / "monitoring"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True)
        api = _running_api(data)
        is_demo = api is None
        if api is None:
            start("system", str(_MEV), "up", "--demo")
            _wait("the system", processes[-1], folder, lambda: _running_api(data))
            api = str(_running_api(data))
        ports = _free_ports("prometheus", "alertmanager", "grafana")
        _copy(configuration, folder, api, ports["alertmanager"])
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        start(
            "alertmanager",
            alertmanager,
            f"--config.file={folder}/alertmanager/alertmanager.yml",
            f"--storage.path={folder}/alertmanager/data",
            f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
            "--cluster.listen-address=",  # only this one
        )
        start(
            "prometheus",
            prometheus,
            f"--config.file={folder}/prometheus/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus/data",
            f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
        )
        for process, name in zip(processes[-2:], ("alertmanager", "prometheus"), strict=True):
            ready = f"{urls[name]}/-/ready"
            _wait(name, process, folder, partial(_answers, ready))
        grafana = _grafana(folder, urls["prometheus"], ports["grafana"])
        if grafana is None:
            del urls["grafana"]
        else:
            start("grafana", *grafana[0], environment=grafana[1])
        if is_demo:
            start("agent", str(_MEV), "agent", "run", "--module", "arbitrage", "--id", "demo")
        (folder / "addresses.json").write_text(json.dumps({"system": api, **urls}))
        for name, url in {"system": api, **urls}.items():
            sys.stderr.write(f"{name:<12}  {url}\n")
        if grafana is None:
            sys.stderr.write("grafana       not installed; dashboards: deploy/monitoring/grafana\n")
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(1)
        except KeyboardInterrupt:
            return
        sys.exit(f"run_monitoring: a service ended; see the logs in {folder}")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        sys.exit(
            f"run_monitoring: {name} not found; on Debian: "
            "apt-get install prometheus prometheus-alertmanager"
        )
    return path


def _running_api(data: Path) -> str | None:
    """Return the address of the system that runs on the data folder, None without one."""
    try:
        api: str = DataFolder(data).read_runtime().api
    except MevError:
        return None
    return api if _answers(f"{api}/api/health/ready") else None


def _answers(url: str, key: str = "") -> bool:
    """Return whether a service answers with 200."""
    request = Request(url, headers={"X-API-Key": key} if key else {})  # noqa: S310
    try:
        with urlopen(request, timeout=10):  # noqa: S310
            return True
    except OSError:  # also an HTTP error
        return False


def _wait(
    name: str,
    process: subprocess.Popen[bytes],
    folder: Path,
    is_ready: Callable[[], object],
) -> None:
    deadline = time.monotonic() + _START_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"run_monitoring: {name} did not start; see the logs in {folder}")
        time.sleep(0.1)


def _copy(configuration: Path, folder: Path, api: str, alertmanager: int) -> None:
    """Copy the configuration, and write what differs between sites."""
    for name in ("prometheus", "alertmanager", "grafana"):
        shutil.copytree(configuration / name, folder / name, dirs_exist_ok=True)
    targets = folder / "prometheus" / "targets"
    system = {"targets": [urlsplit(api).netloc], "labels": {"cluster": "local"}}
    (targets / "mev.json").write_text(json.dumps([system]))
    (targets / "alertmanager.json").write_text(
        json.dumps([{"targets": [f"127.0.0.1:{alertmanager}"]}])
    )
    key = folder / "prometheus" / "mev-api-key"
    if not key.exists() or not _answers(f"{api}/metrics", key.read_text()):
        command = [str(_MEV), "key", "create", "monitoring", "--scope", "metrics:read"]
        created = subprocess.check_output(command, text=True)  # noqa: S603
        key.touch(mode=0o600)
        key.write_text(created.strip())


def _grafana(
    folder: Path, prometheus: str, port: int
) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """Return command and environment of Grafana, None where it is not installed."""
    program = shutil.which("grafana")
    home = next((path for path in _GRAFANA_HOMES if Path(path).is_dir()), None)
    if program is None or home is None:
        return None
    return (
        (program, "server", "--homepath", home),
        {
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(port),
            "GF_PATHS_DATA": str(folder / "grafana" / "data"),
            "GF_PATHS_PROVISIONING": str(folder / "grafana" / "provisioning"),
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "MEV_DASHBOARDS": str(folder / "grafana" / "dashboards"),
            "PROMETHEUS_URL": prometheus,
        },
    )


def _free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
