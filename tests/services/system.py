"""The whole system as a child process: `mev up` on a data folder of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx

from tests.services.waits import until, until_document

_STOP_S = 60.0
_COMMAND_S = 500.0
_LAST_LINES = 40
MEV = Path(sys.executable).with_name("mev")


class RunningSystem:
    """`mev up` on `data_dir`; variables in `environment` are added to a clean environment."""

    newest: "ClassVar[RunningSystem | None]" = None

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        own = {
            "MEV_DATA_DIR": str(data_dir),
            "API_PORT": "0",
            "WT_PORT": "0",
            "API_WORKERS": "1",
            "SINK_BLOCK_AGE_S": "0.1",
        }
        # A machine that runs many tests at once is late; that is no reason to refuse requests.
        own["SHED_LAG_MS"] = "20000"
        # Tests count their events in nanoseconds from 1970 on.
        own["INGEST_TIME_EARLIEST"] = "1970-01-01"
        self.environment = {"PATH": os.environ["PATH"], **own, **environment}
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        RunningSystem.newest = self

    def start(self, *arguments: str) -> None:
        """Start it and wait until it is ready."""
        (self.data_dir / "runtime.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [MEV, "up", *arguments], env=self.environment, stdout=log, stderr=log
            )
        process = self._process
        try:
            until(
                lambda: (self._is_ready(), process.poll(), self.log.stat().st_size),
                lambda seen: seen[0] or seen[1] is not None,
            )
            assert process.poll() is None
        except AssertionError:
            self.kill()
            raise AssertionError(
                f"`mev up` did not become ready:\n{self.log.read_text()}"
            ) from None

    def simulate(self, count: int) -> None:
        """Publish a market of `count` opportunities, bundles and ticks; wait until it is stored."""
        self.run("simulate", "--count", str(count), "--seed", "7", "--fast")

        def rows(page: dict[str, Any]) -> int:
            return sum(item["rows"] or 0 for item in page["items"])

        with self.client() as http:
            until_document(http, "/api/datasets", lambda page: rows(page) >= 3 * count)

    def stop(self) -> int:
        """Ask it to stop, as Ctrl-C does; return its exit code."""
        return self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with nothing tidied up."""
        self._end(signal.SIGKILL)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another `mev` command in the same environment."""
        done = subprocess.run(
            [MEV, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"mev {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
            )
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
        return httpx.Client(
            base_url=self.url,
            headers={"X-API-Key": self.key},
            timeout=30,
            limits=httpx.Limits(keepalive_expiry=60),  # shorter than the system's own
        )

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

    def last_lines(self) -> str:
        """Return the end of what it, its agents and its other programs logged."""
        logs = sorted(self.data_dir.parent.glob("*.log"))
        return "\n".join(
            f"== {log.name}\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
            for log in logs
        )


@contextmanager
def running_system(data_dir: Path, **environment: str) -> Iterator[RunningSystem]:
    """Run a system that must end well."""
    running = RunningSystem(data_dir, **environment)
    try:
        running.start()
        yield running
    except BaseException:
        running.kill()
        raise
    assert running.stop() == 0, running.log.read_text()
