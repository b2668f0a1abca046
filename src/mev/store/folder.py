"""The data folder: one running system at a time, its runtime file, its secrets."""

import fcntl
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mev.core.errors import MevError, UnavailableError
from mev.core.files import write_atomically

_RUNTIME = "runtime.json"
_LOCK = "lock"


class FolderInUseError(MevError):
    """Another process runs on this data folder."""

    code = "data_folder_in_use"
    status = 409


class NotRunningError(UnavailableError):
    """No system runs on this data folder."""

    code = "not_running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where the running system is: other commands on this machine find it with no flags."""

    pid: int
    api: str
    kafka: str
    kafka_embedded: bool


class DataFolder:
    """A folder only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Make the folder and lock it until :meth:`release` or the end of the process.

        :raises FolderInUseError: when another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (self.path / _LOCK).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise FolderInUseError(f"another mev runs on {self.path}; stop it, or choose another folder with MEV_DATA_DIR") from None
        self._lock = lock

    def release(self) -> None:
        """Remove the runtime file and unlock the folder."""
        (self.path / _RUNTIME).unlink(missing_ok=True)
        if self._lock:
            self._lock.close()
            self._lock = None

    def write_runtime(self, runtime: Runtime) -> None:
        """Say where the running system is."""
        write_atomically(self.path / _RUNTIME, json.dumps(asdict(runtime)).encode())

    def read_runtime(self) -> Runtime:
        """Return where the running system is.

        :raises NotRunningError: when none runs on this folder.
        """
        try:
            runtime = Runtime(**json.loads((self.path / _RUNTIME).read_bytes()))
        except (OSError, ValueError, TypeError):
            raise self._not_running() from None
        if not Path(f"/proc/{runtime.pid}").exists():
            raise self._not_running()
        return runtime

    def secret(self, name: str) -> str:
        """Return the secret called `name`, made once and kept in a file only the owner can read."""
        path = self.path / name
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(32).encode())
        return path.read_text().strip()

    def _not_running(self) -> NotRunningError:
        return NotRunningError(f"no system runs on {self.path}; start one with `mev up`, or set MEV_DATA_DIR to its folder")
