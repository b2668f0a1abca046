"""Lifecycle of one server process: start, readiness, stop, kill, and end with the tests."""

import os
import random
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.services.waits import until

LAUNCH = Path(__file__).with_name("launch.py")
LOG_TAIL_BYTES = 4000


class ServiceError(RuntimeError):
    """A server did not start, or did not stop."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that stays free while its server is down.

    It is below the range of ephemeral ports, so no client takes it between a kill and a restart.
    """
    for port in random.sample(range(20_000, 32_000), 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceError("no free port between 20000 and 32000")


class Service(ABC):
    """A server on a fixed port and folder, restartable any number of times; thread-safe."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ties the server to the thread that forked it, so that thread lives as long.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-spawner")

    @abstractmethod
    def command(self) -> list[str]:
        """Give the program and arguments that run the server in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Ask the server, by its own protocol and within a second, whether it serves."""

    @property
    def pid(self) -> int | None:
        """Tell the server's process id, None while it is down."""
        return self._process.pid if self._process is not None and self.is_running() else None

    def is_running(self) -> bool:
        """Tell whether the process exists, ready or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it serves; do nothing if it runs."""
        if self.is_running():
            return
        self._process = self._spawner.submit(self._spawn).result()
        try:
            until(
                lambda: (self.is_running(), self.is_ready(), self.log.stat().st_size),
                lambda seen: not seen[0] or seen[1],
                pause_s=0.05,
            )
            assert self.is_running()
        except AssertionError:
            outcome = "was not ready in time" if self.is_running() else "ended while starting"
            self.kill()
            raise ServiceError(f"{self.name} {outcome}; {self.describe_log()}") from None

    def stop(self, timeout_s: float = 20) -> None:
        """End the server in its own orderly way."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as slow:
            self.kill()
            raise ServiceError(
                f"{self.name} did not stop in {timeout_s} s and was killed; {self.describe_log()}"
            ) from slow
        self._process = None

    def kill(self) -> None:
        """Kill the server and what it started, as a crash would (SIGKILL)."""
        if self._process is None:
            return
        if self.is_running():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def close(self) -> None:
        """Kill the server for good."""
        self.kill()
        self._spawner.shutdown()

    def describe_log(self) -> str:
        """Name the log file and quote its end, for failure messages."""
        tail = (
            self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            if self.log.exists()
            else ""
        )
        return f"log {self.log} ends with:\n{tail}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launcher, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
