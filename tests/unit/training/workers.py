"""A Dask scheduler and workers as processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import socket

_DEADLINE_S = 40.0
_TLS = ("--tls-ca-file", "--tls-cert", "--tls-key")


class Cluster:
    """A scheduler, and the workers that were started."""

    def __init__(self, folder: Path, tls: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._tls = [
            word for option, file in zip(_TLS, tls, strict=False) for word in (option, str(file))
        ]
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{port}"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"
        )
        self.workers: list[subprocess.Popen[bytes]] = []
        self._wait("scheduler0.log", "Scheduler at:")

    def add_worker(self) -> "subprocess.Popen[bytes]":
        """Start a worker and wait until it is known."""
        number = len(self.workers) + 1
        options = (
            "--nthreads",
            "1",
            "--no-nanny",
            "--memory-limit",
            "0",
            "--no-dashboard",
            "--local-directory",
            str(self._folder),
        )
        process = self._start("worker", self.address, *options, number=number)
        self.workers.append(process)
        self._wait(f"worker{number}.log", "Registered to:")
        return process

    def close(self) -> None:
        """End them all."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def _start(self, kind: str, *arguments: str, number: int = 0) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{kind}{number}.log").open("wb") as log:
            command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *self._tls, *arguments]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        os.sched_setaffinity(process.pid, range(os.cpu_count() or 1))
        return process

    def _wait(self, log: str, said: str) -> None:
        deadline_s = time.monotonic() + _DEADLINE_S
        while said not in (self._folder / log).read_text():
            assert time.monotonic() < deadline_s, (self._folder / log).read_text()
            time.sleep(0.05)


@contextmanager
def cluster(folder: Path, workers: int, tls: Sequence[Path] = ()) -> Iterator[Cluster]:
    """Yield a cluster of `workers`; `tls` has the PEM files of authority, certificate and key."""
    made = Cluster(folder, tls)
    try:
        for _ in range(workers):
            made.add_worker()
        yield made
    finally:
        made.close()
