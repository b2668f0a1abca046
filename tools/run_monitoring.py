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
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mev import settings as settings_module
from mev.core import parent_death
from mev.core.errors import MevError
from mev.core.files import write_atomically
from mev.store.folder import DataFolder

CONFIGURATION = Path(__file__).resolve().parent.parent / "deploy/monitoring"
_MEV = Path(sys.executable).with_name("mev")
_START_S = 120.0
_STOP_S = 30.0
_POLL_S = 0.1
_GRAFANA_HOMES = ("/usr/share/grafana", "/usr/local/share/grafana")


class _Services(ExitStack):
    """Child processes that log to `folder`, and end with this context, the newest first.

    The kernel kills them if this process is killed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a service, with variables of its own."""
        log = self.enter_context((self.folder / f"{name}.log").open("ab"))
        # A new session: Ctrl-C in a terminal reaches this program only, which ends the others.
        tied = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *command]
        process = subprocess.Popen(  # noqa: S603
            tied,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.callback(_end, process)
        self._processes[name] = process

    def wait(self, name: str, is_ready: Callable[[], object]) -> None:
        """Wait until a service is ready; exit if it ends or takes too long."""
        deadline = time.monotonic() + _START_S
        while not is_ready():
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                sys.exit(f"run_monitoring: {name} did not start; see {self.folder}/{name}.log")
            time.sleep(_POLL_S)

    def watch(self) -> None:
        """Wait until a service ends; exit then."""
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    sys.exit(f"run_monitoring: {name} ended; see {self.folder}/{name}.log")
            time.sleep(1)


def main() -> None:
    """Run until SIGINT or SIGTERM, or until a service ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configuration", type=Path, default=CONFIGURATION, help="a copy of deploy/monitoring"
    )
    configuration = parser.parse_args().configuration
    data = settings_module.load().mev_data_dir
    folder = data / "monitoring"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with suppress(KeyboardInterrupt), _Services(folder) as services:
        _run(services, configuration, data)


def _run(services: _Services, configuration: Path, data: Path) -> None:
    prometheus, alertmanager = (
        _program("prometheus"),
        _program("prometheus-alertmanager", "alertmanager"),
    )
    folder, api = services.folder, _running_api(data)
    is_demo = api is None
    if api is None:
        services.start("system", str(_MEV), "up", "--demo")
        services.wait("system", lambda: _running_api(data))
        api = str(_running_api(data))
    ports = _free_ports("prometheus", "alertmanager", "grafana")
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    _copy(configuration, folder, api, ports["alertmanager"])
    services.start(
        "alertmanager",
        alertmanager,
        f"--config.file={folder}/alertmanager/alertmanager.yml",
        f"--storage.path={folder}/alertmanager/data",
        f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
        "--cluster.listen-address=",  # only this one
    )
    services.start(
        "prometheus",
        prometheus,
        f"--config.file={folder}/prometheus/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus/data",
        f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
    )
    for name in ("alertmanager", "prometheus"):
        services.wait(name, partial(_answers, f"{urls[name]}/-/ready"))
    if not _start_grafana(services, urls["prometheus"], ports["grafana"]):
        del urls["grafana"]
    if is_demo:
        services.start("agent", str(_MEV), "agent", "run", "--module", "arbitrage", "--id", "demo")
    addresses = json.dumps({"system": api, **urls}).encode()
    write_atomically(folder / "addresses.json", addresses, durable=False)
    for name, url in {"system": api, "grafana": "not installed", **urls}.items():
        sys.stderr.write(f"{name:<12}  {url}\n")
    services.watch()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _program(*names: str) -> str:
    """Return the first of the programs that is installed."""
    for name in names:
        if (path := shutil.which(name)) is not None:
            return path
    sys.exit(
        f"run_monitoring: {names[0]} not found; on Debian: "
        "apt-get install prometheus prometheus-alertmanager"
    )


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
        write_atomically(key, created.strip().encode())


def _start_grafana(services: _Services, prometheus: str, port: int) -> bool:
    """Start Grafana where it is installed; return whether it is."""
    program = shutil.which("grafana")
    home = next((path for path in _GRAFANA_HOMES if Path(path).is_dir()), None)
    if program is None or home is None:
        return False
    folder = services.folder / "grafana"
    services.start(
        "grafana",
        program,
        "server",
        "--homepath",
        home,
        GF_SERVER_HTTP_ADDR="127.0.0.1",
        GF_SERVER_HTTP_PORT=str(port),
        GF_PATHS_DATA=str(folder / "data"),
        GF_PATHS_PROVISIONING=str(folder / "provisioning"),
        GF_AUTH_ANONYMOUS_ENABLED="true",
        MEV_DASHBOARDS=str(folder / "dashboards"),
        PROMETHEUS_URL=prometheus,
    )
    return True


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
