"""The whole system as a child process: `mev up` on a data folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

_START_S = 90.0
_STOP_S = 60.0
_COMMAND_S = 180.0
MEV = Path(sys.executable).with_name("mev")


class RunningSystem:
    """`mev up` on `data_dir`; variables in `environment` are added to a clean environment."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        own = {"MEV_DATA_DIR": str(data_dir), "API_PORT": "0", "WT_PORT": "0", "SINK_BLOCK_AGE_S": "0.1"}
        # A machine that runs many tests at once is late; that is no reason to refuse requests.
        own["SHED_LAG_MS"] = "20000"
        self.environment = {"PATH": os.environ["PATH"], **own, **environment}
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start it and wait until it is ready."""
        (self.data_dir / "runtime.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([MEV, "up", *arguments], env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"`mev up` did not become ready:\n{self.log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Ask it to stop, as Ctrl-C does; return its exit code."""
        return self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with nothing tidied up."""
        self._end(signal.SIGKILL)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another `mev` command in the same environment."""
        done = subprocess.run([MEV, *arguments], env=self.environment, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
        if check and done.returncode:
            raise AssertionError(f"mev {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        return done

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Its API."""
        url: str = json.loads((self.data_dir / "runtime.json").read_text())["api"]
        return url

    @property
    def key(self) -> str:
        """Its master key."""
        return (self.data_dir / "master-api-key").read_text().strip()

    def client(self) -> httpx.Client:
        """Return an HTTP client that carries the key."""
        return httpx.Client(base_url=self.url, headers={"X-API-Key": self.key}, timeout=30)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/health/ready").is_success
        except (OSError, httpx.HTTPError):
            return False

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(_STOP_S)
        self._process = None
        return code
