"""Session file with the tokens of `mev login`, readable only by this machine's user."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mev.core.errors import UnavailableError
from mev.core.files import write_atomically

_NAME = "login.json"
_LOCK_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSession:
    """Name and tokens of the logged-in user."""

    name: str
    access_token: str
    refresh_token: str
    access_expires_s: float


class SessionFile:
    """The session file in `folder`; hold the lock while exchanging the one-time refresh token."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def read(self) -> LoginSession | None:
        """Return the login, or None."""
        try:
            return LoginSession(**json.loads(self._path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, session: LoginSession) -> None:
        """Store a login."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path, json.dumps(asdict(session)).encode())

    def remove(self) -> None:
        """Delete the login."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, *, wait_s: float = 60.0) -> Iterator[None]:
        """Hold the lock, so that no other command exchanges the refresh token.

        :raises UnavailableError: when another command holds the lock for `wait_s`.
        """
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._lock(descriptor, time.monotonic() + wait_s)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"another command keeps {self._path} locked; end it, or remove the file",
                        code="login_in_use",
                    ) from None
                time.sleep(_LOCK_PAUSE_S)
            else:
                return
