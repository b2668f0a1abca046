"""Password hashing with Argon2id, in threads with limited concurrency.

Every login costs one verification, also for an unknown user, so that timing does not reveal which
users exist.
"""

import asyncio
import logging
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mev.auth.errors import InvalidPasswordError, LoginBusyError
from mev.core.files import write_atomically

MIN_LENGTH = 12
MAX_LENGTH = 256
_THREADS = 2
_MAX_WAITING = 32
T = TypeVar("T")
LOG = logging.getLogger(__name__)
_NAME = "first-password"


class Hasher(Protocol):
    """Interface of :class:`argon2.PasswordHasher`, for tests with cheaper hashes."""

    def hash(self, password: str) -> str:
        """Return a hash with its parameters and salt."""

    def verify(self, hash: str, password: str) -> bool:  # noqa: A002 - argon2's name
        """Return True, or raise."""

    def check_needs_rehash(self, hash: str) -> bool:  # noqa: A002 - argon2's name
        """Return whether the parameters have changed since."""


class Passwords:
    """Hashes and verifies passwords; each takes tens of milliseconds and 64 MiB."""

    def __init__(self, hasher: Hasher | None = None) -> None:
        self._hasher: Hasher = hasher or PasswordHasher()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._waiting = 0
        self._decoy: str | None = None

    async def hash(self, password: str) -> str:
        """Return the hash of `password` for storage."""
        return await self._run(partial(self._hasher.hash, normal(password)))

    async def verify(self, kept: str | None, password: str) -> bool:
        """Return whether `password` matches the hash `kept`.

        None, for an unknown user, costs the same time and returns False.
        """
        if self._decoy is None:
            self._decoy = await self._run(partial(self._hasher.hash, secrets.token_urlsafe()))
        return await self._run(partial(self._verify, kept or self._decoy, normal(password)))

    def outdated(self, kept: str) -> bool:
        """Return whether a hash has other parameters than the current ones."""
        return self._hasher.check_needs_rehash(kept)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= _MAX_WAITING:
            raise LoginBusyError(
                "too many logins are under way; try again in a moment", retry_after_s=2
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False


def normal(password: str) -> str:
    """Return `password` in Unicode NFKC form, so that keyboards do not matter."""
    return unicodedata.normalize("NFKC", password.encode(errors="replace").decode())


def check_acceptable(password: str, name: str) -> None:
    """Refuse a new password that is too short, too long, or similar to the name.

    :raises InvalidPasswordError: with the reason.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidPasswordError(
            f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters; a few unrelated words "
            "make a good one"
        )
    if name in password.lower() and len(password) < len(name) + MIN_LENGTH:
        raise InvalidPasswordError("the password is little more than the name; choose another")
    if len(set(password)) < 5:
        raise InvalidPasswordError("the password repeats too few characters; choose another")


class FirstPassword:
    """A file in `folder` that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME

    def keep(self, password: str) -> None:
        """Write the password."""
        write_atomically(self.path, f"{password}\n".encode())

    def forget(self) -> None:
        """Remove the file: the password was used or changed."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning(
                "%s is still there: %s; remove it",
                self.path,
                error.strerror,
                extra={"action": "first_password"},
            )
