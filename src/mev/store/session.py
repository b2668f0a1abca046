"""The login of this machine's user: a file only they can read, with the tokens of `mev login`."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mev.core.files import write_atomically

_NAME = "login.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSession:
    """Who is logged in, and the tokens that show it."""

    name: str
    access_token: str
    refresh_token: str
    access_expires_s: float


class SessionFile:
    """The file in `folder`; refresh tokens work once, so whoever exchanges one holds the lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def read(self) -> LoginSession | None:
        """Return the login, None when there is none."""
        try:
            return LoginSession(**json.loads(self._path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, session: LoginSession) -> None:
        """Keep a login."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path, json.dumps(asdict(session)).encode())

    def remove(self) -> None:
        """Forget the login."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from exchanging the refresh token at the same time."""
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
