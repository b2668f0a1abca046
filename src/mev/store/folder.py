"""The data folder: lock, runtime file and secrets."""

import fcntl
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mev.core.errors import ConflictError, MevError, UnavailableError
from mev.core.files import secret, write_atomically
from mev.settings import Settings

LONGEST_SOCKET_PATH_BYTES = 100
"""The kernel's limit for the path of a Unix socket is 107 bytes."""
RESTORING = ".restoring"
"""Folder in a data folder whose backup is being restored."""
_RUNTIME = "runtime.json"
_LOCK = "lock"
_MASTER_KEY_FILE = "master-api-key"
_BORN = "born"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD = 19  # of /proc/PID/stat, counted behind the name
_ONCE_READABLE = ("clickhouse", "__cache__", _LOCK)
"""What earlier versions made readable for everybody who may enter the folder."""


class FolderNotPrivateError(MevError):
    """Another user may change the data folder."""

    code = "data_folder_not_private"
    status = 409


class NotRunningError(UnavailableError):
    """No system runs on this data folder."""

    code = "not_running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Addresses of the running system, for other commands on this machine."""

    pid: int
    api: str
    kafka: str
    kafka_embedded: bool
    socket: str | None = None
    """Unix socket of the API, in the data folder."""


class DataFolder:
    """A folder that only its owner can write; what is made in it only the owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Create and lock the folder until :meth:`release` or the end of the process.

        Sets the umask: files that this process creates from now on are private.

        :raises FolderNotPrivateError: when another user may change what is in it.
        :raises ConflictError: when another process has it, or a restore is not complete.
        """
        os.umask(0o077)
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_private()
        if (self.path / RESTORING).exists():
            raise ConflictError(
                f"the restore of a backup to {self.path} did not end; wait for it, or empty the "
                "folder and restore again",
                code="restore_incomplete",
            )
        lock = (self.path / _LOCK).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ConflictError(
                f"another mev runs on {self.path}; "
                "stop it, or choose another folder with MEV_DATA_DIR",
                code="data_folder_in_use",
            ) from None
        self._lock = lock

    def _check_private(self) -> None:
        found = self.path.stat()
        if found.st_uid not in {os.geteuid(), 0} or found.st_mode & stat.S_IWOTH:
            raise FolderNotPrivateError(
                f"{self.path} belongs to user {found.st_uid} and has mode"
                f" {stat.S_IMODE(found.st_mode):o}: others could replace the keys in it; make it"
                " yours alone (chown, chmod 700), or choose another folder with MEV_DATA_DIR"
            )
        # The default umask of many systems makes folders writable for the group.
        if found.st_uid == os.geteuid() and found.st_mode & stat.S_IWGRP:
            self.path.chmod(stat.S_IMODE(found.st_mode) & ~stat.S_IWGRP)
        for path in map(self.path.joinpath, _ONCE_READABLE):
            if path.exists() and path.stat().st_mode & 0o077:
                path.chmod(path.stat().st_mode & 0o700)

    def release(self) -> None:
        """Remove the runtime file and unlock the folder."""
        (self.path / _RUNTIME).unlink(missing_ok=True)
        if self._lock:
            self._lock.close()
            self._lock = None

    def write_runtime(self, runtime: Runtime) -> None:
        """Say where the running system is."""
        write_atomically(
            self.path / _RUNTIME, json.dumps(asdict(runtime) | {_BORN: _born(runtime.pid)}).encode()
        )

    def read_runtime(self) -> Runtime:
        """Return the addresses of the running system.

        :raises NotRunningError: if none runs on this folder.
        """
        try:
            known = json.loads((self.path / _RUNTIME).read_bytes())
            born = known.pop(_BORN)
            runtime = Runtime(**known)
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            raise self._not_running() from None
        # After a kill, a process of another user may have the process id and the port: do not send
        # the key there.
        if not born or born != _born(runtime.pid):
            raise self._not_running()
        return runtime

    def secret(self, name: str) -> str:
        """Return the secret `name`; create it in a file readable by its owner only, if missing."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return secret(self.path / name)

    def _not_running(self) -> NotRunningError:
        return NotRunningError(
            f"no system runs on {self.path}; "
            "start one with `mev up`, or set MEV_DATA_DIR to its folder"
        )


def _born(pid: int) -> str:
    """Return the boot id and start time of a process, which tell it from others of the same id.

    Empty when there is no such process.
    """
    try:
        behind_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
        return f"{_BOOT_ID.read_text().strip()} {behind_name.split()[_START_FIELD].decode()}"
    except (OSError, LookupError):
        return ""


def master_key(settings: Settings, folder: DataFolder) -> str:
    """Return the master key of the settings, or the one generated for this machine."""
    return (
        settings.master_api_key.get_secret_value()
        if settings.master_api_key
        else folder.secret(_MASTER_KEY_FILE)
    )
